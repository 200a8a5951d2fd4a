"""The recovery command on image files: against cryptsetup and qemu-img, misled and misused."""

import fcntl
import json
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from console.management.progress_line import ProgressLine
from encryption.adapters import image_files
from tests.console.disk_command import (
    DISK_SIZE,
    KEY,
    LUKS_PREFIX,
    ROOT,
    disk,
    facts,
    names_in,
    opens,
    padded,
    program,
    qemu_read,
    refused,
    write_key,
)


def test_encrypted_for_cryptsetup_and_qemu_and_back(raw: Path, key: Path, other_key: Path, tmp_path: Path) -> None:
    before = raw.read_bytes()
    target, plain = tmp_path / "target.luks", tmp_path / "plain.raw"
    done = disk("encrypt", raw, target, "--key-file", key)
    assert f"--size {DISK_SIZE}" in done.err
    assert KEY not in done.out + done.err
    assert opens(target, key)
    assert not opens(target, other_key)
    assert qemu_read(target, key) == padded(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600

    disk("decrypt", target, plain, "--key-file", key, "--size", str(DISK_SIZE), "--verify", "full")
    assert plain.read_bytes() == before == raw.read_bytes()
    assert plain.stat().st_blocks * 512 < DISK_SIZE // 2
    assert not [name for name in names_in(tmp_path) if "resume" in name]


def test_recrypted_under_another_volume_key(
    volume: Path, raw: Path, key: Path, other_key: Path, tmp_path: Path
) -> None:
    before, target = volume.read_bytes(), tmp_path / "again.luks"
    disk("recrypt", volume, target, "--key-file", key, "--new-key-file", other_key, "--verify", "full")
    assert opens(target, other_key)
    assert not opens(target, key)
    assert qemu_read(target, other_key) == padded(raw.read_bytes())
    # The same plain sectors, other ciphertext: the volume key is another one.
    assert target.read_bytes()[LUKS_PREFIX:] != before[LUKS_PREFIX:]
    assert volume.read_bytes() == before


def test_what_cryptsetup_formatted_is_decrypted(raw: Path, key: Path, tmp_path: Path) -> None:
    """Another payload offset than ours; an empty disk behind it."""
    image, plain = tmp_path / "foreign.luks", tmp_path / "plain.raw"
    with image.open("wb") as file:
        file.truncate(4 * 2**20)
    subprocess.run(
        ["cryptsetup", "luksFormat", "-q", "--type", "luks1", "--cipher", "aes-xts-plain64", "--key-size", "512",
         "--hash", "sha256", "--pbkdf-force-iterations", "1000", "--key-file", str(key), str(image)],
        check=True,
    )  # fmt: skip
    disk("decrypt", image, plain, "--key-file", key, "--verify", "full")
    assert plain.read_bytes() == qemu_read(image, key)
    assert facts(image)["luks"] | {"uuid": ""} == {  # type: ignore[operator]
        "uuid": "", "cipher": "aes-xts-plain64", "key_bits": 512, "hash": "sha256", "payload_offset": 4096 * 512,
        "disk_bytes": 2 * 2**20, "keyslots": {"0": 1000},
    }  # fmt: skip


@pytest.mark.parametrize("line_end", [b"", b"\n", b"\r\n"])
def test_one_line_end_is_not_part_of_the_passphrase(raw: Path, tmp_path: Path, line_end: bytes) -> None:
    bare = write_key(tmp_path / "bare", KEY)
    given = write_key(tmp_path / "given", KEY.encode() + line_end)
    disk("encrypt", raw, tmp_path / "target", "--key-file", given, "--verify", "none")
    assert opens(tmp_path / "target", bare)


def test_only_one_line_end_is_dropped(raw: Path, tmp_path: Path) -> None:
    given = write_key(tmp_path / "given", "a" * 40 + "\n\n")
    disk("encrypt", raw, tmp_path / "target", "--key-file", given, "--verify", "none")
    assert opens(tmp_path / "target", write_key(tmp_path / "one", "a" * 40 + "\n"))


@pytest.mark.parametrize(("passphrase", "iterations"), [("short", 600_000), (KEY[:-1] + "g", 600_000), (KEY, 1000)])
def test_a_passphrase_that_may_be_a_persons_is_stretched(
    raw: Path, tmp_path: Path, passphrase: str, iterations: int
) -> None:
    key = write_key(tmp_path / "key", passphrase)
    disk("encrypt", raw, tmp_path / "target", "--key-file", key, "--verify", "none")
    luks = facts(tmp_path / "target")["luks"]
    assert isinstance(luks, dict)
    assert luks["keyslots"] == {"0": iterations}


def test_runs_with_no_environment_no_state_and_no_database(raw: Path, key: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("console", "encryption", "inventory", "attestation", "lab"):
        shutil.copytree(ROOT / name, checkout / name, ignore=skipped)
    for name in ("bartizan", "manage.py", "requirements.txt"):
        shutil.copy(ROOT / name, checkout)
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    before = names_in(checkout)
    command = [str(checkout / "bartizan"), *program("encrypt", raw.name, "target", "--key-file", key.name)[1:]]
    done = subprocess.run(
        command, cwd=tmp_path, env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert names_in(checkout) == before
    assert opens(tmp_path / "target", key)
    assert (tmp_path / "target").stat().st_uid == os.geteuid()


def test_a_broken_installation_does_not_matter(raw: Path) -> None:
    broken = {
        "PATH": os.defpath, "BARTIZAN_STATE_DIR": "not/absolute", "BARTIZAN_SECRET_KEY": "x",
        "DATABASE_URL": "nonsense://", "BARTIZAN_REDIS_URL": "nonsense://", "DJANGO_SETTINGS_MODULE": "no.such.module",
    }  # fmt: skip
    done = subprocess.run(program("info", raw), env=broken, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "raw" in done.stdout


@pytest.mark.parametrize(("words", "exit_code"), [(("info", "/no/such"), 1), (("info",), 2), (("explode",), 2)])
def test_the_program_ends_with_a_text_and_a_code(words: tuple[str, ...], exit_code: int) -> None:
    done = subprocess.run(program(*words), capture_output=True, text=True, check=False)
    assert done.returncode == exit_code
    assert done.stdout == ""
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_key_leaves_no_trace(volume: Path, other_key: Path, key: Path, tmp_path: Path) -> None:
    before = names_in(tmp_path)
    refused("decrypt", volume, tmp_path / "t", "--key-file", other_key, code="wrong_passphrase")
    words = ("recrypt", volume, tmp_path / "t", "--key-file", other_key, "--new-key-file", key)
    refused(*words, code="wrong_passphrase")
    assert names_in(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "key_file_empty"), (b"\n", "key_file_empty"), (b"a" * 513, "key_file_too_long"),
                          (b"\xff" * 40, "passphrase_no_text")],
)  # fmt: skip
def test_key_files_that_hold_no_passphrase(raw: Path, tmp_path: Path, content: bytes, code: str) -> None:
    bad = write_key(tmp_path / "bad", content)
    refused("encrypt", raw, tmp_path / "t", "--key-file", bad, code=code, exit_code=2)
    assert not (tmp_path / "t").exists()


def test_key_files_that_cannot_be_read(raw: Path, tmp_path: Path) -> None:
    refused("encrypt", raw, tmp_path / "t", "--key-file", tmp_path / "none", code="key_file_missing")
    refused("encrypt", raw, tmp_path / "t", "--key-file", tmp_path, code="key_file_unreadable")


def test_a_key_file_that_others_can_read_is_noted(raw: Path, key: Path, tmp_path: Path) -> None:
    key.chmod(0o644)
    assert "can be read by others" in disk("encrypt", raw, tmp_path / "t", "--key-file", key).err


def test_sources_that_are_none(raw: Path, key: Path, tmp_path: Path) -> None:
    target, empty, qcow2 = tmp_path / "t", tmp_path / "empty", tmp_path / "q"
    empty.touch()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(qcow2), "1M"], check=True)
    given = ("--key-file", key)
    refused("encrypt", tmp_path / "none", target, *given, code="image_missing")
    refused("encrypt", tmp_path, target, *given, code="image_not_regular", exit_code=2)
    refused("encrypt", "/dev/null", target, *given, code="image_not_regular", exit_code=2)
    refused("encrypt", empty, target, *given, code="image_empty")
    refused("encrypt", qcow2, target, *given, code="source_is_qcow2")
    refused("decrypt", raw, target, *given, code="not_luks")
    refused("decrypt", empty, target, *given, code="not_luks")
    refused("encrypt", raw, f"{tmp_path}/", *given, code="target_no_file", exit_code=2)
    refused("encrypt", raw, tmp_path / "no-folder" / "t", *given, code="image_unreadable")
    assert not target.exists()


