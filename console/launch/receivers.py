"""rsyslog and syslog-ng for the tests of the syslog targets: unpacked, not installed.

Debian's packages of the two exclude each other, and either would take the place of the machine's own log daemon. So
they are downloaded (apt verifies the signatures) and unpacked below the state folder; what they need besides is in the
launcher's list of packages.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from console.launch.steps import LaunchError, Steps

PACKAGES: Final = ("rsyslog", "rsyslog-openssl", "syslog-ng-core")
PROGRAMS: Final = ("usr/sbin/rsyslogd", "usr/sbin/syslog-ng")


def are_in(folder: Path) -> bool:
    return all((folder / name).exists() for name in PROGRAMS)


def prepare(steps: Steps, folder: Path) -> None:
    """Unpacks them into `folder`, once. Raises LaunchError."""
    steps.run("receivers", "unpacking rsyslog and syslog-ng", lambda: _unpack(folder), key="1", result=folder)


def _unpack(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bartizan-receivers-") as name:
        # Readable for apt's own user, who does the download where root asks for it.
        Path(name).chmod(0o755)
        _run(["apt-get", "download", "-q", *PACKAGES], cwd=name)
        for package in sorted(Path(name).glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(package), str(folder)], cwd=name)
    if not are_in(folder):
        raise LaunchError("rsyslog or syslog-ng is not where their packages had it", hint=f"look into {folder}")


def _run(command: list[str], *, cwd: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise LaunchError(
            f"{command[0]} could not get or unpack the log collectors", hint="apt-get update, then try again",
            details=done.stdout,
        )  # fmt: skip
