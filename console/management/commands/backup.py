"""Writes a backup of the console, while it runs."""

import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from typing_extensions import override

from console.backup.backup import back_up
from console.private_file import read_private
from inventory.authorize import SYSTEM
from inventory.errors import ServiceError


class Command(BaseCommand):
    help = (
        "Write all that the console knows to FILE, encrypted under the passphrase in the first line of a private file. "
        "The console key is not in it: keep STATE/secrets/console_key elsewhere."
    )

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--passphrase-file", required=True, type=Path)

    @override
    def handle(self, *args: Any, file: Path, passphrase_file: Path, **options: Any) -> None:
        passphrase = read_private(passphrase_file)
        if file.exists():
            raise CommandError(f"{file} exists: name a new file")
        part = file.with_name(file.name + ".part")
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as target:
                contents = back_up(target=target, passphrase=passphrase, actor=SYSTEM)
                target.flush()
                os.fsync(target.fileno())
            part.rename(file)
        except ServiceError as exc:
            part.unlink()
            raise CommandError(f"{exc.message}\n  {exc.hint}") from exc
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise CommandError(f"cannot write {file}: {exc.strerror or type(exc).__name__}") from exc
        self.stdout.write(f"{file}: {sum(contents.objects.values())} objects, {file.stat().st_size} bytes")
