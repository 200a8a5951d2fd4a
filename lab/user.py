"""Who runs the lab: an unprivileged system user when we are root, otherwise the caller.

libvirt gives root the privileged driver whatever the URI says, so a session daemon needs another user.

Root writes into folders that this user owns. That is safe against accidents only, not against a hostile
process of the lab user: the lab is a playground, and the user owns nothing else.
"""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab.errors import LabError
from lab.pki import write_with_mode

USER_NAME = "bartizan"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class LabUser:
    """The user of all lab processes and the owner of all lab files they write.

    `switch` says that commands have to change to this user, because the caller is root.
    """

    name: str
    uid: int
    gid: int
    switch: bool

    @classmethod
    def current(cls) -> Self:
        """The calling user. Right for an ordinary user only; root wants `ensure_user`."""
        entry = pwd.getpwuid(os.geteuid())
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=False)

    def command(self, argv: Sequence[str], *, dies_with_caller: bool = False) -> list[str]:
        """The argument list that runs `argv` as this user. The environment is kept as the caller sets it.

        With `dies_with_caller` the kernel sends it SIGTERM when the thread that started it ends, however that ends.
        """
        options = [f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups"] if self.switch else []
        # One setpriv for both: a change of user forgets the signal (prctl(2), PR_SET_PDEATHSIG).
        options += ["--pdeathsig=TERM"] if dies_with_caller else []
        return ["setpriv", *options, "--", *argv] if options else list(argv)

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` to its end as this user. A non-zero status is returned, not raised."""
        return subprocess.run(
            self.command(argv),
            env=dict(env or {"PATH": PATH, "LC_ALL": "C.UTF-8"}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def own(self, path: Path) -> None:
        """Give one file or folder to this user."""
        if self.switch:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def folder(self, path: Path, mode: int = 0o700) -> None:
        """Make a folder of this user. Its parent must exist; an existing folder gets owner and mode again."""
        path.mkdir(exist_ok=True, mode=mode)
        path.chmod(mode)
        self.own(path)

    def write(self, path: Path, content: bytes | str, mode: int = 0o600) -> None:
        """Write a file of this user, unless it holds this content already."""
        wanted = content.encode() if isinstance(content, str) else content
        if path.is_file() and path.read_bytes() == wanted:
            return
        write_with_mode(path, wanted, mode)
        self.own(path)


def ensure_user() -> LabUser:
    """The user of the lab; made first when we are root and it is missing.

    Raises LabError when the user cannot be made.
    """
    if os.geteuid() != 0:
        return LabUser.current()
    entry = _find()
    if entry is None:
        made = subprocess.run(_useradd(), capture_output=True, text=True, check=False)
        entry = _find()
        # Another start may have made the user in the same second: only its absence counts.
        if entry is None:
            raise LabError(f"the user {USER_NAME} cannot be made: {made.stderr.strip()}")
    return LabUser(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=True)


def _find() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(USER_NAME)
    except KeyError:
        return None


def _useradd() -> list[str]:
    argv = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    argv += ["--shell", "/usr/sbin/nologin"]
    try:
        grp.getgrnam("kvm")
    except KeyError:
        pass
    else:
        argv += ["--groups", "kvm"]
    return [*argv, USER_NAME]
