from django.apps import AppConfig
from typing_extensions import override


class AttestationConfig(AppConfig):
    name = "attestation"

    @override
    def ready(self) -> None:
        from attestation import services

        services.register()
