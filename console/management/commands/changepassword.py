"""Django's command, and a line in the history."""

import getpass
from typing import Any

from django.contrib.auth.management.commands import changepassword
from django.contrib.auth.models import User
from typing_extensions import override

from inventory.authorize import SYSTEM
from inventory.services.access import AccountChange, record_account


class Command(changepassword.Command):
    @override
    def handle(self, *args: Any, **options: Any) -> str | None:
        words = super().handle(*args, **options)
        user = User.objects.get(username=options["username"] or getpass.getuser())
        record_account(user, AccountChange.CHANGED, actor=SYSTEM.username, fields=["password"])
        return words
