"""The forwarder to the log collectors: one process a console. Ends on SIGTERM and SIGINT."""

import signal
import threading
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from typing_extensions import override

from console.appliance.services import forwarding
from inventory.services import processes


class Command(BaseCommand):
    help = "Sends every event to the syslog targets; run one for each console."
    requires_system_checks = []  # they would load every page

    @override
    def handle(self, *args: Any, **options: Any) -> None:
        processes.started("forward-events")
        stop = threading.Event()

        def end(number: int, frame: FrameType | None) -> None:
            stop.set()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        self.stdout.write("forwarding events")
        forwarding.forward_all(stop, log_folder=settings.STATE_DIR / "log")
        self.stdout.write("stopped")
