"""Connections to log collectors: UDP (RFC 5426), TCP (RFC 6587, octets counted), TLS (RFC 5425). No database in here.

A TLS connection is made only when all of these hold:
1. TLS 1.2 or newer; under 1.2 only ECDHE with AES-GCM.
2. The collector's chain ends at the given certificates; where none are given, at the system's.
3. A DNS or IP alternative name matches the address. The common name is not read (RFC 9525 section 2).
4. The console's certificate, where there is one, is offered. Whether the collector takes it shows, under TLS 1.3, only
   after the handshake: in `check` or `finish`.

Not checked: revocation. Not given by any of the three: that what was written was stored; see `engine/sent_window.py`.
"""

import fcntl
import os
import socket
import ssl
import struct
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from typing_extensions import override

from console.appliance.engine.syslog_message import octet_counted
from encryption.engine.secret import Secret
from inventory.adapters.tls import client_context

CONNECT_SECONDS: Final = 10.0
SEND_SECONDS: Final = 20.0
"""Without a single octet taken: then the collector hangs."""
UNKNOWN_WINDOW: Final = 8 * 1024 * 1024
"""Taken for what may lie unread where the kernel does not tell the collector's window (before Linux 5.4)."""
_SND_WND_OFFSET: Final = 228  # of tcpi_snd_wnd in struct tcp_info (linux/tcp.h)
# UDP has nothing that would slow a sender down: not more at once than a receive buffer holds.
_DATAGRAMS_AT_ONCE: Final = 50
_DATAGRAM_PAUSE_SECONDS: Final = 0.02
_MOST_READS: Final = 16

# X509_V_ERR_* of OpenSSL, as SSLCertVerificationError.verify_code gives them.
_VERIFY_FAILURES: Final = {
    2: "the CA that issued its certificate is not trusted",
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "it shows a self-signed certificate that is not trusted",
    19: "the CA that issued its certificate is not trusted",
    20: "the CA that issued its certificate is not trusted",
    21: "the CA that issued its certificate is not trusted",
    62: "its certificate is for another name",
    64: "its certificate is for another address",
}


class SyslogFailure(Exception):
    """A collector that cannot be used now: a stable `code`, a lower-case `message`, and what to do."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class SyslogUntrusted(SyslogFailure):
    """Trust is missing, in one direction or the other."""


@dataclass(frozen=True, slots=True)
class Destination:
    """`protocol`: udp, tcp or tls. `trusted_pem` empty: the system's certificates. `client_key`: PKCS #8 PEM."""

    host: str
    port: int
    protocol: str
    trusted_pem: str = ""
    client_certificate_pem: str = ""
    client_key: Secret | None = field(default=None, repr=False)

    @override
    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Link(Protocol):
    """A connection to one collector. Everything but `interrupt` is for one thread and raises SyslogFailure."""

    description: str

    def send(self, messages: Sequence[bytes]) -> None:
        """Writes messages of RFC 5424, in order."""

    def check(self) -> None:
        """Notices, without waiting, that the collector has closed the connection or refuses us."""

    def unsent(self) -> int:
        """Octets that were written and that the collector's machine has not confirmed."""

    def unread(self) -> int:
        """Octets that were written and may not have been read, as far as the connection tells."""

    def finish(self, seconds: float) -> bool:
        """Ends the stream; whether the collector has read to the end of it. `close` is still to be called."""

    def interrupt(self) -> None:
        """From another thread: ends a `send` that waits."""

    def close(self) -> None: ...


def connect(destination: Destination, *, connect_seconds: float = CONNECT_SECONDS) -> Link:
    """Reaches the collector within `connect_seconds`, name resolution not counted. Raises SyslogFailure."""
    deadline = time.monotonic() + connect_seconds
    if destination.protocol == "udp":
        return DatagramLink(destination, _reach(destination, socket.SOCK_DGRAM, deadline))
    context = _context(destination) if destination.protocol == "tls" else None
    plain = _reach(destination, socket.SOCK_STREAM, deadline)
    if context is None:
        return StreamLink(destination, plain)
    try:
        plain.settimeout(max(deadline - time.monotonic(), 0.001))
        return StreamLink(destination, context.wrap_socket(plain, server_hostname=destination.host))
    except (OSError, ValueError) as exc:
        plain.close()
        raise _named(destination, exc) from exc


