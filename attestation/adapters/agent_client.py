"""Asks the attestation agent of one host for a quote, in Keylime's agent API 2.x, over mutual TLS.

The agent's certificate is self-signed, and trusted is exactly the one that came with its registration: it is compared
byte by byte after the handshake, in which the agent has shown to have its key, and before anything is sent. Names,
dates and issuers in it are NOT looked at. Everything that an agent sends is untrusted; sizes and the whole time are
bounded here, contents are the engine's matter.
"""

import base64
import binascii
import json
import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from typing_extensions import override

from inventory.adapters.tls import client_context

CONNECT_SECONDS: Final = 5.0
# A quote takes a TPM up to a second, and an agent answers one request after the other.
ANSWER_SECONDS: Final = 20.0
# A long IMA list is some tens of megabytes; the boot log's share is small.
MAX_ANSWER_BYTES: Final = 64 << 20
_MAX_HEAD_BYTES: Final = 16 << 10
_MAX_QUOTE_CHARACTERS: Final = 64 << 10
_CHUNK: Final = 1 << 16


class AgentError(Exception):
    """Base: no usable answer came. `code` stays, `message` names what happened, `hint` says what to do."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class AgentUnreachable(AgentError):
    """Nothing answered in time, or it broke off. Nothing is known about the host by this."""


class AgentUntrusted(AgentError):
    """Something answered that is not the registered agent, or that does not trust this console."""


class AgentRefused(AgentError):
    """The agent answered that it cannot do what was asked."""


class AgentMalformed(AgentError):
    """An answer came that is none: this is evidence, and bad."""


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """Where the agent listens; `certificate` is the DER form of what it registered."""

    host: str
    port: int
    certificate: bytes = field(repr=False)
    api_version: str = "2.1"

    @override
    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """By what the console shows itself to agents."""

    certificate_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)

    def context(self) -> ssl.SSLContext:
        """For any number of agents: whom it talks to, `fetch_quote` decides by the pinned certificate."""
        context = client_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the exact certificate is compared instead, see above
        # OpenSSL takes a client key from a file only. This one lives in memory and is gone with its descriptor.
        descriptor = os.memfd_create("client", os.MFD_CLOEXEC)
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(self.certificate_pem.rstrip() + b"\n" + self.key_pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=b"")
        finally:
            os.close(descriptor)
        return context


@dataclass(frozen=True, slots=True)
class AgentAnswer:
    """What came, unverified. `event_log` and `ima` are None where the agent sent none; `hash_alg` names the bank."""

    quote: str = field(repr=False)
    hash_alg: str
    event_log: bytes | None = field(repr=False)
    ima: bytes | None = field(repr=False)
    ima_first_line: int = 0


def fetch_quote(
    address: AgentAddress, context: ssl.SSLContext, *, nonce: str, pcrs: frozenset[int], ima_first_line: int
) -> AgentAnswer:
    """One quote over `pcrs` with the boot log, and the IMA list from that line on.

    `nonce`: letters and digits, at most 64. Raises AgentError.
    """
    mask = sum(1 << pcr for pcr in pcrs)
    query = urlencode({"nonce": nonce, "mask": hex(mask), "partial": "1", "ima_ml_entry": str(ima_first_line)})
    return _read_answer(_get(address, context, f"/v{address.api_version}/quotes/integrity?{query}"))


def _get(address: AgentAddress, context: ssl.SSLContext, path: str) -> bytes:
    deadline = time.monotonic() + CONNECT_SECONDS + ANSWER_SECONDS
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=CONNECT_SECONDS) as plain,
            context.wrap_socket(plain) as connection,
        ):
            if connection.getpeercert(binary_form=True) != address.certificate:
                raise AgentUntrusted(
                    "agent_certificate_changed",
                    f"what answers at {address} has not the certificate that the host's agent registered",
                    "restart the agent on the host so that it registers again; otherwise somebody stands between",
                )
            # HTTP/1.0, so that the body simply ends with the connection: agents serve one request on each.
            request = f"GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: application/json\r\n\r\n"
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(request.encode("ascii"))
            return _body(_read_all(connection, address, deadline), address)
    except TimeoutError as exc:
        raise _silent(address) from exc
    except ssl.SSLError as exc:
        reason = (exc.reason or "").upper()
        if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason or "HANDSHAKE" in reason):
            raise AgentUntrusted(
                "agent_distrusts_console",
                f"the agent at {address} does not accept this console's certificate",
                "give the host this console's CA for agents (trusted_client_ca), and restart the agent",
            ) from exc
        raise AgentUnreachable(
            "agent_tls_failed",
            f"TLS with {address} failed ({exc.reason or 'no reason given'})",
            "look at the agent's log",
        ) from exc
    except (OSError, UnicodeError) as exc:
        raise AgentUnreachable(
            "agent_unreachable",
            f"the agent at {address} cannot be reached ({_os_reason(exc)})",
            "see whether the host is up, its agent runs, and the way to it is open",
        ) from exc


def _os_reason(exc: Exception) -> str:
    return exc.strerror or type(exc).__name__ if isinstance(exc, OSError) else type(exc).__name__


def _silent(address: AgentAddress) -> AgentUnreachable:
    return AgentUnreachable(
        "agent_timeout",
        f"the agent at {address} does not answer in time",
        "see whether its host is overloaded or hangs",
    )


def _read_all(connection: ssl.SSLSocket, address: AgentAddress, deadline: float) -> bytes:
    received = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _silent(address)
        connection.settimeout(left)
        try:
            chunk = connection.recv(_CHUNK)
        except ssl.SSLEOFError:
            chunk = b""  # an agent that closes without saying so; what came is judged by its contents
        if not chunk:
            return bytes(received)
        received += chunk
        if len(received) > MAX_ANSWER_BYTES:
            raise AgentMalformed(
                "agent_answer_too_long", f"the agent at {address} sends more than {MAX_ANSWER_BYTES >> 20} MB",
                "look at the agent, and at the length of the host's IMA list",
            )  # fmt: skip


def _body(received: bytes, address: AgentAddress) -> bytes:
    head, found, body = received.partition(b"\r\n\r\n")
    line = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not received:
        raise AgentUnreachable(
            "agent_closed", f"the agent at {address} closed the connection without an answer", "look at the agent's log"
        )
    if not found or len(head) > _MAX_HEAD_BYTES or not line[0].startswith(b"HTTP/1.") or len(line) < 2:
        raise AgentMalformed("agent_answer_malformed", f"{address} does not answer in HTTP", "look at what runs there")
    status = line[1].decode("ascii", "replace")
    if status != "200":
        raise AgentRefused(
            "agent_refused",
            f"the agent at {address} answers HTTP {status if status.isdigit() else '?'} instead of a quote",
            "look at the agent's log: its TPM may be busy or locked",
        )
    return body


def _read_answer(body: bytes) -> AgentAnswer:
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise _malformed("JSON") from exc
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, dict):
        raise _malformed("an object named results")
    quote, hash_alg = results.get("quote"), results.get("hash_alg", "sha256")
    if not isinstance(quote, str) or not isinstance(hash_alg, str) or len(quote) > _MAX_QUOTE_CHARACTERS:
        raise _malformed("a quote")
    if not quote.isascii() or not quote.isprintable():  # it is kept as text, and a database takes no NUL
        raise _malformed("a quote in base64")
    first_line = results.get("ima_measurement_list_entry", 0)
    if not isinstance(first_line, int) or isinstance(first_line, bool) or not 0 <= first_line < 1 << 31:
        raise _malformed("the number of the IMA list's first line")
    ima = results.get("ima_measurement_list")
    log = results.get("mb_measurement_list")
    if not isinstance(ima, str | None) or not isinstance(log, str | None):
        raise _malformed("texts of boot log and IMA list")
    try:
        event_log = None if not log else base64.b64decode(log, validate=True)
        lines = None if ima is None else ima.encode()
    except (binascii.Error, ValueError) as exc:
        raise _malformed("a boot log in base64") from exc
    return AgentAnswer(quote, hash_alg[:16], event_log, lines, first_line)


def _malformed(expected: str) -> AgentMalformed:
    return AgentMalformed(
        "agent_answer_malformed", f"the agent's answer is malformed: expected {expected}", "update or repair the agent"
    )
