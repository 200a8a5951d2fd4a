from django.apps import AppConfig
from typing_extensions import override


class ConsoleConfig(AppConfig):
    name = "console"

    @override
    def ready(self) -> None:
        from console import logins
        from console.appliance import services

        logins.register()
        services.register()
