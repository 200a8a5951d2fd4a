"""Where everything of one lab lives: paths, ports, identities. Kept in `lab.json` of the state folder.

Files that the daemons use live under the *run base*, because unix socket paths end at 107 bytes and because
the lab's user must reach them: the state folder's own `run`, or else a private folder under /var/tmp.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lab.errors import LabError
from lab.user import LabUser

VERSION = 1
HOST_NAMES = ("a", "b")
ADDRESS = "127.0.0.1"
MIGRATION_ADDRESSES = {"a": "127.0.0.11", "b": "127.0.0.12"}
MARK = ".bartizan-lab"
# For sockets that listen. From 32768 on Linux takes ports for outgoing connections (ip_local_port_range).
PORTS = range(20000, 32000)
# One migration takes two: QEMU's own stream and NBD for the disks.
MIGRATION_PORTS = 8
# sun_path holds 108 bytes with its NUL. The longest path libvirt makes below a host's folder is a channel's:
# cfg/libvirt/qemu/channel/target/domain-<id>-<20 characters of the name>/<channel name>.
SOCKET_PATH_MAX = 107
LONGEST_TAIL = len("/a/cfg/libvirt/qemu/channel/target/domain-9999-") + 20 + len("/lab.commands")

Accelerator = Literal["kvm", "qemu"]


@dataclass(frozen=True, slots=True)
class HostLayout:
    """One libvirt host of the lab: a session daemon with folders, ports and an identity of its own."""

    name: str
    uuid: str
    tls_port: int
    migration_ports: tuple[int, int]
    """First and last port, both included."""
    base: Path
    datastore: Path
    shared_datastore: Path

    @property
    def runtime(self) -> Path:
        return self.base / "run"

    @property
    def config(self) -> Path:
        return self.base / "cfg"

    @property
    def pki(self) -> Path:
        """Certificates for libvirt RPC, under the names that `?pkipath=` wants; libvirtd serves them too."""
        return self.base / "pki"

    @property
    def qemu_pki(self) -> Path:
        """The same certificates in the names that QEMU wants."""
        return self.base / "pki-qemu"

    @property
    def libvirtd_conf(self) -> Path:
        return self.config / "libvirt" / "libvirtd.conf"

    @property
    def log(self) -> Path:
        """What libvirtd says, when `lab` itself runs it."""
        return self.base / "libvirtd.log"

    @property
    def socket(self) -> Path:
        return self.runtime / "libvirt" / "libvirt-sock"

    @property
    def pid_file(self) -> Path:
        return self.runtime / "libvirt" / "libvirtd.pid"

    @property
    def uri(self) -> str:
        """For clients on this machine: the daemon's unix socket."""
        return f"qemu:///session?socket={self.socket}"

    def peer_uri(self, client_pki: Path) -> str:
        """For the other host and for clients elsewhere: mutual TLS with the certificates in `client_pki`."""
        return f"qemu+tls://{ADDRESS}:{self.tls_port}/session?pkipath={client_pki}"

    @property
    def migration_address(self) -> str:
        """Where the host takes migrations, and what it tells its peers to use unless they name a URI themselves.

        Loopback like everything here. libvirt refuses 127.0.0.1 for this, but Linux has the whole of 127.0.0.0/8.
        """
        return MIGRATION_ADDRESSES[self.name]

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of the daemon and of tools that must agree with it about folders."""
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.base),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CONFIG_HOME": str(self.config),
            "XDG_CACHE_HOME": str(self.base / "cache"),
            "XDG_DATA_HOME": str(self.base / "data"),
        }


@dataclass(frozen=True, slots=True)
class Lab:
    """One lab. `accelerator` is None until a guest has been probed (lab/accel.py)."""

    state: Path
    base: Path
    id: str
    user: LabUser
    hosts: tuple[HostLayout, ...]
    accelerator: Accelerator | None

    def host(self, name: str) -> HostLayout:
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"the lab has no host {name!r}")

    @property
    def ca(self) -> Path:
        """The CA's own folder; only the caller of `prepare` reads it, never the lab's user."""
        return self.state / "pki" / "ca"

    @property
    def images(self) -> Path:
        """Kernel, initial file system and boot disk of the guests."""
        return self.base / "images"

    @property
    def shared_datastore(self) -> Path:
        return self.base / "datastores" / "shared"

    def uuid_for(self, name: str) -> str:
        """A stable identity within this lab, different in any other lab."""
        return str(uuid.uuid5(uuid.UUID(self.id), name))


def record(state: Path) -> Path:
    return state / "lab.json"


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Keep other processes from preparing or removing the same lab meanwhile."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lab.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load(state: Path, user: LabUser) -> Lab | None:
    """The lab recorded in `state`, or None. Raises LabError when the record is of another version or user."""
    state = state.absolute()
    try:
        text = record(state).read_text()
    except FileNotFoundError:
        return None
    try:
        stored = json.loads(text)
        if stored["version"] != VERSION:
            raise LabError(f"the lab in {state} was made by another version: remove it with destroy first")
        if stored["user"] != user.name:
            raise LabError(f"the lab in {state} belongs to the user {stored['user']}, not to {user.name}")
        base = Path(stored["base"])
        hosts = tuple(
            _host(base, name, str(entry["uuid"]), int(entry["tls_port"]), int(entry["migration_port_min"]))
            for name, entry in stored["hosts"].items()
        )
        return Lab(state, base, str(stored["id"]), user, hosts, stored["accelerator"])
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise LabError(f"the record of the lab in {state} is damaged: {exc!r}") from exc


def load_or_create(state: Path, user: LabUser) -> Lab:
    """The lab recorded in `state`; a new one with ports that are free now when there is none."""
    state = state.absolute()
    existing = load(state, user)
    if existing is not None:
        if not (existing.base / MARK).is_file():
            raise LabError(f"the lab's files in {existing.base} are gone: run destroy, then prepare again")
        return existing
    identity = str(uuid.uuid4())
    per_host = 1 + MIGRATION_PORTS
    ports = free_ports(per_host * len(HOST_NAMES))
    base = _choose_base(state, user, identity)
    hosts = tuple(
        _host(base, name, str(uuid.uuid4()), ports[index * per_host], ports[index * per_host + 1])
        for index, name in enumerate(HOST_NAMES)
    )
    lab = Lab(state, base, identity, user, hosts, None)
    save(lab)
    return lab


def save(lab: Lab) -> None:
    stored = {
        "version": VERSION,
        "id": lab.id,
        "user": lab.user.name,
        "base": str(lab.base),
        "accelerator": lab.accelerator,
        "hosts": {
            host.name: {
                "uuid": host.uuid,
                "tls_port": host.tls_port,
                "migration_port_min": host.migration_ports[0],
            }
            for host in lab.hosts
        },
    }
    path = record(lab.state)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(stored, indent=2) + "\n")
    temporary.replace(path)


def with_accelerator(lab: Lab, accelerator: Accelerator) -> Lab:
    """The lab with the outcome of the probe, recorded."""
    changed = replace(lab, accelerator=accelerator)
    save(changed)
    return changed


def free_ports(count: int) -> list[int]:
    """`count` adjoining TCP ports that nobody holds right now. They are not reserved.

    Raises LabError when none were found.
    """
    chooser = random.SystemRandom()
    for _ in range(200):
        first = chooser.randrange(PORTS.start, PORTS.stop - count)
        if _all_free(range(first, first + count)):
            return list(range(first, first + count))
    raise LabError(f"no {count} adjoining free TCP ports between {PORTS.start} and {PORTS.stop}")


def _all_free(ports: range) -> bool:
    with ExitStack() as stack:
        for port in ports:
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
                probe.listen()
            except OSError:
                return False
    return True


def _host(base: Path, name: str, host_uuid: str, tls_port: int, migration_port: int) -> HostLayout:
    return HostLayout(
        name=name,
        uuid=host_uuid,
        tls_port=tls_port,
        migration_ports=(migration_port, migration_port + MIGRATION_PORTS - 1),
        base=base / name,
        datastore=base / "datastores" / name,
        shared_datastore=base / "datastores" / "shared",
    )


def _choose_base(state: Path, user: LabUser, identity: str) -> Path:
    """Make the run base and mark it as this lab's, so that nothing else is ever removed in its place."""
    base = state / "run"
    user.folder(base)
    if len(str(base)) + LONGEST_TAIL > SOCKET_PATH_MAX or not _reaches(user, base):
        base.rmdir()
        short = Path(tempfile.mkdtemp(prefix="bartizan-", dir="/var/tmp"))
        user.own(short)
        base.symlink_to(short)
        base = short
    (base / MARK).write_text(identity + "\n")
    return base


def _reaches(user: LabUser, folder: Path) -> bool:
    """Whether the lab's user can really make a file there: every parent folder has a say in that."""
    probe = folder / f".probe-{os.getpid()}"
    done = user.run(["touch", str(probe)])
    probe.unlink(missing_ok=True)
    return done.returncode == 0
