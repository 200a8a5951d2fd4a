"""vTPM state of a powered-off VM, by swtpm itself: converted between plain and encrypted, and its TPM asked.

One swtpm reads the old state, hands out the permanent blob, a second one takes it in and writes it under the new key
(measured to be what libvirt passes: passphrase, aes-256-cbc). The blob is the TPM's memory in clear: it stays in an
anonymous file of this process and never gets a name. Passphrases go through inherited pipes.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from encryption.engine.secret import Secret

STATE_FILE: Final = "tpm2-00.permall"
_PATIENCE_SECONDS: Final = 20.0
_ANSWER_HEAD: Final = 10


class SwtpmFailed(Exception):
    """swtpm did not do it; the text says at which step, without any of its data."""


class KeyMismatch(SwtpmFailed):
    """The key does not open the state: it is another one's, or one of the two is plain."""


def state_file(folder: Path) -> Path:
    return folder / STATE_FILE


def convert(source: Path, target: Path, *, old: Secret | None, new: Secret | None) -> None:
    """Writes the state in folder `source` to a new folder `target`, opened by `old`, closed by `new` (None: plain).

    `target` gets the owner of `source` and mode 0700. Neither may be in use by a VM.
    """
    if not state_file(source).is_file():
        raise SwtpmFailed(f"there is no vTPM state in {source}")
    owner = source.stat()
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(mode=0o700)
    blob = os.memfd_create("vtpm-state", os.MFD_CLOEXEC)
    try:
        with _running(source, old) as control:
            _ask(control, "read the state", "-i")
            _ask(control, "read the state", "--save", "permanent", f"/dev/fd/{blob}", keep=blob)
        if not os.fstat(blob).st_size:
            raise SwtpmFailed("swtpm gave an empty state")
        os.lseek(blob, 0, os.SEEK_SET)
        with _running(target, new) as control:
            _ask(control, "write the state", "--load", "permanent", f"/dev/fd/{blob}", keep=blob)
            _ask(control, "write the state", "-i")
    finally:
        os.close(blob)
    (target / ".lock").unlink(missing_ok=True)
    if os.geteuid() == 0:
        for path in (target, *target.iterdir()):
            os.chown(path, owner.st_uid, owner.st_gid)
    _sync(state_file(target))
    _sync(target)


@contextmanager
def started(folder: Path, passphrase: Secret | None) -> Iterator[Callable[[bytes], bytes]]:
    """A TPM over the state in `folder`, opened by `passphrase`, that takes commands; what it is sent changes the state.

    Yields what sends it one command. The state must not be in use by a VM: give it a copy. Raises SwtpmFailed.
    """
    if not state_file(folder).is_file():
        raise SwtpmFailed(f"there is no vTPM state in {folder}")
    with tempfile.TemporaryDirectory(prefix="swtpm-") as place, socket.socket(socket.AF_UNIX) as channel:
        path = f"{place}/data"
        with _running(folder, passphrase, "--server", f"type=unixio,path={path}") as control:
            _ask(control, "read the state", "-i")
            channel.settimeout(_PATIENCE_SECONDS)
            try:
                channel.connect(path)
                yield partial(_transmit, channel)
            except OSError as exc:
                raise SwtpmFailed(f"swtpm does not answer: {exc}") from exc


def _transmit(channel: socket.socket, command: bytes) -> bytes:
    channel.sendall(command)
    answer = b""
    while len(answer) < _ANSWER_HEAD or len(answer) < int.from_bytes(answer[2:6], "big"):
        piece = channel.recv(4096)
        if not piece:
            raise SwtpmFailed("swtpm went away")
        answer += piece
    return answer


@contextmanager
def _running(folder: Path, passphrase: Secret | None, *options: str) -> Iterator[str]:
    """A swtpm over `folder`; yields its control socket. Ended politely, then by signal."""
    with tempfile.TemporaryDirectory(prefix="swtpm-") as place:
        control = f"{place}/ctrl"
        # It dies with this process: left behind by a killed worker, it would keep the state locked.
        command = ["setpriv", "--pdeathsig", "KILL", "--"]
        command += ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--ctrl", f"type=unixio,path={control}"]
        command += options
        keep: tuple[int, ...] = ()
        if passphrase is not None:
            read_end, write_end = os.pipe()
            os.write(write_end, passphrase.reveal())
            os.close(write_end)
            keep = (read_end,)
            command += ["--key", f"pwdfd={read_end},mode=aes-256-cbc"]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=keep
            )
        finally:
            for descriptor in keep:
                os.close(descriptor)
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while not _listens(control):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SwtpmFailed(f"swtpm does not start over {folder}")
                time.sleep(0.02)
            yield control
            _ask(control, "stop", "-s")
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired as exc:
            raise SwtpmFailed("swtpm does not stop") from exc
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _listens(control: str) -> bool:
    """Its socket has a name a moment before it takes connections."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(control) == 0


def _ask(control: str, doing: str, *arguments: str, keep: int | None = None) -> None:
    try:
        done = subprocess.run(
            ["swtpm_ioctl", "--unix", control, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=() if keep is None else (keep,),
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise SwtpmFailed(f"swtpm hangs: cannot {doing}") from exc
    if done.returncode and arguments == ("-i",):
        raise KeyMismatch(f"swtpm refuses: cannot {doing}; does its key fit?")
    if done.returncode:
        raise SwtpmFailed(f"swtpm refuses: cannot {doing}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
