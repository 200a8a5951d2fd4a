"""What the steps of one change of a VM's encryption share: the VM, the job, the host, and the stages of its secrets.

The stage of each `WrappedSecret` says how far its part has come, so a job that is run again after a crash goes on from
the rows and from what libvirt reports, never from memory.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Final

from django.db import transaction

from encryption.adapters.image_files import ImageFileError
from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.models import Key, Purpose, Stage, WrappedSecret
from encryption.services import keyslots, vm_metadata, vtpm_files, write_back
from encryption.services.key_access import fetched_key
from encryption.services.options import Wish, encrypted_disks, policy_of
from encryption.services.part_files import PartFiles
from encryption.services.parts import is_plain_again, opens, path_in, uses
from encryption.services.switching import Edit, SwitchedPart
from encryption.services.switching import switched as switched_definition
from inventory.errors import Conflict, Unavailable
from inventory.jobs import Progress
from inventory.models import Job, VirtualMachine
from inventory.services.connections import Hypervisor, VmFacts
from inventory.services.definitions import names_path, nvram_template

DATA_KEY_BYTES: Final = 32
_OF_PARTS: Final = [stage for stage in Stage if stage != Stage.DETACHED]


@dataclass(slots=True)
class Change:
    """One run of one job on one VM.

    `edits` are applied to the definition in the one switch, in their order: what a change of virtual hardware adds to
    the exchange of parts. Each must be able to run on a definition that it has edited before.
    """

    job: Job
    progress: Progress
    vm: VirtualMachine
    wish: Wish
    hypervisor: Hypervisor
    facts: VmFacts
    edits: list[Edit] = field(default_factory=list)

    def rows(self, *stages: Stage) -> list[WrappedSecret]:
        """Of the parts, at these stages, else at any. One query, which need not bring the VM: they are all of this."""
        rows = self.vm.wrapped_secrets.filter(stage__in=stages or _OF_PARTS)
        found = list(rows.select_related("key__cluster", "replaces__key__cluster"))
        for row in found:
            if row.replaces is not None:
                row.replaces.virtual_machine = self.vm
        return found

    @property
    def files(self) -> PartFiles:
        return PartFiles(self.hypervisor, self.vm.host)

    @property
    def verifies_fully(self) -> bool:
        """Whether somebody asked for every byte of a copy to be compared, see `options.verification`."""
        return bool(self.job.params.get("verify") == "full")

    def look(self) -> None:
        """Fresh facts of the VM from its host."""
        self.facts = self.hypervisor.virtual_machine(self.vm.uuid)


def new_secret(
    change: Change,
    kek: Secret,
    key: Key,
    *,
    purpose: Purpose,
    target: str,
    plain_path: str,
    plain_format: str,
    size: int,
) -> WrappedSecret:
    """Draws a data key and writes it, wrapped, before anything is encrypted under it."""
    secret_uuid = uuid.uuid4()
    return WrappedSecret.objects.create(
        secret_uuid=secret_uuid,
        virtual_machine=change.vm,
        purpose=purpose,
        target=target,
        key=key,
        wrapped=keywrap.wrap(kek, Secret.generate(DATA_KEY_BYTES)),
        path=plain_path if purpose == Purpose.VTPM else _beside(plain_path, f"-{secret_uuid.hex[:8]}.luks"),
        plain_path=vtpm_files.put_aside(plain_path, secret_uuid) if purpose == Purpose.VTPM else plain_path,
        plain_format=plain_format,
        size_bytes=size,
        stage=Stage.ENCRYPTING,
        job_id=change.job.pk,
    )


def begin_encryption(change: Change, key: Key) -> None:
    """A secret for every part that shall be encrypted and has none yet."""
    wanted = list(_parts_to_encrypt(change))
    if not wanted:
        return
    with fetched_key(key) as kek:
        for purpose, target, path, image_format, size in wanted:
            new_secret(
                change, kek, key, purpose=purpose, target=target, plain_path=path, plain_format=image_format, size=size
            )


def _parts_to_encrypt(change: Change) -> list[tuple[Purpose, str, str, str, int]]:
    """(purpose, target, plain path, plain format, size) of each part without a secret."""
    if not policy_of(change.wish).encrypts:
        return []
    facts, rows = change.facts, {(row.purpose, row.target): row for row in change.rows()}
    wanted = encrypted_disks(change.wish)
    parts: list[tuple[Purpose, str, str, str, int]] = []
    if facts.firmware == "uefi" and facts.nvram_secret_uuid is None and _is_new(change, rows.get((Purpose.NVRAM, ""))):
        if not facts.nvram_path:
            raise Conflict("nvram_unknown", f"{change.vm}: libvirt names no NVRAM file", hint="start the VM once")
        _make_nvram(change, facts.nvram_path)
        parts.append((Purpose.NVRAM, "", facts.nvram_path, "raw", 0))
    if _wants_tpm_secret(change) and _is_new(change, rows.get((Purpose.VTPM, ""))):
        parts.append((Purpose.VTPM, "", str(vtpm_files.folder(change.vm)), "", 0))
    for disk in facts.disks:
        if disk.target not in wanted or disk.is_encrypted:
            continue
        if _is_new(change, rows.get((Purpose.DISK, disk.target))):
            parts.append((Purpose.DISK, disk.target, disk.source, disk.format, disk.capacity_bytes))
    return parts


def _wants_tpm_secret(change: Change) -> bool:
    """Of a vTPM that is there, plain, and stays; and of one that comes."""
    tpm, wanted = change.facts.tpm, change.wish.vtpm
    return wanted is True if tpm is None else not tpm.is_encrypted and wanted is not False


def _is_new(change: Change, row: WrappedSecret | None) -> bool:
    """Whether a plain part needs a secret of its own. A row of an encrypted part that the definition no longer has
    stands in the way: what it opens must be gone before it is."""
    if row is None:
        return True
    if row.stage == Stage.ENCRYPTING:
        return False
    if row.purpose == Purpose.DISK and row.stage == Stage.IN_USE and row.path:
        row.stage = Stage.DETACHED  # another disk has its place now; its own key is kept
        row.save(update_fields=["stage"])
        return True
    if row.purpose == Purpose.VTPM:
        is_gone = not change.files.has_encrypted_tpm_state(row.path)
    else:
        is_gone = bool(row.path) and not change.files.exist(row.path)
    if is_gone:
        with transaction.atomic():  # more than one statement: other rows may refer to this one
            row.delete()
        return True
    raise Conflict(
        "part_replaced",
        f"{change.vm}: its {row.part} is not the one that was encrypted, which is {row.path}",
        hint="attach the encrypted one again, or delete that file if its content is not needed, then apply again",
    )


def _make_nvram(change: Change, path: str) -> None:
    """A VM that never ran has no variables yet: they come from the template, as libvirt would do at the first start."""
    if change.files.exist(path):
        return
    template = nvram_template(change.hypervisor.definition(change.vm.uuid))
    if not template:
        raise Conflict("nvram_missing", f"{change.vm}: there is no {path}", hint="start the VM once, then apply again")
    try:
        change.files.copy_variable_store(template, path)
    except ImageFileError as exc:
        raise Conflict("nvram_missing", f"{change.vm}: {exc}", hint="start the VM once, then apply again") from exc


def begin_decryption(change: Change) -> None:
    """Marks the parts that shall be plain again, and says where each goes. A detached disk stays as it is."""
    keep_home, kept = policy_of(change.wish).encrypts, encrypted_disks(change.wish)
    for row in change.rows(Stage.IN_USE):
        if keep_home and (row.purpose != Purpose.DISK or row.target in kept):
            continue
        if not opens(change.facts, row):
            continue
        row.path = path_in(change.facts, row)
        if row.purpose == Purpose.VTPM:
            row.plain_path = vtpm_files.put_aside(row.path, row.secret_uuid)
        elif not _is_free(change, row):
            row.plain_path = _beside(row.path, f"-plain-{row.secret_uuid.hex[:8]}.{row.plain_format}")
        row.stage, row.job_id = Stage.DECRYPTING, change.job.pk
        row.save(update_fields=["path", "plain_path", "stage", "job_id"])


def _is_free(change: Change, row: WrappedSecret) -> bool:
    """Whether the part can have its old name back."""
    if not row.plain_path or row.plain_path == row.path:
        return False
    return not change.files.exist(row.plain_path) and not uses(change.facts, row.plain_path)


def _beside(path: str, ending: str) -> str:
    """A name in the same folder: the stem, without an ending that we gave it before, and `ending`."""
    pure = PurePosixPath(path)
    return str(pure.with_name(pure.stem + ending))


def settle(change: Change) -> bool:
    """Brings the rows' stages up to what the host reports, after a crash between a switch and its row; whether there
    was any that had begun.

    A part that another job left half-written is dropped: its copy may be older than its source.
    """
    begun = change.rows(Stage.ENCRYPTING, Stage.DECRYPTING)
    for row in begun:
        if not settled(change, row) and row.job_id != change.job.pk:
            drop_target(change, row)
    change.vm.wrapped_secrets.filter(stage=Stage.REPLACED, replaced_by=None).update(stage=Stage.IN_USE, job_id=None)
    return bool(begun)


def give_up(change: Change) -> None:
    """Ends a change before its end: what is switched stays switched, every half-written copy goes."""
    change.look()
    for row in change.rows(Stage.ENCRYPTING, Stage.DECRYPTING):
        if not settled(change, row):
            drop_target(change, row)


def settled(change: Change, row: WrappedSecret) -> bool:
    """Whether the definition refers to the row's new copy; then the row says so too."""
    if row.stage == Stage.ENCRYPTING and opens(change.facts, row):
        switched(change, row)
    elif row.stage == Stage.DECRYPTING and is_plain_again(change.facts, row):
        if row.purpose == Purpose.VTPM and _needs_its_secret(change, row):
            return False  # somebody else took the secret out of the definition; the state still needs it
        restored(change, row)
    else:
        return False
    return True


