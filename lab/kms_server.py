"""The server process behind lab/kms.py.

PyKMIP's own `KmipServer` is not used: it offers TLS 1.2 only, forks two helper processes for policies that the lab does
not have, writes a traceback every ten seconds of an idle connection and needs up to ten seconds for each to stop.
"""

from __future__ import annotations

import copy
import fcntl
import logging
import select
import socket
import ssl
from pathlib import Path
from typing import Any

import sqlalchemy.event
from kmip.core import enums
from kmip.core.exceptions import ConnectionClosed
from kmip.core.policy import policies as default_policies
from kmip.services.server.engine import KmipEngine
from kmip.services.server.session import KmipSession

from lab.kms import KmsLayout

HANDSHAKE_SECONDS = 10.0
STOP_SECONDS = 5.0

_SHARED = (
    enums.Operation.LOCATE,
    enums.Operation.CHECK,
    enums.Operation.GET,
    enums.Operation.GET_ATTRIBUTES,
    enums.Operation.GET_ATTRIBUTE_LIST,
)

logger = logging.getLogger("lab.kms")


class LabEngine(KmipEngine):  # type: ignore[misc]
    """PyKMIP's engine on an SQLite file that several processes share, with the lab's sharing rule."""

    def __init__(self, database: Path) -> None:
        policies = copy.deepcopy(default_policies)
        for operation in _SHARED:
            policies["default"]["preset"][enums.ObjectType.SYMMETRIC_KEY][operation] = enums.Policy.ALLOW_ALL
        # Two processes that make the tables at the same moment would trip over each other.
        with (database.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            super().__init__(policies=policies, database_path=str(database))
            sqlalchemy.event.listen(self._data_store, "connect", _set_up_connection)
            self._data_store.dispose()
            with self._data_store.connect():
                pass


def _set_up_connection(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # WAL: readers of the other process go on during a write. secure_delete: a destroyed key leaves the file.
    for pragma in ("busy_timeout = 10000", "journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class LabSession(KmipSession):  # type: ignore[misc]
    """PyKMIP's session, made to end when its connection does instead of retrying a dead socket for ever."""

    def run(self) -> None:
        self._connection.settimeout(HANDSHAKE_SECONDS)
        try:
            super().run()
        except OSError:
            logger.debug("connection of session %s was gone before its end", self.name)

    def _receive_request(self) -> Any:
        self._connection.settimeout(None)  # the handshake is done; an idle client may stay
        return super()._receive_request()

    def _receive_bytes(self, message_size: int) -> Any:
        if message_size > self._max_request_size:
            raise ConnectionClosed
        try:
            return super()._receive_bytes(message_size)
        except OSError as exc:
            raise ConnectionClosed from exc

    def hang_up(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            logger.debug("session %s had hung up already", self.name)


class LabServer:
    """Listens, and gives every connection a session thread, until `stop` is called from any thread or signal."""

    def __init__(self, layout: KmsLayout, host: str, port: int) -> None:
        """Bind at once; port 0 takes a free one. Raises OSError when the port is taken."""
        self._layout = layout
        self._sessions: list[LabSession] = []
        self._count = 0
        self._trusted: dict[Path, int] = {}
        self._context = self._current_context()
        self._engine = LabEngine(layout.database)
        self._waker, self._wake = socket.socketpair()
        self._listener = socket.create_server((host, port), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        self._listener.settimeout(None)
        while True:
            ready, _, _ = select.select([self._listener, self._waker], [], [])
            if self._waker in ready:
                break
            connection, address = self._listener.accept()
            self._start_session(connection, address)
        self._listener.close()
        for session in self._sessions:
            session.hang_up()
        for session in self._sessions:
            session.join(STOP_SECONDS)

    def stop(self) -> None:
        self._wake.send(b"x")

    def _start_session(self, connection: socket.socket, address: tuple[str, int]) -> None:
        self._sessions = [session for session in self._sessions if session.is_alive()]
        self._count += 1
        secured = self._current_context().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        session = LabSession(self._engine, secured, address, name=f"{self._count:08}")
        session.daemon = True
        session.start()
        self._sessions.append(session)

    def _current_context(self) -> ssl.SSLContext:
        """The TLS settings with the clients trusted now; the same object while their files are unchanged."""
        trusted = {path: path.stat().st_mtime_ns for path in sorted(self._layout.clients.glob("*.pem"))}
        if trusted != self._trusted:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("ECDHE+AESGCM")
            context.verify_mode = ssl.CERT_REQUIRED
            # A client's own certificate may be what is trusted, as when a console uploads a self-signed one.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            for path in trusted:
                context.load_verify_locations(path)
            context.load_cert_chain(self._layout.server_certificate, self._layout.server_key)
            self._context, self._trusted = context, trusted
        return self._context
