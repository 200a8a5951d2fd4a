"""A libvirt daemon of a lab user, without guests: the real storage API in a second."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt

from lab import hosts, layout, processes
from lab.user import ensure_user


@contextmanager
def session_daemon() -> Iterator[tuple[str, Path]]:
    """Its URI, and a folder in which it may write."""
    # A short path: it ends in a unix socket. Others must be able to pass, for the daemon is another user.
    with tempfile.TemporaryDirectory(prefix="b", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        lab = layout.load_or_create(Path(name), ensure_user())
        hosts.prepare(lab)
        host = lab.hosts[0]
        argv, environment = hosts.host_command(lab, host, dies_with_caller=True)
        with host.log.open("wb") as log:
            daemon = subprocess.Popen(
                argv, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        try:
            _wait(host.uri, daemon)
            yield host.uri, host.base / "files"
        finally:
            daemon.terminate()
            daemon.wait(30)
            processes.end(lab)


def _wait(uri: str, daemon: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            libvirt.open(uri).close()
            return
        except libvirt.libvirtError:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
