"""Runs `manage disk` in this process, where pytest-django refuses every database access, or as a program."""

import io
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from django.core.management import CommandError, call_command

ROOT = Path(__file__).resolve().parents[2]
KEY = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
OTHER_KEY = "f" * 64
LUKS_PREFIX = 2_068_480
DISK_SIZE = 3 * 2**20 + 77
CONTENT = Random(5).randbytes(70_000)


@dataclass(frozen=True, slots=True)
class Done:
    out: str
    err: str


def disk(*words: str | Path) -> Done:
    out, err = io.StringIO(), io.StringIO()
    call_command("disk", *map(str, words), stdout=out, stderr=err)
    return Done(out.getvalue(), err.getvalue())


def refused(*words: str | Path, code: str, exit_code: int = 1) -> str:
    """The text of a refusal, which must have this code, and hold no key of these tests."""
    with pytest.raises(CommandError) as caught:
        disk(*words)
    text = str(caught.value)
    assert f"({code})" in text
    assert caught.value.returncode == exit_code
    assert KEY not in text
    assert OTHER_KEY not in text
    return text


def program(*words: str | Path) -> list[str]:
    return [str(ROOT / "bartizan"), "manage", "disk", *map(str, words)]


def kill_at_first_checkpoint(side_file: Path, *words: str | Path) -> str:
    """Start the program, SIGKILL it when it has saved an offset above zero, and return what the side file holds."""
    process = subprocess.Popen(program(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not offset_in(side_file):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return side_file.read_text()


def offset_in(side_file: Path) -> int:
    try:
        word = side_file.read_text().rpartition("offset ")[2].strip()
    except FileNotFoundError:
        return 0
    return int(word) if word.isdigit() else 0


def write_key(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    return path


def names_in(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def make_raw(path: Path, size: int, *places: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for place in (2**20, size - len(CONTENT), *places):
            file.seek(place)
            file.write(CONTENT)
    return path


def opens(image: Path, key: Path) -> bool:
    command = ["cryptsetup", "luksOpen", "--test-passphrase", "--key-file", str(key), str(image)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def qemu_read(image: Path, key: Path) -> bytes:
    plain = image.with_suffix(".qemu")
    subprocess.run(
        ["qemu-img", "convert", "--object", f"secret,id=s,file={key}", "-O", "raw", "--image-opts",
         f"driver=luks,key-secret=s,file.filename={image}", str(plain)],
        check=True,
    )  # fmt: skip
    return plain.read_bytes()


def padded(content: bytes) -> bytes:
    return content.ljust(-(-len(content) // 512) * 512, b"\0")


def facts(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(disk("info", path, "--json").out)
    return found
