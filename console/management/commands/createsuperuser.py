"""Django's command, and a line in the history."""

from typing import Any

from django.contrib.auth.management.commands import createsuperuser
from django.contrib.auth.models import User
from typing_extensions import override

from inventory.authorize import SYSTEM
from inventory.services.access import AccountChange, record_account


class Command(createsuperuser.Command):
    @override
    def handle(self, *args: Any, **options: Any) -> str | None:
        known = set(User.objects.filter(is_superuser=True).values_list("pk", flat=True))
        words = super().handle(*args, **options)
        for made in User.objects.filter(is_superuser=True).exclude(pk__in=known):
            record_account(made, AccountChange.ADDED, actor=SYSTEM.username)
        return words