def test_damaged_headers(volume: Path, key: Path, tmp_path: Path) -> None:
    whole, bad = volume.read_bytes(), tmp_path / "bad.luks"
    words = ("decrypt", bad, tmp_path / "t", "--key-file", key)
    for damage, code in (
        (whole[:100] + b"\xff" * 100 + whole[200:], "luks_header_damaged"),
        (whole[:104] + b"\xff\xff\xff\xff" + whole[108:], "luks_header_damaged"),  # payload offset
        (whole[:164] + b"\x7f\xff\xff\xff" + whole[168:], "luks_header_damaged"),  # digest iterations
        (whole[:5000] + b"\xff" * 4096 + whole[9096:], "wrong_passphrase"),  # key material
        (whole[:6] + b"\0\x02" + whole[8:], "not_luks"),
        (whole[:1000], "luks_header_damaged"),
        (whole[:LUKS_PREFIX], "image_empty"),
        (whole[:-100], "image_short"),
    ):
        bad.write_bytes(damage)
        refused(*words, code=code)
        assert not (tmp_path / "t").exists()
    bad.write_bytes(whole[:6] + b"\0\x02" + whole[8:])
    assert facts(bad)["format"] == "luks2"
    bad.write_bytes(whole[:164] + b"\x7f\xff\xff\xff" + whole[168:])
    refused("info", bad, code="luks_header_damaged")


