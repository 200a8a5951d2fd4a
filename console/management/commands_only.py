"""Apps of nothing but management commands."""

from django.apps import AppConfig
from typing_extensions import override


class CommandsOnly(AppConfig):
    """For commands that have to work where models cannot be loaded (they need further apps, and these a database)."""

    name = "console"

    @override
    def import_models(self) -> None:
        self.models = {}


class AttestationCommandsOnly(CommandsOnly):
    """The same for attestation."""

    name = "attestation"
