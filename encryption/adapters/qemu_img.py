"""qemu-img, for images whose format only QEMU should read and write (qcow2).

A passphrase reaches it through a pipe that it inherits: never as an argument, never as a file.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from encryption.engine.secret import Secret

# A worker that is killed must not leave a child behind that goes on writing, with the image locked.
_DIES_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL", "--")
_PERCENT: Final = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")


class QemuImgFailed(Exception):
    """qemu-img refused; the text is its own first line (qemu-img prints no secrets)."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """`virtual_size` in bytes. `backing` names the image below, `data_file` an external one that holds the data, ""
    for none; `snapshots` are internal ones."""

    format: str
    virtual_size: int
    backing: str
    data_file: str
    snapshots: tuple[str, ...]
    is_encrypted: bool


def info(path: str, image_format: str) -> ImageInfo:
    """What the image says of itself. The format is the caller's: probing would trust the guest's own bytes."""
    found = json.loads(_run(["qemu-img", "info", "-U", "--output=json", "-f", image_format, "--", path]))
    specific = found.get("format-specific", {}).get("data", {})
    return ImageInfo(
        format=str(found["format"]),
        virtual_size=int(found["virtual-size"]),
        backing=str(found.get("full-backing-filename") or found.get("backing-filename") or ""),
        data_file=str(specific.get("data-file") or ""),
        snapshots=tuple(str(snapshot["name"]) for snapshot in found.get("snapshots", [])),
        is_encrypted=bool(found.get("encrypted", False)),
    )


def create_qcow2(path: str, size: int) -> None:
    _run(["qemu-img", "create", "-q", "-f", "qcow2", "--", path, str(size)])


def copy_into_luks(
    source: str, source_format: str, target: str, passphrase: Secret, progress: Callable[[int], None]
) -> None:
    """Copies an image into an existing LUKS file whose header fits `passphrase`; `progress` gets 0..100."""
    with _passphrase_pipe(passphrase) as descriptor:
        command = ["qemu-img", "convert", "-p", "-n"]
        command += ["--object", f"secret,id=luks,file=/dev/fd/{descriptor}", "--image-opts"]
        command += ["--target-image-opts", _file(source, source_format), _luks(target)]
        _run_with_progress(command, descriptor, progress)


def copy_out_of_luks(
    source: str, target: str, target_format: str, passphrase: Secret, progress: Callable[[int], None]
) -> None:
    """Copies a LUKS file's content into a new image of `target_format`."""
    with _passphrase_pipe(passphrase) as descriptor:
        command = ["qemu-img", "convert", "-p", "--object", f"secret,id=luks,file=/dev/fd/{descriptor}"]
        command += ["--image-opts", "-O", target_format, _luks(source), target]
        _run_with_progress(command, descriptor, progress)


def equal(plain: str, plain_format: str, luks: str, passphrase: Secret) -> bool:
    """Whether a plain image and a LUKS file hold the same, byte for byte."""
    with _passphrase_pipe(passphrase) as descriptor:
        command = ["qemu-img", "compare", "-q", "--object", f"secret,id=luks,file=/dev/fd/{descriptor}"]
        command += ["--image-opts", _file(plain, plain_format), _luks(luks)]
        done = subprocess.run(
            [*_DIES_WITH_US, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=[descriptor],
            check=False,
        )
    if done.returncode not in (0, 1):
        raise QemuImgFailed(_first_line(done.stderr))
    return done.returncode == 0


def _file(path: str, image_format: str) -> str:
    return f"driver={image_format},file.driver=file,file.filename={path.replace(',', ',,')}"


def _luks(path: str) -> str:
    return f"driver=luks,key-secret=luks,file.driver=file,file.filename={path.replace(',', ',,')}"


@contextmanager
def _passphrase_pipe(passphrase: Secret) -> Iterator[int]:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, passphrase.reveal())  # fits into the pipe's buffer: no second thread is needed
        os.close(write_end)
        yield read_end
    finally:
        os.close(read_end)


def _run(command: list[str]) -> bytes:
    done = subprocess.run([*_DIES_WITH_US, *command], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise QemuImgFailed(_first_line(done.stderr))
    return done.stdout


def _run_with_progress(command: list[str], descriptor: int, progress: Callable[[int], None]) -> None:
    """The child dies with any exception that `progress` raises (a cancelled job)."""
    with subprocess.Popen(
        [*_DIES_WITH_US, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[descriptor],
    ) as process:
        assert process.stdout is not None and process.stderr is not None  # noqa: S101  PIPE was asked for
        try:
            while chunk := os.read(process.stdout.fileno(), 4096):
                if found := _PERCENT.findall(chunk):
                    progress(int(float(found[-1])))
        except BaseException:
            process.kill()
            raise
        failure = process.stderr.read()
    if process.returncode:
        raise QemuImgFailed(_first_line(failure))


def _first_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[0][:300] if lines else "qemu-img ended without a word"
