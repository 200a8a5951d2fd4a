"""Enters the local lab into the inventory; see lab/register.py."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from typing_extensions import override

from lab import kms, layout, register
from lab.errors import LabError
from lab.user import ensure_user


class Command(BaseCommand):
    help = "Add the local lab's hosts and key server through the services that the web pages call."
    requires_system_checks = []  # they would load every page

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--state", default=settings.STATE_DIR / "lab", type=Path, help="the lab's state folder")

    @override
    def handle(self, *args: Any, state: Path, **options: Any) -> None:
        try:
            lab = layout.load(state, ensure_user())
            if lab is None:
                raise CommandError(f"there is no lab in {state}")
            for line in register.register(lab, kms.KmsLayout.load(state / "kms")):
                self.stdout.write(line)
        except LabError as exc:
            raise CommandError(str(exc)) from exc
