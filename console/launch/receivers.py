"""Servers that the tests talk to, unpacked and not installed: rsyslog and syslog-ng (syslog targets), slapd (log-in by
LDAP).

Debian's packages of the first two exclude each other, and either would take the place of the machine's own log daemon;
slapd's would make a directory. So they are downloaded (apt verifies the signatures) and unpacked below the state
folder; what they need besides is in the launcher's list of packages.
"""

import tempfile
from pathlib import Path
from typing import Final

from console.launch.steps import LaunchError, Steps, run_command

PACKAGES: Final = ("rsyslog", "rsyslog-openssl", "syslog-ng-core", "slapd", "libltdl7")
PROGRAMS: Final = ("usr/sbin/rsyslogd", "usr/sbin/syslog-ng", "usr/sbin/slapd")


def are_in(folder: Path) -> bool:
    return all((folder / name).exists() for name in PROGRAMS)


def prepare(steps: Steps, folder: Path) -> None:
    """Unpacks them into `folder`, once. Raises LaunchError."""
    steps.run("receivers", "unpacking rsyslog, syslog-ng and slapd", lambda: _unpack(folder), key="2", result=folder)


def _unpack(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bartizan-receivers-") as name:
        downloads = Path(name)
        run_command(["apt-get", "download", "-q", *PACKAGES], cwd=downloads, what="download of servers for the tests")
        for package in sorted(downloads.glob("*.deb")):
            unpack = ["dpkg-deb", "--extract", str(package), str(folder)]
            run_command(unpack, cwd=downloads, what=f"unpacking {package.name}")
    if not are_in(folder):
        raise LaunchError("rsyslog, syslog-ng or slapd is not where its package had it", hint=f"look into {folder}")
