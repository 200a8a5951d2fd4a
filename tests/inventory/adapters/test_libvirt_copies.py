"""Images that a real libvirt daemon copies by itself, read again by qemu-img, cryptsetup and our own engine."""

import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from encryption.adapters import qemu_img
from encryption.engine import luks
from encryption.engine.secret import Secret
from inventory.adapters import libvirt_copies
from inventory.adapters.libvirt_driver import LibvirtHost, connect
from inventory.engine.hypervisor import HostImage, HostUnreachable, ImageKey, OperationRefused, WrongKey
from lab.user import LabUser, ensure_user
from tests.inventory.adapters.daemon import session_daemon

pytestmark = pytest.mark.slow

MIB = 2**20
SIZE = 6 * MIB
CONTENT = os.urandom(2 * MIB) + bytes(3 * MIB) + os.urandom(MIB)


@dataclass(frozen=True)
class Daemon:
    """A libvirt daemon and a folder of its user."""

    uri: str
    folder: Path
    user: LabUser

    def put(self, name: str, content: bytes) -> str:
        self.user.write(self.folder / name, content)
        return f"{self.folder}/{name}"


@contextmanager
def running(*, calibrates: bool = True) -> Iterator[Daemon]:
    with session_daemon(calibrates=calibrates) as (uri, folder):
        user = ensure_user()
        user.folder(folder)
        yield Daemon(uri, folder, user)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(calibrates=False) as started:
        yield started


@pytest.fixture
def host(daemon: Daemon) -> Iterator[LibvirtHost]:
    with connect(daemon.uri) as opened:
        yield opened
        assert left(opened) == ([], [])


def left(host: LibvirtHost, seconds: float = 60) -> tuple[list[str], list[str]]:
    """Pools and secrets that are still there, once copies that nobody waits for have ended."""
    deadline = time.monotonic() + seconds
    while True:
        connection = host._connection
        found = (
            [pool.name() for pool in connection.listAllStoragePools()],
            [secret.UUIDString() for secret in connection.listAllSecrets()],
        )
        if found == ([], []) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def key() -> ImageKey:
    return ImageKey(uuid4(), Secret(os.urandom(32)).passphrase_text())


def copied(host: LibvirtHost, source: HostImage, target: HostImage, size: int = SIZE) -> list[int]:
    told: list[int] = []
    host.copy_image(source, target, size=size, advance=told.append)
    return told


def plain(daemon: Daemon, image_format: str) -> HostImage:
    path = daemon.put(f"{uuid4().hex}.raw", CONTENT)
    if image_format == "qcow2":
        raw, path = path, f"{path}.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
        daemon.user.own(Path(path))
        os.unlink(raw)
    return HostImage(path, image_format)


def new(daemon: Daemon, image_format: str, opener: ImageKey | None) -> HostImage:
    return HostImage(f"{daemon.folder}/n{uuid4().hex}", image_format, opener)


def passphrase(image: HostImage) -> Secret:
    assert image.key is not None
    return Secret(image.key.passphrase)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_into_luks_and_back_and_under_another_key(
    daemon: Daemon, host: LibvirtHost, tmp_path: Path, image_format: str
) -> None:
    source = plain(daemon, image_format)
    encrypted = new(daemon, "raw", key())
    told = copied(host, source, encrypted)
    assert told == sorted(told) and max(told) <= SIZE

    prefix = host.read_file(encrypted.path, offset=0, length=luks.PREFIX_BYTES)
    cheap = luks.reseal(prefix, passphrase(encrypted))
    host.overwrite_file(encrypted.path, cheap)
    assert luks.unlock(cheap, passphrase(encrypted)) == luks.unlock(prefix, passphrase(encrypted))
    assert {slot.iterations for slot in luks.parse(cheap).keyslots if slot.active} == {1000}
    assert Path(encrypted.path).stat().st_mode & 0o777 == 0o600
    assert Path(encrypted.path).stat().st_size == luks.PREFIX_BYTES + SIZE
    assert qemu_img.equal(source.path, image_format, encrypted.path, passphrase(encrypted))
    opens = ["cryptsetup", "open", "--type", "luks1", "--test-passphrase", "--key-file", "-", encrypted.path]
    subprocess.run(opens, input=passphrase(encrypted).reveal(), check=True)

    if image_format == "raw":
        again = new(daemon, "raw", key())
        copied(host, encrypted, again)
        assert qemu_img.equal(source.path, image_format, again.path, passphrase(again))
        assert luks.parse(Path(again.path).read_bytes()).uuid != luks.parse(cheap).uuid

    restored = new(daemon, image_format, None)
    copied(host, encrypted, restored)
    told_raw = tmp_path / "told"
    told_raw.write_bytes(CONTENT)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", image_format, told_raw, restored.path], check=True)
    assert Path(restored.path).stat().st_mode & 0o777 == 0o600
    assert Path(restored.path).stat().st_blocks * 512 < 4 * MIB, "holes stay holes"


