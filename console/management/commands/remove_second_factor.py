"""Takes a user's second factor away, where nobody is left who could do that in the console."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from typing_extensions import override

from console import second_factor
from inventory.errors import ServiceError


class Command(BaseCommand):
    help = "Remove the second factor of a user who has lost it. The password is asked for as before; it is recorded."

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username")

    @override
    def handle(self, *args: Any, username: str, **options: Any) -> None:
        try:
            second_factor.remove_for_command(username=username)
        except ServiceError as exc:
            raise CommandError(str(exc)) from exc
        self.stdout.write(f"the second factor of {username} is removed")
