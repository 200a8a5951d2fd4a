"""A TLS server that answers as it is told to, for what a real key server never does."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kmip.core import enums
from kmip.core.messages import contents, messages
from kmip.core.utils import BytearrayStream

from encryption.engine.key_server import ServerAddress
from lab.pki import Issued

Handler = Callable[[ssl.SSLSocket, int], None]


def tls_context(folder: Path, issued: Issued, client_ca: bytes | None = None) -> ssl.SSLContext:
    """A server context; with `client_ca` it demands client certificates of that CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = folder / "pair.pem"
    pair.write_bytes(issued.certificate_pem + issued.key_pem)
    context.load_cert_chain(pair)
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_ca.decode())
    return context


@contextmanager
def fake_server(context: ssl.SSLContext, handle: Handler, host: str = "localhost") -> Iterator[ServerAddress]:
    """Serve connections one after the other; `handle` gets each with its number, from 0."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        number = 0
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            plain.settimeout(10)
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    handle(connection, number)
            except OSError:
                plain.close()
            number += 1

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield ServerAddress(host, listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(15)


def read_request(connection: ssl.SSLSocket) -> bytes:
    header = connection.recv(8)
    body = b""
    while header and len(body) < int.from_bytes(header[4:], "big"):
        body += connection.recv(4096)
    return header + body


def general_failure() -> bytes:
    """A well-formed answer that says: operation failed, general failure."""
    message = messages.ResponseMessage(
        response_header=messages.ResponseHeader(
            protocol_version=contents.ProtocolVersion(1, 2),
            time_stamp=contents.TimeStamp(1),
            batch_count=contents.BatchCount(1),
        ),
        batch_items=[
            messages.ResponseBatchItem(
                result_status=contents.ResultStatus(enums.ResultStatus.OPERATION_FAILED),
                result_reason=contents.ResultReason(enums.ResultReason.GENERAL_FAILURE),
            )
        ],
    )
    stream = BytearrayStream()
    message.write(stream)
    return bytes(stream.buffer)


@contextmanager
def relay(target: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """A port that passes bytes on to the port `target`, and a function that cuts all its connections."""
    listener = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(4096):
                sink.sendall(data)
        except OSError:
            return

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", target))
            ends.extend((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    def cut() -> None:
        while ends:
            end = ends.pop()
            with suppress(OSError):  # its other end may have gone already
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], cut
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(15)
        cut()
