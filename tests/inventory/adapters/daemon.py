"""A libvirt daemon of a lab user, without guests: the real storage API in a second."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import libvirt

from lab import hosts, layout, processes
from lab.user import ensure_user

# QEMU tries for seconds how much key derivation this machine does in two of them, and then does it.
_WITHOUT_CALIBRATION: Final = """\
#!/bin/sh
for argument; do
    shift
    case $argument in key-secret=*) argument=$argument,iter-time=10 ;; esac
    set -- "$@" "$argument"
done
exec {program} "$@"
"""


@contextmanager
def session_daemon(*, calibrates: bool = True) -> Iterator[tuple[str, Path]]:
    """Its URI, and a folder in which it may write. `calibrates`: whether LUKS headers that it has qemu-img make take
    as long to open as QEMU likes, and as long to make."""
    # A short path: it ends in a unix socket. Others must be able to pass, for the daemon is another user.
    with tempfile.TemporaryDirectory(prefix="b", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        lab = layout.load_or_create(Path(name), ensure_user())
        hosts.prepare(lab)
        host = lab.hosts[0]
        argv, environment = hosts.host_command(lab, host, dies_with_caller=True)
        if not calibrates:
            environment = {**environment, "PATH": f"{_quick_tools(Path(name))}:{environment['PATH']}"}
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


def _quick_tools(folder: Path) -> Path:
    program = shutil.which("qemu-img")
    assert program is not None
    tools = folder / "tools"
    tools.mkdir()
    tool = tools / "qemu-img"
    tool.write_text(_WITHOUT_CALIBRATION.format(program=program))
    for path in (tools, tool):
        path.chmod(0o755)
    return tools


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
