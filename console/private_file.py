"""Secrets that are given to commands: in a file that only its owner may read, never on the command line."""

import stat
from pathlib import Path

from django.core.management.base import CommandError


def read_private(path: Path) -> str:
    """The first line of a file that nobody but its owner may read. Raises CommandError otherwise."""
    try:
        with path.open(encoding="utf-8") as file:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise CommandError(f"{path} can be read by others: chmod 600 it")
            secret = file.readline().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandError(f"cannot read {path}: {type(exc).__name__}") from exc
    if not secret:
        raise CommandError(f"{path} is empty")
    return secret