class StreamLink:
    """TCP, with TLS or without."""

    def __init__(self, destination: Destination, connection: socket.socket) -> None:
        self._destination = destination
        self._connection = connection
        # A second descriptor of the same connection: TLS objects are not for two threads, a shutdown below them is.
        self._below = socket.socket(fileno=os.dup(connection.fileno()))
        self._widest = 0
        self.description = "TCP"
        if isinstance(connection, ssl.SSLSocket):
            cipher = connection.cipher()
            self.description = f"{(connection.version() or '').replace('v', ' ')}, {cipher[0] if cipher else ''}"

    def send(self, messages: Sequence[bytes]) -> None:
        left = memoryview(octet_counted(messages))
        try:
            self._connection.settimeout(SEND_SECONDS)
            while left:
                left = left[self._connection.send(left) :]
        except TimeoutError as exc:
            raise SyslogFailure(
                "syslog_stalled", f"{self._destination} takes no more messages",
                "it accepted the connection and does not read: look whether the collector works",
            ) from exc  # fmt: skip
        except OSError as exc:
            self._raise_alert()
            raise _named(self._destination, exc) from exc

    def check(self) -> None:
        try:
            self._connection.settimeout(0)
            # Collectors answer nothing; under TLS 1.3 session tickets and refusals are read here.
            for _ in range(_MOST_READS):
                if not self._connection.recv(4096):
                    raise _closed(self._destination)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as exc:
            raise _named(self._destination, exc) from exc

    def unsent(self) -> int:
        queue: bytes = fcntl.ioctl(self._below.fileno(), termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ, tcp(7)
        return int(struct.unpack("=i", queue)[0])

    def unread(self) -> int:
        """A window that is narrower than it was holds what was not read; what was not sent comes on top."""
        facts = self._below.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        if len(facts) < _SND_WND_OFFSET + 4:
            return UNKNOWN_WINDOW
        window = int(struct.unpack_from("=I", facts, _SND_WND_OFFSET)[0])
        self._widest = max(self._widest, window)
        return self.unsent() + self._widest - window

    def finish(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        try:
            self._connection.settimeout(max(seconds, 0.001))
            plain = self._connection
            if isinstance(plain, ssl.SSLSocket):
                plain = plain.unwrap()  # close_notify both ways (RFC 5425 section 4.4)
            plain.settimeout(max(deadline - time.monotonic(), 0.001))
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(4096):
                pass
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return True  # closed without a close_notify of its own: it had read ours
        except (TimeoutError, ConnectionError):
            return False
        except OSError as exc:
            failure = _named(self._destination, exc)
            if isinstance(failure, SyslogUntrusted):
                raise failure from exc
            return False
        return True

    def interrupt(self) -> None:
        try:
            self._below.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed already

    def close(self) -> None:
        self._below.close()
        self._connection.close()

    def _raise_alert(self) -> None:
        """A collector that refuses our certificate has hung up, with its reason left to be read."""
        try:
            self._connection.settimeout(0)
            self._connection.recv(1)
        except OSError as exc:
            failure = _named(self._destination, exc)
            if isinstance(failure, SyslogUntrusted):
                raise failure from exc


class DatagramLink:
    """UDP: whatever is lost on the way, or by a receiver that is too slow, nobody learns of."""

    description = "UDP"

    def __init__(self, destination: Destination, connection: socket.socket) -> None:
        self._destination = destination
        self._connection = connection
        self._interrupted = False

    def send(self, messages: Sequence[bytes]) -> None:
        try:
            self._connection.settimeout(SEND_SECONDS)
            for number, message in enumerate(messages, 1):
                self._connection.send(message)
                if number % _DATAGRAMS_AT_ONCE == 0:
                    time.sleep(_DATAGRAM_PAUSE_SECONDS)
                    if self._interrupted:
                        raise _closed(self._destination)
        except OSError as exc:
            raise _named(self._destination, exc) from exc

    def check(self) -> None:
        """A machine that has nobody at that port says so (ICMP), some time after a message."""
        try:
            self._connection.settimeout(0)
            self._connection.recv(1)
        except BlockingIOError:
            return
        except OSError as exc:
            raise _named(self._destination, exc) from exc

    def unsent(self) -> int:
        return 0

    def unread(self) -> int:
        return 0

    def finish(self, seconds: float) -> bool:
        return False

    def interrupt(self) -> None:
        self._interrupted = True

    def close(self) -> None:
        self._connection.close()


def _context(destination: Destination) -> ssl.SSLContext:
    context = client_context()
    context.hostname_checks_common_name = False
    if destination.trusted_pem:
        # A collector's own certificate may be the anchor, not only a root.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(cadata=destination.trusted_pem)
        except (ssl.SSLError, ValueError) as exc:
            raise SyslogUntrusted(
                "syslog_trust_unusable", f"the certificates trusted for {destination} cannot be used",
                "edit the target and paste them again",
            ) from exc  # fmt: skip
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if destination.client_key is not None and not _load_client(context, destination):
        # Raised here so that the library's exception is not even its context.
        raise SyslogUntrusted(
            "syslog_client_unusable", f"the client certificate for {destination} cannot be used", "upload it again"
        )
    return context


def _load_client(context: ssl.SSLContext, destination: Destination) -> bool:
    """OpenSSL takes a client key from a file only. This one lives in memory and is gone with its descriptor."""
    if destination.client_key is None:
        return False
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(destination.client_certificate_pem.encode().rstrip() + b"\n" + destination.client_key.reveal())
        # The empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=b"")
    except (ssl.SSLError, ValueError):
        return False
    finally:
        os.close(descriptor)
    return True


def _reach(destination: Destination, kind: socket.SocketKind, deadline: float) -> socket.socket:
    """The first address of the name that answers; for UDP, the first one."""
    try:
        candidates = socket.getaddrinfo(destination.host, destination.port, type=kind)
    except (OSError, UnicodeError) as exc:
        raise SyslogFailure(
            "syslog_name_unknown", f"the name {destination.host} cannot be resolved",
            "correct the name, or look at the name service of the console's machine",
        ) from exc  # fmt: skip
    failure: OSError = OSError()
    for position, (family, found, protocol, _, address) in enumerate(candidates):
        # An address that swallows packets must not use up the time of those after it.
        share = max(deadline - time.monotonic(), 0.001) / (len(candidates) - position)
        candidate = socket.socket(family, found, protocol)
        try:
            candidate.settimeout(share)
            candidate.connect(address)
            if kind == socket.SOCK_STREAM:
                _watch_idle(candidate)
        except OSError as exc:
            candidate.close()
            failure = exc
        else:
            return candidate
    raise _named(destination, failure) from failure


def _watch_idle(connection: socket.socket) -> None:
    """A collector whose machine has gone without a word is noticed within about a minute, also when nothing is sent."""
    for option, value in (
        (socket.TCP_KEEPIDLE, 30),
        (socket.TCP_KEEPINTVL, 10),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_NODELAY, 1),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _closed(destination: Destination) -> SyslogFailure:
    return SyslogFailure(
        "syslog_closed", f"{destination} closed the connection",
        "look into the collector's own log; does it expect another protocol at this port?",
    )  # fmt: skip


def _named(destination: Destination, exc: OSError | ValueError) -> SyslogFailure:
    """Gives an error of the socket or of TLS its name."""
    match exc:
        case ssl.SSLCertVerificationError():
            why = _VERIFY_FAILURES.get(exc.verify_code, "its certificate is not valid")
            return SyslogUntrusted(
                "syslog_server_untrusted", f"{destination} is not trusted: {why}",
                "paste the CA that issued its certificate, or have one issued for this very name",
            )  # fmt: skip
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return _closed(destination)
        case ssl.SSLError():
            reason = (exc.reason or "unknown reason").lower().replace("_", " ")
            if "alert" in reason and any(word in reason for word in ("certificate", "unknown ca", "access denied")):
                return SyslogUntrusted(
                    "syslog_client_refused", f"{destination} refuses the console's certificate ({reason})",
                    "upload a client certificate that the collector trusts",
                )  # fmt: skip
            return SyslogFailure(
                "syslog_tls_failed", f"no TLS connection to {destination} ({reason})",
                "does the collector speak TLS 1.2 or newer at this port?",
            )  # fmt: skip
        case TimeoutError():
            return SyslogFailure(
                "syslog_unreachable", f"{destination} does not answer", "look at the network and its firewalls"
            )
        case ConnectionRefusedError():
            return SyslogFailure(
                "syslog_refused", f"{destination} refuses the connection", "does the collector run, at this port?"
            )
        case ConnectionError():
            return _closed(destination)
        case ValueError():
            return SyslogFailure(
                "syslog_name_unknown", f"{destination.host[:80]!r} is no host name", "correct the name"
            )
        case _:
            reason = os.strerror(exc.errno).lower() if exc.errno else "unknown reason"
            return SyslogFailure(
                "syslog_unreachable", f"{destination} cannot be reached ({reason})",
                "look at the network and its firewalls",
            )  # fmt: skip
