"""`manage verifier_ca`: the certificate that agents on hosts must trust (`trusted_client_ca`), in PEM."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from typing_extensions import override

from attestation.services import verifier_identity
from inventory.errors import ServiceError


class Command(BaseCommand):
    help = "Prints the CA certificate by which attestation agents know this console; made at the first call."

    @override
    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self.stdout.write(verifier_identity.ca_pem(), ending="")
        except ServiceError as exc:
            raise CommandError(str(exc)) from exc
