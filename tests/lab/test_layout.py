"""Where a lab puts things, and that two labs never meet."""

import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import layout
from lab.errors import LabError
from lab.layout import LONGEST_TAIL, MARK, SOCKET_PATH_MAX
from lab.user import LabUser


@pytest.fixture
def user() -> LabUser:
    return LabUser.current()


@pytest.fixture
def state() -> Iterator[Path]:
    """A short folder: pytest's own are too long for sockets of libvirt."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name:
        yield Path(name)


def test_a_new_lab_is_found_again(state: Path, user: LabUser) -> None:
    made = layout.load_or_create(state, user)
    assert layout.load_or_create(state, user) == made
    assert layout.load(state, user) == made


def test_no_record_is_no_lab(state: Path, user: LabUser) -> None:
    assert layout.load(state, user) is None


def test_a_short_state_folder_is_used_itself(state: Path, user: LabUser) -> None:
    lab = layout.load_or_create(state, user)
    assert lab.base == state / "run"
    assert (lab.base / MARK).read_text().strip() == lab.id


def test_a_long_state_folder_gets_a_short_private_base(state: Path, user: LabUser) -> None:
    deep = state / ("d" * 60)
    deep.mkdir()
    lab = layout.load_or_create(deep, user)
    try:
        assert lab.base.parent == Path("/var/tmp")
        assert lab.base.stat().st_mode & 0o777 == 0o700
        assert (deep / "run").resolve() == lab.base
        assert len(str(lab.base)) + LONGEST_TAIL <= SOCKET_PATH_MAX
    finally:
        (lab.base / MARK).unlink()
        lab.base.rmdir()


def test_a_base_that_the_user_cannot_reach_is_not_used(
    state: Path, user: LabUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether a folder is reachable is asked of a command run as that user; this one fails as `touch` would.
    monkeypatch.setattr(LabUser, "command", lambda self, argv, **options: ["false"])
    lab = layout.load_or_create(state, user)
    try:
        assert lab.base.parent == Path("/var/tmp")
    finally:
        (lab.base / MARK).unlink()
        lab.base.rmdir()


def test_hosts_share_no_port_and_stay_below_the_ephemeral_range(state: Path, user: LabUser) -> None:
    lab = layout.load_or_create(state, user)
    used = [host.tls_port for host in lab.hosts]
    for host in lab.hosts:
        first, last = host.migration_ports
        used += range(first, last + 1)
    assert len(used) == len(set(used)) == 18
    assert max(used) < 32768
    assert lab.hosts[0].uuid != lab.hosts[1].uuid
    assert lab.hosts[0].migration_address != lab.hosts[1].migration_address


def test_uris_name_the_socket_and_the_certificates(state: Path, user: LabUser) -> None:
    host = layout.load_or_create(state, user).host("a")
    assert host.uri == f"qemu:///session?socket={state}/run/a/run/libvirt/libvirt-sock"
    peer = host.peer_uri(Path("/c"))
    assert peer == f"qemu+tls://127.0.0.1:{host.tls_port}/session?pkipath=/c"


def test_unknown_host_is_named(state: Path, user: LabUser) -> None:
    with pytest.raises(LabError, match="no host 'c'"):
        layout.load_or_create(state, user).host("c")


def test_uuids_are_stable_within_a_lab_and_differ_between_labs(state: Path, user: LabUser) -> None:
    one = layout.load_or_create(state, user)
    other_state = state / "other"
    other_state.mkdir()
    two = layout.load_or_create(other_state, user)
    assert one.uuid_for("bios-01") == one.uuid_for("bios-01") != two.uuid_for("bios-01")


def test_taken_ports_are_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        monkeypatch.setattr(layout, "PORTS", range(taken, taken + 2))
        with pytest.raises(LabError, match="no 1 adjoining free TCP ports"):
            layout.free_ports(1)


def test_the_accelerator_is_remembered(state: Path, user: LabUser) -> None:
    lab = layout.load_or_create(state, user)
    assert lab.accelerator is None
    changed = layout.with_accelerator(lab, "qemu")
    assert layout.load(state, user) == changed
    assert changed.accelerator == "qemu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "another version"),
        ({"user": "somebody"}, "belongs to the user somebody"),
        ({"hosts": []}, "is damaged"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(
    state: Path, user: LabUser, change: dict[str, object], message: str
) -> None:
    layout.load_or_create(state, user)
    record = layout.record(state)
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    with pytest.raises(LabError, match=message):
        layout.load(state, user)


def test_a_record_that_is_no_json_is_refused(state: Path, user: LabUser) -> None:
    layout.record(state).write_text("{")
    with pytest.raises(LabError, match="is damaged"):
        layout.load(state, user)


def test_a_lab_whose_files_are_gone_says_so(state: Path, user: LabUser) -> None:
    lab = layout.load_or_create(state, user)
    (lab.base / MARK).unlink()
    with pytest.raises(LabError, match="are gone"):
        layout.load_or_create(state, user)
