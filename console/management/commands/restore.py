"""Puts a backup into an empty console."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from typing_extensions import override

from console.backup.backup import restore
from console.private_file import read_private
from inventory.authorize import SYSTEM
from inventory.errors import ServiceError


class Command(BaseCommand):
    help = (
        "Put the backup in FILE in the place of all that an empty console knows: its users, too. The database is "
        "migrated, and no web process or worker runs. The console key must be that of the console of the backup."
    )

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--passphrase-file", required=True, type=Path)
        parser.add_argument("--any-console-key", action="store_true", help="although this one opens no sealed row")

    @override
    def handle(
        self, *args: Any, file: Path, passphrase_file: Path, any_console_key: bool, **options: Any
    ) -> None:  # fmt: skip
        passphrase = read_private(passphrase_file)
        try:
            with file.open("rb") as source:
                contents = restore(
                    source=source, passphrase=passphrase, actor=SYSTEM, any_console_key=any_console_key
                )  # fmt: skip
        except ServiceError as exc:
            raise CommandError(f"{exc.message}\n  {exc.hint}") from exc
        except OSError as exc:
            raise CommandError(f"cannot read {file}: {exc.strerror or type(exc).__name__}") from exc
        self.stdout.write(
            f"restored: {sum(contents.objects.values())} objects, as of {contents.made_at:%Y-%m-%d %H:%M:%S} UTC"
        )