def _needs_its_secret(change: Change, row: WrappedSecret) -> bool:
    return change.files.has_encrypted_tpm_state(row.path) and not change.files.has_staged_tpm_state(row)


def switched(change: Change, row: WrappedSecret) -> None:
    """The definition refers to the encrypted copy now."""
    if row.purpose == Purpose.VTPM:
        _exchange(change, row)
    row.stage, row.job_id = Stage.SWITCHED, None
    row.save(update_fields=["stage", "job_id"])


def restored(change: Change, row: WrappedSecret) -> None:
    """The definition refers to the plain copy now."""
    if row.purpose == Purpose.VTPM:
        _exchange(change, row)
    row.stage, row.job_id = Stage.RESTORED, None
    row.save(update_fields=["stage", "job_id"])


def _exchange(change: Change, row: WrappedSecret) -> None:
    try:
        change.files.exchange_tpm_state(row)
    except OSError as exc:
        raise Unavailable(
            "datastore_error", f"{row}: {exc.strerror}", hint="look at the vTPM state folder, then apply again"
        ) from exc


def drop_target(change: Change, row: WrappedSecret) -> None:
    """Gives up a part's conversion: the half-written copy goes, the original stays as it was."""
    encrypting = row.stage == Stage.ENCRYPTING
    if row.shares_image:
        if keyslots.may_be_added(row, change.job):
            keyslots.take_back(row, change.facts, change.files)
    elif row.purpose == Purpose.VTPM:
        destroying(change, partial(change.files.drop_staged_tpm_state, row))
    else:
        begun = change.progress.job.checkpoint.get("copies", [])
        is_ours = row.job_id != change.job.pk or str(row.secret_uuid) in begun  # not somebody else's copy (live.py)
        if row.purpose == Purpose.DISK and change.facts.power != "off" and is_ours:
            change.hypervisor.abort_block_copy(change.vm.uuid, row.target)
        destroy_file(change, row.path if encrypting else row.plain_path, wipe=not encrypting)
    change.hypervisor.remove_secret(row.secret_uuid)
    old = row.replaces if encrypting else row
    with transaction.atomic():
        if encrypting:
            row.delete()
        if old is not None:
            old.stage, old.job_id = Stage.IN_USE, None
            old.save(update_fields=["stage", "job_id"])


