"""The TLS connection to a key server: mutual, verified, bounded in time. No KMIP in here.

PyKMIP's own client builds a context that verifies no host name and logs whole messages at debug level, keys
included; neither its client nor its transport is used.

A connection is made only when all of these hold:
1. TLS 1.2 or newer; under 1.2 only ECDHE with AES-GCM. (Python 3.11 cannot choose among the TLS 1.3 suites;
   outside FIPS mode ChaCha20-Poly1305 is among them.)
2. The server's chain ends at the given trust anchors; the system's own are not loaded.
3. A DNS or IP alternative name matches the address. The common name is not read (RFC 9525 section 2).
4. The console's certificate is offered; whether the server takes it shows in the handshake under TLS 1.2, but
   only with the first answer under TLS 1.3 (RFC 8446 section 4.4.2.4).

Not checked: revocation of the server's certificate.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Self

from encryption.engine.key_server import (
    ClientTls,
    KmsProtocolError,
    KmsUnreachable,
    KmsUntrusted,
    ServerAddress,
    TrustReason,
)
from inventory.adapters.tls import client_context as approved_client_context

TTLV_HEADER_SIZE = 8
# A response message with one key is a few hundred bytes; a locate of 20,000 keys stays below this.
MAX_MESSAGE_SIZE = 1024 * 1024
_RESPONSE_MESSAGE = b"\x42\x00\x7b\x01"  # tag Response Message, type Structure (KMIP 1.2 section 9.1.1)

# X509_V_ERR_* of OpenSSL, as SSLCertVerificationError.verify_code gives them.
_VERIFY_REASONS = {
    2: TrustReason.SERVER_CA_UNKNOWN,
    9: TrustReason.SERVER_CERTIFICATE_NOT_YET_VALID,
    10: TrustReason.SERVER_CERTIFICATE_EXPIRED,
    18: TrustReason.SERVER_CA_UNKNOWN,
    19: TrustReason.SERVER_CA_UNKNOWN,
    20: TrustReason.SERVER_CA_UNKNOWN,
    21: TrustReason.SERVER_CA_UNKNOWN,
    62: TrustReason.SERVER_NAME_MISMATCH,
    64: TrustReason.SERVER_NAME_MISMATCH,
}
# Alerts (RFC 8446 section 6.2) by which a server turns down the certificate it was shown.
_ALERT_REASONS = {
    "ALERT_UNKNOWN_CA": TrustReason.CLIENT_CA_UNKNOWN,
    "ALERT_CERTIFICATE_EXPIRED": TrustReason.CLIENT_CERTIFICATE_EXPIRED,
    "ALERT_BAD_CERTIFICATE": TrustReason.CLIENT_CERTIFICATE_REFUSED,
    "ALERT_UNSUPPORTED_CERTIFICATE": TrustReason.CLIENT_CERTIFICATE_REFUSED,
    "ALERT_CERTIFICATE_REVOKED": TrustReason.CLIENT_CERTIFICATE_REFUSED,
    "ALERT_CERTIFICATE_UNKNOWN": TrustReason.CLIENT_CERTIFICATE_REFUSED,
    "ALERT_CERTIFICATE_REQUIRED": TrustReason.CLIENT_CERTIFICATE_REFUSED,
    "ALERT_ACCESS_DENIED": TrustReason.CLIENT_CERTIFICATE_REFUSED,
    "ALERT_DECRYPT_ERROR": TrustReason.CLIENT_CERTIFICATE_REFUSED,
}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, each for the whole step: reaching the server with TLS done, and one request with its answer.

    Name resolution is not covered: the system's resolver has its own limit.
    """

    connect: float = 5.0
    request: float = 10.0


class ConnectionDropped(KmsUnreachable):
    """The server closed or reset the connection before it answered."""