def test_what_is_whole_of_a_cut_off_volume_can_be_had(volume: Path, raw: Path, key: Path, tmp_path: Path) -> None:
    volume.write_bytes(volume.read_bytes()[: LUKS_PREFIX + 2**20 + 100])
    words = ("decrypt", volume, tmp_path / "t", "--key-file", key)
    assert f"--size {2**20}" in refused(*words, code="image_short")
    refused(*words, "--size", str(2**20 + 1), code="size_does_not_fit", exit_code=2)
    refused(*words, "--size", "0", code="size_does_not_fit", exit_code=2)
    disk(*words, "--size", str(2**20))
    assert (tmp_path / "t").read_bytes() == raw.read_bytes()[: 2**20]


def test_a_foreign_target_is_never_touched(raw: Path, key: Path, tmp_path: Path) -> None:
    mine, link, dangling = tmp_path / "mine", tmp_path / "link", tmp_path / "dangling"
    mine.write_text("precious")
    link.symlink_to(mine)
    dangling.symlink_to(tmp_path / "nowhere")
    for target in (mine, link, dangling, raw):
        refused("encrypt", raw, target, "--key-file", key, code="target_exists")
    assert mine.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_source_that_a_virtual_machine_writes_to(raw: Path, key: Path, tmp_path: Path) -> None:
    """QEMU's lock: byte 101, for as long as it has the image open for writing."""
    with raw.open("r+b") as qemu:
        fcntl.fcntl(qemu, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0))
        refused("encrypt", raw, tmp_path / "t", "--key-file", key, code="image_in_use")
    disk("encrypt", raw, tmp_path / "t", "--key-file", key)


def test_a_luks_volume_is_encrypted_again_with_a_note(volume: Path, key: Path, tmp_path: Path) -> None:
    assert "encrypted twice" in disk("encrypt", volume, tmp_path / "t", "--key-file", key).err


def test_too_little_space_is_seen_before(
    raw: Path, volume: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "free_bytes", lambda _path: 1000)
    refused("encrypt", raw, tmp_path / "t", "--key-file", key, code="no_space")
    assert not (tmp_path / "t").exists()
    # A raw target may need less than its size.
    assert "1000 are free" in disk("decrypt", volume, tmp_path / "t", "--key-file", key).err


def test_names_that_are_no_text(raw: Path, key: Path, tmp_path: Path) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"odd \xff name")
    done = subprocess.run(
        [*program("encrypt", raw)[:-1], str(raw), odd, "--key-file", str(key)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert os.path.exists(odd)


def test_a_bar_on_a_terminal() -> None:
    class Terminal:
        text = ""

        def isatty(self) -> bool:
            return True

        def write(self, msg: str, style_func: object, ending: str) -> None:
            self.text += msg + ending

    terminal = Terminal()
    line = ProgressLine(terminal)
    line.step("copying", 4 * 2**30)
    line.advance(2 * 2**30)
    line.advance(4 * 2**30)
    line.note("done")
    assert terminal.text.startswith("\rcopying [###############...............]  50 %  2.0 GiB of 4.0 GiB")
    assert f"[{'#' * 30}] 100 %  4.0 GiB of 4.0 GiB" in terminal.text
    assert terminal.text.endswith("\nnote: done\n")


def test_info_in_words(volume: Path, raw: Path) -> None:
    text = disk("info", volume).out
    assert "luks1" in text
    assert "0 (1000 iterations)" in text
    assert f"{len(padded(raw.read_bytes()))} bytes (3.0 MiB)" in text


def test_info_of_a_qcow2_image_says_what_else_the_disk_needs(raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(raw), "-F", "raw", str(image)], check=True)
    subprocess.run(["qemu-img", "snapshot", "-c", "before", str(image)], check=True)
    facts = json.loads(disk("info", image, "--json").out)
    assert facts["qcow2"] == {
        "disk_bytes": -(-raw.stat().st_size // 512) * 512, "backing_file": str(raw), "has_data_file": False,
        "snapshots": 1, "is_encrypted": False,
    }  # fmt: skip
    assert (facts["format"], facts["luks"]) == ("qcow2", None)
    text = disk("info", image).out
    assert f"backing file    {raw}: the rest of the disk" in text and "snapshots       1" in text
    assert "encrypted" not in text and "data file" not in text
    image.write_bytes(image.read_bytes()[:100])
    refused("info", image, code="image_unusable")
