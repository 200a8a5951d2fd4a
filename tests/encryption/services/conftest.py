"""A VM over real files, key servers, and jobs whose heartbeat does not beat."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from encryption.adapters import image_files, swtpm
from encryption.engine.secret import Secret
from encryption.models import KmsCluster, KmsServer
from encryption.services import host_storage, key_access, live, vtpm_files
from inventory.models import Cluster
from tests.encryption.adapters.conftest import kms_layout, kms_server
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.world import Shape, World, provider
from tests.fakes import FakeSite

__all__ = ["kms_layout", "kms_server"]

MakeWorld = Callable[..., World]


@pytest.fixture(autouse=True)
def _quiet(sent: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_POLL_SECONDS", 0)
    monkeypatch.setattr(host_storage, "_POLL_SECONDS", 0)


@pytest.fixture
def keys(db: None, monkeypatch: pytest.MonkeyPatch) -> MemoryKeyServer:
    """The default key provider, with a key server in memory behind it."""
    server = MemoryKeyServer()
    provider()

    def client(cluster: KmsCluster, address: KmsServer, *_: float) -> MemoryKeyServer:
        return server

    monkeypatch.setattr(key_access, "open_client", client)
    return server


@pytest.fixture
def make_world(
    tmp_path: Path, site: FakeSite, cluster: Cluster, alice: User, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeWorld]:
    count = 0

    def make(shape: Shape | None = None) -> World:
        nonlocal count
        count += 1
        if shape is not None and shape.remote:
            hands_off(monkeypatch)
        return World(tmp_path / f"w{count}", site, cluster, alice, shape)

    yield make


def hands_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a far host lie on this machine in tests, but no worker may touch them past the host."""

    def touched(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a worker touched files that it does not reach: {args} {kwargs}")

    names = ("opened", "create", "exists", "destroy", "size", "fingerprint", "free_bytes", "copy_variable_store")
    for name in (*names, "read", "rewrite"):
        monkeypatch.setattr(image_files, name, touched)
    for name in ("exchange", "destroy", "drop_staged", "publish", "is_encrypted"):
        monkeypatch.setattr(vtpm_files, name, touched)


def quick_convert(source: Path, target: Path, *, old: Secret | None, new: Secret | None) -> None:
    """In place of swtpm, where many conversions are made: the header's flag, and the rest turned over by the key."""
    data = swtpm.state_file(source).read_bytes()
    body = data[10:]
    for key in (old, new):
        if key is not None:
            mask = (key.reveal() * (len(body) // len(key) + 1))[: len(body)]
            body = bytes(a ^ b for a, b in zip(body, mask, strict=True))
    if target.exists():
        for file in target.iterdir():
            file.unlink()
        target.rmdir()
    target.mkdir(mode=0o700)
    flags = b"\x00\x09" if new is not None else b"\x00\x00"
    swtpm.state_file(target).write_bytes(data[:4] + flags + data[6:10] + body)


@pytest.fixture
def quick_tpm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swtpm, "convert", quick_convert)