def destroy_file(change: Change, path: str, *, wipe: bool = True) -> None:
    """Overwrites and deletes a file, by the worker where it reaches it, else through the host. Never one that the
    definition, as it was last looked at, refers to."""
    if not path:
        return
    if uses(change.facts, path):
        raise Conflict("definition_changed", f"{change.vm} uses {path}", hint="see what its definition refers to")
    if not change.files.are_reached:
        _refuse_running(change, path)
    destroying(change, partial(change.files.destroy, path, wipe=wipe))


def _refuse_running(change: Change, path: str) -> None:
    """The worker sees QEMU's lock on a file that it reaches; on another host the running guest's definition tells."""
    live = change.hypervisor.live_definition(change.vm.uuid)
    if live is not None and names_path(live, path):
        raise Conflict("image_in_use", f"{change.vm} runs and uses {path}", hint="shut it down, then apply again")


def destroying(change: Change, destroy: Callable[[], None]) -> None:
    """Raises Conflict `file_not_destroyed`."""
    try:
        destroy()
    except (ImageFileError, OSError) as exc:
        raise Conflict("file_not_destroyed", f"{change.vm}: {exc}", hint="delete it by hand, then apply again") from exc


def destroy_originals(change: Change) -> None:
    """Step last: what the definition no longer refers to. A row is settled only when its file is gone."""
    rows = change.rows(Stage.SWITCHED, Stage.RESTORED)
    if any(not row.shares_image for row in rows):
        write_back.wait(change.files, change.progress, "the new files", "destroying the originals")
    for row in [row for row in rows if row.stage == Stage.SWITCHED]:
        is_so = opens(change.facts, row)
        _check_switched(change, row, "" if row.shares_image else row.original, is_so=is_so)
        if row.shares_image:
            if not change.files.are_reached:
                _refuse_running(change, row.path)
            keyslots.remove_replaced(row, change.facts, change.files, change.progress)
        elif row.purpose == Purpose.VTPM:
            destroying(change, partial(change.files.destroy_old_tpm_state, row))
        else:
            destroy_file(change, row.original)
        old = row.replaces
        with transaction.atomic():
            row.stage, row.replaces = Stage.IN_USE, None
            row.save(update_fields=["stage", "replaces"])
            if old is not None:
                old.delete()
    for row in [row for row in rows if row.stage == Stage.RESTORED]:
        _check_switched(change, row, row.path, is_so=not opens(change.facts, row))
        if row.purpose == Purpose.VTPM:
            destroying(change, partial(change.files.destroy_old_tpm_state, row))
        else:
            destroy_file(change, row.path)
        with transaction.atomic():
            row.delete()


