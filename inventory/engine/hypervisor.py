"""The port to a hypervisor host: what the product asks of libvirt, and what it is told.

`adapters/libvirt_driver.py` implements it; tests use libvirt's own test driver or tests/fakes.py. Sizes are bytes,
UUIDs are `uuid.UUID`, texts are as libvirt reports them.
"""

from collections.abc import Callable, Container, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from inventory.engine.abilities import HostAbilities
from inventory.engine.platform import Platform


class HypervisorError(Exception):
    """Base. `host` is the host's name or URI without any credential; texts hold no key material."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class HostUnreachable(HypervisorError):
    """No connection, or it broke."""


class BadUri(HypervisorError):
    """The URI is malformed or asks for something that is not allowed."""


class DomainMissing(HypervisorError):
    """The host knows no such domain."""


class OperationRefused(HypervisorError):
    """libvirt or QEMU said no: wrong state, unsupported, bad definition."""


class SecretMissing(HypervisorError):
    """A secret that the domain needs is not on the host, or has no value."""


class WrongKey(HypervisorError):
    """QEMU or swtpm could not open a disk, the NVRAM or the vTPM state with the secret it was given."""


class Power(StrEnum):
    OFF = "off"
    ON = "on"
    PAUSED = "paused"
    CRASHED = "crashed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class HostFacts:
    host_uuid: UUID | None
    hostname: str
    hypervisor: str
    hypervisor_version: str
    libvirt_version: str
    cpu_model: str
    cpu_count: int
    memory_bytes: int
    memory_free_bytes: int
    is_encrypted_connection: bool


@dataclass(frozen=True, slots=True)
class DatastoreFacts:
    name: str
    kind: str
    path: str
    is_active: bool
    capacity_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class DiskFacts:
    target: str
    device: str
    bus: str
    format: str
    source: str
    is_read_only: bool
    is_encrypted: bool
    secret_uuid: UUID | None
    capacity_bytes: int = 0
    allocation_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TpmFacts:
    model: str
    version: str
    is_encrypted: bool
    secret_uuid: UUID | None


@dataclass(frozen=True, slots=True)
class VmFacts:
    """One domain. `definition_sha256` is over the canonical inactive XML, so that it changes with the definition only.
    It is empty where the XML was refused: then nothing but uuid, name and power is known.

    `dumps_core`: the definition leaves guest memory in core dumps of QEMU. `memory_snapshot_count`: of the snapshots
    that libvirt knows, those that were taken of the running guest with its memory. NOT counted: snapshots inside an
    image that libvirt has no metadata of. `is_down_by_failure`: it is off although nobody shut it down: its
    last start failed (the host's autostart too), or its QEMU died. `definition`: the inactive XML, without secrets;
    empty where it was not asked for."""

    uuid: UUID
    name: str
    power: Power
    is_persistent: bool
    firmware: str  # "bios" or "uefi"
    has_secure_boot: bool
    machine: str
    vcpus: int
    memory_bytes: int
    nvram_path: str
    nvram_secret_uuid: UUID | None
    tpm: TpmFacts | None
    disks: tuple[DiskFacts, ...]
    definition_sha256: str
    dumps_core: bool = True
    is_autostarted: bool = False
    has_managed_save: bool = False
    snapshot_count: int = 0
    memory_snapshot_count: int = 0
    is_down_by_failure: bool = False
    platform: Platform = field(default_factory=Platform)
    definition: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """A block copy: `done`/`total` bytes; `is_ready` once both sides are equal; `is_gone` when no such job exists."""

    done: int
    total: int
    is_ready: bool
    is_gone: bool


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A regular file in a folder of the host. `size` is the file's own, `capacity` what a guest sees of an image;
    `backing` is the path of an overlay's backing file."""

    path: str
    size: int
    capacity: int
    backing: str = ""


@dataclass(frozen=True, slots=True)
class LuksTarget:
    """Where a block copy goes: an existing file; `secret_uuid` None makes a plain one of `format`."""

    path: str
    format: str
    secret_uuid: UUID | None


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file on a host. `size` counts its bytes, whatever disk is in it; `state` changes when it is written to (as far
    as its times tell)."""

    size: int
    state: str
    is_regular: bool


@dataclass(frozen=True, slots=True)
class ImageKey:
    """What opens a LUKS image: the passphrase, and the UUID that its ephemeral secret has on the host meanwhile."""

    secret_uuid: UUID
    passphrase: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class HostImage:
    """One side of a copy that the host makes. With a `key` it is a raw LUKS image, whatever `format` says."""

    path: str
    format: str
    key: ImageKey | None = None


@dataclass(frozen=True, slots=True)
class Migration:
    """How a domain goes to another host, from daemon to daemon, so that no client has to stay for it.

    `destination`: the URI by which the source's libvirt reaches the other one. `edit` changes the live and the inactive
    XML alike, for other paths there. Of `copied_disks` the content is copied into files that are there already.
    """

    destination: str
    uses_tls: bool
    edit: Callable[[str], str] | None = None
    copied_disks: tuple[str, ...] = ()
    is_transient: bool = False


@dataclass(frozen=True, slots=True)
class MigrationProgress:
    """Bytes of memory and disks so far; `total` 0 in the beginning."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class MigrationOutcome:
    """What the last migration of a domain took, as its new host tells."""

    milliseconds: int
    downtime_milliseconds: int
    sent_bytes: int


class Change(StrEnum):
    """What an event of the host is about. IDLE: nothing happened for a while; lets the reader look at its clock."""

    IDLE = "idle"
    VM = "vm"
    HOST_LOST = "host_lost"
    DATASTORES = "datastores"


@dataclass(frozen=True, slots=True)
class HostChange:
    change: Change
    vm_uuid: UUID | None = None


class Hypervisor(Protocol):
    """One open connection to one host. Not shared between threads. Every method may raise HypervisorError."""

    def facts(self) -> HostFacts: ...

    def abilities(self) -> HostAbilities:
        """What virtual hardware it can give; not known on hosts that cannot be asked (libvirt's simulated ones)."""
        ...

    def datastores(self) -> tuple[DatastoreFacts, ...]: ...

    def virtual_machines(self, known_definitions: Container[str] = ()) -> Iterator[VmFacts]:
        """All domains, defined and running; one that vanishes or cannot be read meanwhile is left out.

        Asking for the size of a stopped VM's disks is dear, so it is left out (0) where `definition_sha256` is in
        `known_definitions`, and so is the definition itself: the caller has both already.
        """
        ...

    def virtual_machine(self, uuid: UUID) -> VmFacts: ...

    def definition(self, uuid: UUID) -> str:
        """The inactive (next start's) XML, without secrets."""
        ...

    def define(self, xml: str) -> None: ...

    def redefine(self, uuid: UUID, edit: Callable[[str], str]) -> None:
        """Defines what `edit` makes of the inactive XML. Unlike `definition`, passwords in it (VNC, SPICE) survive;
        that XML goes nowhere but through `edit`, which must not keep it."""
        ...

    def live_definition(self, uuid: UUID) -> str | None:
        """The running domain's XML without secrets; None where it does not run."""
        ...

    def power_on(self, uuid: UUID) -> None: ...

    def shut_down(self, uuid: UUID) -> None:
        """Asks the guest (ACPI); returns at once."""
        ...

    def power_off(self, uuid: UUID) -> None: ...

    def reboot(self, uuid: UUID) -> None: ...

    def discard_managed_save(self, uuid: UUID, *, path: str) -> None:
        """Deletes the state that the domain was suspended to; none there is no error. The file `path` is overwritten
        before, where that is where libvirt keeps it ("" where that is not known)."""
        ...

    def console_text(self, uuid: UUID, max_bytes: int) -> str:
        """The tail of what the guest has printed on its first serial port, control characters removed."""
        ...

    def put_secret(self, secret_uuid: UUID, *, usage: str, vtpm: bool, value: bytes) -> None:
        """An ephemeral, private secret; one that is there gets the new value. `vtpm` selects libvirt's usage type."""
        ...

    def remove_secret(self, secret_uuid: UUID) -> None:
        """Forgets it; none there is no error."""
        ...

    def has_secret(self, secret_uuid: UUID) -> bool: ...

    def start_block_copy(self, uuid: UUID, disk: str, target: LuksTarget, *, bytes_per_second: int = 0) -> None:
        """Copies a running domain's disk into an existing file (REUSE_EXT) and mirrors writes from then on."""
        ...

    def block_copy(self, uuid: UUID, disk: str) -> CopyProgress: ...

    def pivot(self, uuid: UUID, disk: str) -> None:
        """Switches the running guest and its definition to the copy. Only when `is_ready`."""
        ...

    def abort_block_copy(self, uuid: UUID, disk: str) -> None:
        """Ends the copy, the guest stays on its source; no copy there is no error."""
        ...

    def migrate(self, uuid: UUID, migration: Migration) -> None:
        """Moves a running domain to another host; returns when it runs there and nowhere else.

        It goes on without the caller. OperationRefused leaves it running here; its codes: migration_tls_unavailable
        (no certificates), migration_tls_untrusted (another CA), migration_tls_name, target_unreachable,
        migration_cancelled, cpu_incompatible, block_job_active, migration_ports, migration_failed.
        """
        ...

    def migration(self, uuid: UUID) -> MigrationProgress | None:
        """Of a domain that is on its way to another host just now; None where it is not, or is not here."""
        ...

    def abort_migration(self, uuid: UUID) -> None:
        """Ends a migration, the domain stays; none there is no error."""
        ...

    def migration_outcome(self, uuid: UUID) -> MigrationOutcome | None:
        """Asked of the new host; None where it tells nothing."""
        ...

    def start_probe(self, uuid: UUID) -> None:
        """A transient, paused domain without any device, which only serves to be migrated. No list shows it.
        `end_probe` removes it, from whichever host it is on."""
        ...

    def end_probe(self, uuid: UUID) -> None:
        """None there is no error."""
        ...

    def machine_is_known(self, *, architecture: str, machine: str, domain_type: str) -> bool:
        """Whether the host can run such a machine at all. NOT asked: its processor's features."""
        ...

    def set_autostart(self, uuid: UUID, *, is_on: bool) -> None:
        """Whether the host starts the domain when it comes up; no migration carries that along."""
        ...

    def undefine(self, uuid: UUID) -> None:
        """Forgets a powered-off domain, keeps all its files; none there is no error."""
        ...

    def read_file(self, path: str, *, offset: int, length: int) -> bytes:
        """Part of a file on the host, through libvirt's storage API; shorter at its end. `offset` < 0: from the end."""
        ...

    def list_files(self, folder: str) -> tuple[ListedFile, ...]:
        """The regular files in a folder on the host and in the folders below it, four deep; a folder that is not there
        has none. What cannot be read is left out. Refused (`too_many_files`) beyond 50,000."""
        ...

    def create_file(self, path: str, *, size: int, head: bytes = b"", like: str = "") -> None:
        """A new sparse file of `size` bytes on the host that begins with `head`. Refused where it exists already.

        Mode 0600, of libvirt's own user; with the owner and group of the file `like` where one is named.
        """
        ...

    def overwrite_file(self, path: str, content: bytes, *, offset: int = 0) -> None:
        """Writes over bytes of a file that is there, from `offset`, which leaves all others and, inside it, its size
        as they are."""
        ...

    def file_facts(self, path: str) -> FileFacts | None:
        """None where there is no such file, or no such folder."""
        ...

    def copy_image(self, source: HostImage, target: HostImage, *, size: int, advance: Callable[[int], None]) -> None:
        """The host itself makes `target`, a new file, from `source`: a disk of `size` bytes, a multiple of 1,024.

        `advance` hears how many bytes are there. It may raise, which ends the waiting, NOT the host's work: libvirt
        knows no way to break it off. A caller who gives up deletes the file, and the host works on into nothing. The
        next copy to the same path is refused (code copy_still_running) until that has ended. Nothing can be resumed.

        The header of a LUKS target is QEMU's, with a costly key derivation: see `luks.reseal`.
        """
        ...

    def delete_file(self, path: str, *, wipe: bool) -> None:
        """Deletes a file on the host, overwritten with zeros before if `wipe`; none there is no error.

        Overwriting proves nothing on copy-on-write file systems and SSDs. libvirt only cuts off a file with holes in
        it, and leaves its blocks to the file system as they are.
        """
        ...

    def file_size(self, path: str) -> int | None:
        """Bytes of a file on the host, as `download` gives them; None where there is no such file."""
        ...

    def download(self, path: str) -> Iterator[bytes]:
        """A whole file on the host, in pieces of at most 4 MiB. Close the iterator if you do not read to the end."""
        ...

    def upload(self, path: str, *, size: int, blocks: Iterable[tuple[int, bytes]]) -> None:
        """A new file of `size` bytes on the host: `blocks` are (offset, data) in ascending order, the rest are holes.

        Refused where the file exists. What goes wrong meanwhile, in `blocks` too, leaves no file behind.
        """
        ...

    def make_folder(self, path: str) -> None:
        """A folder on the host with those above it; one that is there is no error."""
        ...

    def remove_folder(self, path: str) -> None:
        """Removes an empty folder; none there, or one that is not empty, is no error."""
        ...

    def free_bytes(self, folder: str) -> int:
        """Free on the file system of an existing folder on the host."""
        ...

    def changes(self, *, idle_seconds: float = 0.5) -> Generator[HostChange, None, None]:
        """Blocks and yields what happens on the host, until the connection is lost (HOST_LOST is the last).

        The first is always IDLE: from then on nothing is missed. IDLE comes again after `idle_seconds` of silence.
        """
        ...


class Connect(Protocol):
    """Opens a host; the context closes it (or gives it back to be used again)."""

    def __call__(self, uri: str, *, timeout_seconds: int = 15) -> AbstractContextManager[Hypervisor]: ...