class Channel:
    """One TLS connection that carries KMIP messages, request and answer in turn. Close it after any error."""

    def __init__(self, address: ServerAddress, connection: ssl.SSLSocket) -> None:
        self._address = address
        self._connection = connection
        self._owner = os.getpid()

    @classmethod
    def connect(cls, address: ServerAddress, context: ssl.SSLContext, timeout: float) -> Self:
        """Connect and do the handshake within `timeout` seconds. Raises KmsUnreachable, KmsUntrusted,
        KmsProtocolError.
        """
        deadline = time.monotonic() + timeout
        plain = open_tcp(address, deadline)
        try:
            plain.settimeout(_remaining(deadline))
            return cls(address, context.wrap_socket(plain, server_hostname=address.host))
        except (OSError, ValueError) as exc:
            plain.close()
            raise _named(address, exc) from exc

    def is_stale(self) -> bool:
        """Whether this idle connection is no longer good for a request: closed by the server, or made before
        a fork.

        Reading nothing, without waiting, tells a closed connection from an open one, and takes in the session
        tickets that a TLS 1.3 server sends unasked.
        """
        if self._owner != os.getpid():
            return True
        self._connection.settimeout(0)
        try:
            self._connection.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except OSError:
            return True
        return True  # end of stream, or an answer that nobody asked for

    def exchange(self, request: bytes, timeout: float) -> bytes:
        """Send one message and return the answer, whole, within `timeout` seconds.

        Raises ConnectionDropped when no answer came before the end of the connection, KmsUnreachable after
        the time limit, KmsUntrusted when the server turns down the console's certificate, KmsProtocolError
        for an answer that is no KMIP response message or larger than MAX_MESSAGE_SIZE.
        """
        deadline = time.monotonic() + timeout
        try:
            self._connection.settimeout(_remaining(deadline))
            self._send(request)
            header = self._receive(TTLV_HEADER_SIZE, deadline)
            size = int.from_bytes(header[4:], "big")
            if not header.startswith(_RESPONSE_MESSAGE) or size > MAX_MESSAGE_SIZE:
                raise KmsProtocolError(self._address, "the answer is not a KMIP response message")
            return header + self._receive(size, deadline)
        except OSError as exc:
            error = _named(self._address, exc)
            if isinstance(error, KmsUnreachable):
                error.outcome_unknown = True
            raise error from exc

    def close(self) -> None:
        self._connection.close()

    def _send(self, request: bytes) -> None:
        try:
            self._connection.sendall(request)
        except (ConnectionError, ssl.SSLEOFError):
            # Under TLS 1.3 a server that refuses the console's certificate may have hung up already; its
            # reason then waits to be read and surfaces here as an SSLError.
            self._connection.recv(1)
            raise

    def _receive(self, size: int, deadline: float) -> bytes:
        received = bytearray()
        while len(received) < size:
            self._connection.settimeout(_remaining(deadline))
            chunk = self._connection.recv(size - len(received))
            if not chunk:
                raise ConnectionResetError("end of stream")
            received += chunk
        return bytes(received)


def client_context(address: ServerAddress, tls: ClientTls) -> ssl.SSLContext:
    """Build the context for one server. Raises KmsUntrusted when the console's own PEM cannot be used."""
    context = approved_client_context()
    context.hostname_checks_common_name = False
    # A server's own certificate may be the anchor (pinned to the leaf), not only a root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=tls.ca_pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as exc:
        raise KmsUntrusted(address, TrustReason.TRUST_ANCHOR_UNUSABLE) from exc
    # OpenSSL takes a client key from a file only. This one lives in memory and is gone with its descriptor.
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(tls.certificate_pem.rstrip() + b"\n" + tls.key_pem.reveal())
        # The empty password keeps OpenSSL from asking for one on the terminal when the key is encrypted.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=b"")
    except (ssl.SSLError, ValueError):
        usable = False
    else:
        usable = True
    finally:
        os.close(descriptor)
    if not usable:
        # Raised here so that the library's exception is not even its context.
        raise KmsUntrusted(address, TrustReason.CLIENT_CERTIFICATE_UNUSABLE)
    return context


def open_tcp(address: ServerAddress, deadline: float) -> socket.socket:
    """Connect to the first address of the host that answers; `deadline` is in time.monotonic() seconds."""
    try:
        candidates = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise KmsUnreachable(address, "its name cannot be resolved") from exc
    failure: OSError | None = None
    for position, (family, kind, protocol, _, target) in enumerate(candidates):
        # An address that swallows packets must not use up the time of those after it.
        share = max(deadline - time.monotonic(), 0.001) / (len(candidates) - position)
        candidate = socket.socket(family, kind, protocol)
        try:
            candidate.settimeout(share)
            candidate.connect(target)
            candidate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as exc:
            candidate.close()
            failure = exc
        else:
            return candidate
    if isinstance(failure, TimeoutError):
        raise KmsUnreachable(address, "no answer in time") from failure
    raise KmsUnreachable(address, "refuses the connection" if failure else "its name has no address") from failure


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline passed")
    return left


def _named(address: ServerAddress, exc: OSError | ValueError) -> KmsUnreachable | KmsUntrusted | KmsProtocolError:
    """Give an error of the socket or of TLS its name."""
    match exc:
        case ssl.SSLCertVerificationError():
            reason = _VERIFY_REASONS.get(exc.verify_code, TrustReason.SERVER_CERTIFICATE_INVALID)
            return KmsUntrusted(address, reason)
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return ConnectionDropped(address, "closed the connection")
        case ssl.SSLError():
            for alert, reason in _ALERT_REASONS.items():
                if (exc.reason or "").endswith(alert):
                    return KmsUntrusted(address, reason)
            return KmsProtocolError(address, f"no TLS connection ({_tls_words(exc)})")
        case TimeoutError():
            return KmsUnreachable(address, "no answer in time")
        case ConnectionError():
            return ConnectionDropped(address, "closed the connection")
        case ValueError():
            return KmsProtocolError(address, "its address is not a host name")
        case _:
            return KmsUnreachable(address, f"cannot be reached ({os.strerror(exc.errno or 0).lower()})")


def _tls_words(exc: ssl.SSLError) -> str:
    return (exc.reason or "unknown reason").lower().replace("_", " ")
