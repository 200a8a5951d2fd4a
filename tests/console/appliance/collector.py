"""A log collector in this process: reads what comes, hangs, or hangs up, as a test wants it."""

import contextlib
import os
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lab.pki import Authority, Issued

PATIENCE_SECONDS = 30
_LENGTH = re.compile(rb"(\d+) ")


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.02)


def server_context(issued: Issued, clients: Authority | None = None) -> ssl.SSLContext:
    """`clients`: a client certificate of that CA is asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    descriptor, name = tempfile.mkstemp()
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(issued.certificate_pem + issued.key_pem)
        context.load_cert_chain(path)
    finally:
        path.unlink()
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients.certificate_pem.decode())
    return context


class Collector:
    """TCP or TLS on a port of its own, or one that is given. `stream`: the octets of each connection."""

    def __init__(self, context: ssl.SSLContext | None = None, *, port: int = 0, hangs: bool = False) -> None:
        self._context = context
        self._hangs = hangs
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.streams: list[bytearray] = []
        self.clients: list[str] = []
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def messages(self) -> list[bytes]:
        """Whole messages, connection after connection."""
        return [message for stream in list(self.streams) for message in counted(bytes(stream))]

    def hang_up(self) -> None:
        """Closes what is open; new connections are taken."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def close(self) -> None:
        # A listener that somebody waits on is not closed by close() alone.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(timeout=10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            stream = bytearray()
            with self._lock:
                self.streams.append(stream)
                self._open.append(connection)
            thread = threading.Thread(target=self._read, args=(connection, stream), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _read(self, connection: socket.socket, stream: bytearray) -> None:
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
                assert isinstance(connection, ssl.SSLSocket)
                if subject := (connection.getpeercert() or {}).get("subject"):
                    self.clients.append(str(subject))
                with self._lock:
                    self._open.append(connection)
            if self._hangs:
                while connection.fileno() >= 0 and connection in self._open:
                    time.sleep(0.02)
                return
            while octets := connection.recv(65536):
                stream += octets
            if isinstance(connection, ssl.SSLSocket):
                connection.unwrap()
        except (OSError, ValueError):  # ValueError: `close` was faster, and the TLS socket has no TLS any more
            return
        finally:
            connection.close()


def counted(stream: bytes) -> list[bytes]:
    """The messages of a stream with counted octets; one that is not whole is left out."""
    found, start = [], 0
    while (head := _LENGTH.match(stream, start)) and len(stream) >= head.end() + int(head[1]):
        start = head.end() + int(head[1])
        found.append(stream[head.end() : start])
    return found
