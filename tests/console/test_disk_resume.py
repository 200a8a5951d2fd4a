"""Interrupted copies: killed, cancelled, meddled with, and gone on with by the same command."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from console.management.progress_line import ProgressLine
from encryption.engine import convert, xts
from tests.console.disk_command import (
    DISK_SIZE,
    KEY,
    LUKS_PREFIX,
    disk,
    facts,
    kill_at_first_checkpoint,
    make_raw,
    names_in,
    offset_in,
    opens,
    padded,
    qemu_read,
    refused,
    write_key,
)

pytestmark = pytest.mark.slow


def interrupt(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    """The command, with Ctrl-C at the first block."""

    def stop(_self: ProgressLine, _done: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(Exception, match="the same command again goes on"):
        patched.setattr(ProgressLine, "advance", stop)
        disk(*words)


def test_killed_it_goes_on(tmp_path: Path) -> None:
    """There and back, each killed and ended by the same command; the disk is large enough for some checkpoints."""
    source = make_raw(tmp_path / "disk.raw", 224 * 2**20, 65 * 2**20, 130 * 2**20, 200 * 2**20)
    key, volume, plain = write_key(tmp_path / "key", KEY), tmp_path / "volume.luks", tmp_path / "plain.raw"
    for words, target in (
        (("encrypt", source, volume, "--key-file", key), volume),
        (("decrypt", volume, plain, "--key-file", key, "--verify", "full"), plain),
    ):
        side = Path(f"{target}.bartizan-resume")
        left = kill_at_first_checkpoint(side, *words)
        assert KEY not in left
        assert stat.S_IMODE(side.stat().st_mode) == 0o600
        assert facts(target)["unfinished"] is True
        offset = offset_in(side)
        done = disk(*words)
        assert f"went on from byte {offset}," in done.out
        assert not side.exists()
        assert facts(target)["unfinished"] is False
    assert subprocess.run(["cmp", str(source), str(plain)], check=False).returncode == 0
    refused("encrypt", source, volume, "--key-file", key, code="target_exists")


def test_interrupted_copies_go_on_only_as_they_were_begun(
    raw: Path, volume: Path, key: Path, other_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, side = tmp_path / "t", tmp_path / "t.bartizan-resume"
    words = ("recrypt", volume, target, "--key-file", key, "--new-key-file", other_key)
    interrupt(monkeypatch, *words)
    begun = target.read_bytes()
    refused("recrypt", volume, target, "--key-file", key, "--new-key-file", key, code="wrong_passphrase")
    refused(*words, "--size", str(DISK_SIZE), code="resume_other_size")
    refused("decrypt", volume, target, "--key-file", key, code="resume_other_operation")
    refused("encrypt", raw, target, "--key-file", other_key, code="resume_other_operation")
    shutil.copy(volume, tmp_path / "copy.luks")
    refused("recrypt", tmp_path / "copy.luks", *words[2:], code="source_changed")

    with target.open("r+b") as other_run:
        fcntl.flock(other_run, fcntl.LOCK_EX)
        refused(*words, code="target_busy")
    assert target.read_bytes() == begun

    left = side.read_text()
    for damage in (
        "",
        left[:-5],
        left + "more\n",
        left.replace("offset 0", "offset 1e3"),
        left.replace(" 1\n", " 2\n"),
    ):
        side.write_text(damage)
        refused(*words, code="resume_file_damaged")
    side.write_text(left.replace("offset 0", "offset 99999999999"))
    refused(*words, code="image_unusable")
    side.write_text(left)
    side.chmod(0o666)
    refused(*words, code="resume_file_foreign")
    side.chmod(0o600)
    assert target.read_bytes() == begun

    disk(*words)
    assert opens(target, other_key)


def test_a_changed_source_ends_the_copy(raw: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("encrypt", raw, tmp_path / "t", "--key-file", key)
    interrupt(monkeypatch, *words)
    with raw.open("r+b") as file:
        file.write(b"changed")
    os.utime(raw, ns=(0, 10**18))
    text = refused(*words, code="source_changed")
    assert f"delete {tmp_path / 't'} and {tmp_path / 't'}.bartizan-resume" in text


def test_another_file_in_the_targets_place_is_left_alone(
    raw: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "t"
    words = ("encrypt", raw, target, "--key-file", key)
    interrupt(monkeypatch, *words)
    target.rename(tmp_path / "aside")
    target.write_text("precious")
    refused(*words, code="target_changed")
    assert target.read_text() == "precious"
    target.unlink()
    (tmp_path / "aside").rename(target)
    with target.open("r+b") as file:
        file.truncate(10)
    refused(*words, code="target_changed")
    # With the target gone there is nothing to lose, and nothing to go on from.
    target.unlink()
    disk(*words)
    assert opens(target, key)


def test_killed_before_the_target_was_known(raw: Path, key: Path, tmp_path: Path) -> None:
    """The side file is there, the target is not, or is empty still."""
    target, side = tmp_path / "t", tmp_path / "t.bartizan-resume"
    facts_of = raw.stat()
    fingerprint = f"{facts_of.st_ino}.{facts_of.st_size}.{facts_of.st_mtime_ns}"
    left = f"bartizan-resume 1\noperation encrypt\nsource {fingerprint}\nsize {DISK_SIZE}\ntarget none\noffset none\n"
    words = ("encrypt", raw, target, "--key-file", key)
    write_key(side, left)
    target.write_text("precious")
    refused(*words, code="target_changed")
    target.write_text("")
    disk(*words)
    assert opens(target, key)


def at_verification(monkeypatch: pytest.MonkeyPatch, path: Path, place: int) -> None:
    """Somebody writes to `path` between copy and verification."""
    step = ProgressLine.step

    def meddle(self: ProgressLine, name: str, total_bytes: int) -> None:
        if name.startswith("verifying"):
            with path.open("r+b") as file:
                file.seek(place)
                file.write(b"meddled")
            os.utime(path, ns=(0, 10**18))
        step(self, name, total_bytes)

    monkeypatch.setattr(ProgressLine, "step", meddle)


def test_a_copy_that_differs_is_written_anew(raw: Path, key: Path, tmp_path: Path) -> None:
    words = ("encrypt", raw, tmp_path / "t", "--key-file", key)
    with pytest.MonkeyPatch.context() as patched:
        at_verification(patched, tmp_path / "t", LUKS_PREFIX + 1_500_000)
        refused(*words, code="verification_failed")
    disk(*words, "--verify", "full")
    assert qemu_read(tmp_path / "t", key) == padded(raw.read_bytes())


def test_a_source_that_changes_meanwhile(raw: Path, key: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        at_verification(patched, raw, 0)
        refused("encrypt", raw, tmp_path / "t", "--key-file", key, code="source_changed")


def test_storage_that_fails_and_is_mended(raw: Path, key: Path, tmp_path: Path) -> None:
    words = ("encrypt", raw, tmp_path / "t", "--key-file", key)

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(convert, "convert", failing)
        text = refused(*words, code="storage_error")
    assert "Input/output error" in text and "the same command again goes on" in text
    disk(*words)
    assert opens(tmp_path / "t", key)


def test_a_side_file_that_cannot_be_opened(raw: Path, key: Path, tmp_path: Path) -> None:
    (tmp_path / "t.bartizan-resume").symlink_to(tmp_path / "of somebody else")
    refused("encrypt", raw, tmp_path / "t", "--key-file", key, code="resume_file_unreadable")
    assert not (tmp_path / "t").exists() and not (tmp_path / "of somebody else").exists()


def test_a_machine_that_calculates_wrongly(
    raw: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> None:
        raise xts.SelfCheckFailed("aes-xts: vectorised and per-sector encryption differ")

    monkeypatch.setattr(xts, "self_check", failing)
    before = names_in(tmp_path)
    refused("encrypt", raw, tmp_path / "t", "--key-file", key, code="self_check_failed")
    assert names_in(tmp_path) == before
