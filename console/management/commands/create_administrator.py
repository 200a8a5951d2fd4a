"""Creates the first administrator, once, with a password from a private file."""

import stat
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from typing_extensions import override


class Command(BaseCommand):
    help = (
        "Create an administrator with the password in a file, unless the user exists. Prints `created`, `current` (the "
        "file holds this user's password) or `changed` (it no longer does). An existing user is never altered."
    )

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--username", required=True)
        parser.add_argument("--password-file", required=True, type=Path)

    @override
    def handle(self, *args: Any, username: str, password_file: Path, **options: Any) -> None:
        password = _read_private(password_file)
        user = User.objects.filter(username=username).first()
        if user is None:
            User.objects.create_superuser(username=username, email=None, password=password)
            self.stdout.write("created")
        else:
            self.stdout.write("current" if user.check_password(password) else "changed")


def _read_private(path: Path) -> str:
    """The first line of a file that nobody but its owner may read. Raises CommandError otherwise."""
    try:
        with path.open(encoding="utf-8") as file:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise CommandError(f"{path} can be read by others: chmod 600 it")
            password = file.readline().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandError(f"cannot read {path}: {type(exc).__name__}") from exc
    if not password:
        raise CommandError(f"{path} is empty")
    return password
