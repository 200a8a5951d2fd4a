"""Creates an API token for a user and prints it, once."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from typing_extensions import override

from console import api_tokens
from inventory.errors import ServiceError


class Command(BaseCommand):
    help = (
        "Create an API token for a user. The token is the only line on standard output and is kept nowhere: "
        "redirect it into a file that nobody else may read."
    )

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--username", required=True, help="whose rights the token has")
        parser.add_argument("--name", required=True, help="what it is for, as the list of tokens shows it")
        parser.add_argument("--days", type=int, default=90, help="how long it lasts (default 90)")
        parser.add_argument("--role", default="", help="at most what this role holds (default: all of the user's)")

    @override
    def handle(self, *args: Any, username: str, name: str, days: int, role: str, **options: Any) -> None:
        try:
            made = api_tokens.create_token_for(username=username, name=name, days=days, role=role)
        except ServiceError as exc:
            raise CommandError(str(exc)) from exc
        self.stdout.write(made.token)