def test_file_facts(daemon: Daemon, host: LibvirtHost) -> None:
    source = plain(daemon, "qcow2")
    facts = host.file_facts(source.path)
    assert facts is not None and facts.is_regular
    assert facts.size == Path(source.path).stat().st_size != SIZE
    assert host.file_facts(source.path) == facts
    with open(source.path, "r+b") as file:
        file.write(b"Q")
    assert host.file_facts(source.path) != facts
    assert host.file_facts(f"{daemon.folder}/nothing") is None
    assert host.file_facts(f"{daemon.folder}/no/folder") is None
    (daemon.folder / "sub").mkdir()
    folder = host.file_facts(f"{daemon.folder}/sub")
    assert folder is not None and not folder.is_regular
    assert host.read_file(source.path, offset=-4, length=100) == Path(source.path).read_bytes()[-4:]


def test_wrong_key(daemon: Daemon, host: LibvirtHost) -> None:
    volume = luks.create(Secret(os.urandom(32).hex().encode()))
    path = daemon.put("locked.luks", volume.header_bytes + bytes(SIZE))
    target = new(daemon, "raw", None)
    with pytest.raises(WrongKey):
        copied(host, HostImage(path, "raw", key()), target)
    assert not Path(target.path).exists()


def test_name_that_qemu_does_not_take(daemon: Daemon, host: LibvirtHost) -> None:
    for name in ("1.luks", "my disk.luks"):
        with pytest.raises(OperationRefused) as refused:
            copied(host, plain(daemon, "raw"), HostImage(f"{daemon.folder}/{name}", "raw", key()))
        assert refused.value.code == "file_name_unusable"


def test_missing_source_and_target_that_is_there(daemon: Daemon, host: LibvirtHost) -> None:
    target = new(daemon, "raw", key())
    with pytest.raises(OperationRefused):
        copied(host, HostImage(f"{daemon.folder}/nothing", "raw"), target)
    there = daemon.put("there", b"kept")
    with pytest.raises(OperationRefused):
        copied(host, plain(daemon, "raw"), HostImage(there, "raw", key()))
    assert Path(there).read_bytes() == b"kept"


class GivenUp(Exception):
    pass


def test_given_up_and_begun_again() -> None:
    """The host goes on with what nobody waits for; a second copy to the same file has to wait, then it works."""
    # As QEMU is by itself: slow enough to look on.
    with running() as daemon, connect(daemon.uri) as host:
        source, target = plain(daemon, "raw"), new(daemon, "raw", key())

        def stop(done: int) -> None:
            raise GivenUp

        with pytest.raises(GivenUp):
            host.copy_image(source, target, size=SIZE, advance=stop)
        with pytest.raises(OperationRefused) as refused:
            copied(host, source, target)
        assert refused.value.code == "copy_still_running"
        host.delete_file(target.path, wipe=False)
        assert left(host) == ([], [])
        assert not Path(target.path).exists()
        copied(host, source, target)
        assert qemu_img.equal(source.path, "raw", target.path, passphrase(target))
        prefix = host.read_file(target.path, offset=0, length=luks.PREFIX_BYTES)
        assert luks.parse(prefix).keyslots[0].iterations > 100_000, "QEMU calibrates"
        assert left(host) == ([], [])


def test_secret_of_a_killed_worker_is_no_hindrance(daemon: Daemon, host: LibvirtHost) -> None:
    source, target = plain(daemon, "raw"), new(daemon, "raw", key())
    assert target.key is not None
    host.put_secret(target.key.secret_uuid, usage="left over", vtpm=False, value=b"x")
    copied(host, source, target)
    assert qemu_img.equal(source.path, "raw", target.path, passphrase(target))


def test_host_that_says_nothing(daemon: Daemon, host: LibvirtHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its storage hangs: neither the copy nor the look at its file comes back."""
    released = threading.Event()
    monkeypatch.setattr(libvirt_copies, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(libvirt_copies, "_copy", lambda *_: released.wait(60))
    monkeypatch.setattr(libvirt_copies, "_allocated", lambda *_: released.wait(60))
    try:
        with pytest.raises(HostUnreachable) as silent:
            copied(host, plain(daemon, "raw"), new(daemon, "raw", key()))
        assert silent.value.code == "host_silent"
    finally:
        released.set()


def test_daemon_that_dies_in_the_middle() -> None:
    with running() as started:
        told: queue.SimpleQueue[int] = queue.SimpleQueue()
        with connect(started.uri) as host:
            source, target = plain(started, "raw"), new(started, "raw", key())
            pid = int((Path(started.uri.partition("socket=")[2]).parent / "libvirtd.pid").read_text())

            def kill(done: int) -> None:
                if told.empty():
                    os.kill(pid, 9)
                told.put(done)

            with pytest.raises(HostUnreachable):
                host.copy_image(source, target, size=SIZE, advance=kill)
        assert Path(source.path).read_bytes() == CONTENT
