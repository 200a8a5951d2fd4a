"""The unprivileged user that an installation started by root runs as."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from console.launch.steps import LaunchError
from lab.errors import LabError
from lab.user import USER_NAME, LabUser, ensure_user


def is_root() -> bool:
    return os.geteuid() == 0


def ensure_service_user() -> LabUser:
    """The system user of the services, which is the lab's too; made when it is missing. Only for root."""
    try:
        return ensure_user()
    except LabError as exc:
        raise LaunchError(str(exc), hint="the program useradd is in Debian's package passwd") from exc


def as_service_user(command: Sequence[str], *, home: Path) -> list[str]:
    """The command line that runs `command` as the service user with all of root's rights gone."""
    return [
        "setpriv", f"--reuid={USER_NAME}", f"--regid={USER_NAME}", "--init-groups", "--inh-caps=-all",
        "--no-new-privs", "--",
        "env", f"HOME={home}", f"USER={USER_NAME}", f"LOGNAME={USER_NAME}", *command,
    ]  # fmt: skip


def give(folder: Path, user: LabUser) -> None:
    """Make the service user the owner of everything in `folder`, unless the folder is its own already.

    A missing folder is made. Once it is the user's, nothing below is touched again: root does not follow what an
    unprivileged user may have put there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid == user.uid:
        return
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            user.own(Path(parent, name))
    user.own(folder)  # last: a walk that was cut short starts over


def keep(folder: Path) -> None:
    """Make root the owner of the folder itself, so that a later `give` looks at everything below again."""
    if folder.exists():
        os.chown(folder, 0, 0, follow_symlinks=False)


def obstacle(*, root: Path, python: Path) -> str | None:
    """Why the service user cannot run the console from here, found by trying; None when it can."""
    if shutil.which("setpriv") is None:
        return "there is no setpriv (package util-linux)"
    # From / and with absolute paths: a working folder inherited from root would hide a closed parent folder.
    probe = [str(python), "-P", "-c", "import django, celery, console.launch.main"]
    done = subprocess.run(
        as_service_user(["env", f"PYTHONPATH={root}", "PYTHONDONTWRITEBYTECODE=1", *probe], home=Path("/nonexistent")),
        cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    return None if done.returncode == 0 else f"user {USER_NAME} cannot read {root}"


def replace_process(command: Sequence[str]) -> NoReturn:
    """Replace this process by `command`, found in PATH. Raises LaunchError when that cannot be."""
    sys.stdout.flush()
    try:
        os.execvp(command[0], list(command))  # noqa: S606  no shell, and no return
    except OSError as exc:
        raise LaunchError(f"cannot run {command[0]}: {exc.strerror}") from exc
