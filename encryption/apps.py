from django.apps import AppConfig
from typing_extensions import override


class EncryptionConfig(AppConfig):
    name = "encryption"

    @override
    def ready(self) -> None:
        from encryption import services

        services.register()
