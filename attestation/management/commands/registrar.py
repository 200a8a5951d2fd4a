"""`manage registrar`: the listener to which attestation agents register. Needs no console key."""

import asyncio
import contextlib
import logging
import signal
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError, close_old_connections, connections
from typing_extensions import override

from attestation.registrar import protocol
from attestation.registrar.protocol import Answer, Request
from attestation.registrar.server import Registrar
from inventory.services import processes

log = logging.getLogger(__name__)


class Command(BaseCommand):
    help = "Takes registrations of attestation agents (Keylime agent API 2.x) until it is ended."
    requires_system_checks = []  # they would load every page

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--listen", default=settings.REGISTRAR_LISTEN, metavar="HOST:PORT")

    @override
    def handle(self, *args: Any, listen: str, **options: Any) -> None:
        host, _, port = listen.rpartition(":")
        if not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
            raise CommandError(f"--listen {listen!r} is not HOST:PORT")
        processes.started("registrar")
        try:
            asyncio.run(self._run(host.strip("[]"), int(port)))
        except OSError as exc:
            raise CommandError(f"cannot listen on {listen}: {exc.strerror}") from exc

    async def _run(self, host: str, port: int) -> None:
        server = await Registrar(answer).listen(host, port)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        bound = server.sockets[0].getsockname()
        self.stdout.write(f"agents register at {bound[0]}:{bound[1]}")
        self.stdout.flush()
        async with server:
            await ended.wait()
            server.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 5)


def answer(request: Request) -> Answer:
    """One request in one of the listener's threads, which keep their connections to the database."""
    close_old_connections()
    try:
        return protocol.answer(request)
    except (DatabaseError, InterfaceError):
        log.exception("the database does not answer")
        connections.close_all()
        return Answer(503, "the console's database does not answer; try again")