def _check_switched(change: Change, row: WrappedSecret, path: str, *, is_so: bool) -> None:
    """The row says that `path` is left over. The definition has the last word: somebody may have put it back."""
    if not is_so or (path and uses(change.facts, path)):
        raise Conflict(
            "definition_changed",
            f"{row}: the VM's definition was changed outside this console, so nothing is destroyed",
            hint=f"{path or row.path} or its counterpart is in use again; "
            "bring back the definition that this console made",
        )


def switch_definition(change: Change) -> None:
    """One definition with all that is ready: either the guest starts from the old parts or from the new ones."""
    rows = change.rows()
    ready = [row for stage in (Stage.ENCRYPTING, Stage.DECRYPTING) for row in rows if row.stage == stage]
    element = _metadata(change, rows)

    parts = [SwitchedPart.of(row) for row in ready]

    def edit(xml: str) -> str:
        return switched_definition(xml, edits=change.edits, parts=parts, element=element)

    change.hypervisor.redefine(change.vm.uuid, edit)
    change.look()
    for row in ready:
        if not settled(change, row):
            raise Conflict(
                "switch_failed",
                f"{row}: the host does not report the definition that it was given",
                hint="look at the VM's definition on its host, then apply again",
            )


def _metadata(change: Change, rows: list[WrappedSecret]) -> str | None:
    """What the VM's metadata will say: all secrets that open its parts once this change is done; None when plain."""
    policy = policy_of(change.wish)
    key = change.vm.security.key if policy.encrypts else None
    if key is None:
        return None
    stages = (Stage.ENCRYPTING, Stage.SWITCHED, Stage.IN_USE)  # what is REPLACED or DECRYPTING opens nothing then
    return vm_metadata.element(change.vm, policy, key, [row for row in rows if row.stage in stages])
