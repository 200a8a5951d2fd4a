"""The event listener: one process a site that follows all hosts. Ends on SIGTERM and SIGINT."""

import signal
import threading
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand
from typing_extensions import override

from inventory.services import processes, watch


class Command(BaseCommand):
    help = "Follows what happens on all hosts and keeps the inventory current; run one for each console."
    requires_system_checks = []  # they would load every page

    @override
    def handle(self, *args: Any, **options: Any) -> None:
        processes.started("watch-hosts")
        stop = threading.Event()

        def end(number: int, frame: FrameType | None) -> None:
            stop.set()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        self.stdout.write("watching hosts")
        watch.watch_all(stop)
        self.stdout.write("stopped")
