"""Switches two-person approval off, where nobody is left who could approve that."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from typing_extensions import override

from inventory.services import approvals


class Command(BaseCommand):
    help = "Switch two-person approval of a sort of operation off. For emergencies: it is recorded in the history."

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--off", required=True, choices=approvals.choices(), help="the rule")

    @override
    def handle(self, *args: Any, off: str, **options: Any) -> None:
        approvals.switch_off_now(action=off)
        self.stdout.write(f"two-person approval of {off} is off")
