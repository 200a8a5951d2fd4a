"""Creates the first administrator, once, with a password from a private file."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand
from django.db import transaction
from typing_extensions import override

from console.private_file import read_private
from inventory.authorize import SYSTEM
from inventory.services.access import AccountChange, record_account


class Command(BaseCommand):
    requires_system_checks = []  # they would load every page
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
        password = read_private(password_file)
        user = User.objects.filter(username=username).first()
        if user is None:
            with transaction.atomic():
                made = User.objects.create_superuser(username=username, email=None, password=password)
                record_account(made, AccountChange.ADDED, actor=SYSTEM.username)
            self.stdout.write("created")
        else:
            self.stdout.write("current" if user.check_password(password) else "changed")
