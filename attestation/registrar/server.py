"""The registrar's listener: as much HTTP/1.1 as agents speak, with a bound on everything.

One request a connection. Slow clients cost a coroutine and no thread: only whole requests of addresses below their rate
go on to the operations, which read and write the database in a few threads. It sets no cookies, reads no query and
serves no file.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus

from attestation.registrar.protocol import MAX_BODY_BYTES, Answer, Request
from attestation.registrar.rate_limit import RateLimit

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 8 << 10
REQUEST_SECONDS = 10.0
ANSWER_SECONDS = 30.0
MAX_CONNECTIONS = 512
MAX_CONNECTIONS_OF_ADDRESS = 32
MAX_WAITING = 64
THREADS = 4
# Registering takes an agent three requests. Many hosts behind one address (NAT) that boot at once still get through.
BURST, PER_MINUTE = 120, 60.0
_REQUEST_LINE = re.compile(rb"(?P<method>[A-Z]{1,10}) (?P<path>/[!-~]{0,1000}) HTTP/1\.[01]")
_HEADER = re.compile(rb"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*(?P<value>[ -~\t]*)")

Handler = Callable[[Request], Answer]


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    path: str
    length: int


class _Refused(Exception):
    """An answer that the operations were not needed for."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.answer = Answer(status, text)


class Registrar:
    """`handler` runs in threads. What it raises is logged by asyncio, and ends that one connection unanswered."""

    def __init__(self, handler: Handler, *, rate: RateLimit | None = None) -> None:
        self._handler = handler
        self._rate = rate or RateLimit(burst=BURST, per_minute=PER_MINUTE)
        self._connections: Counter[str] = Counter()
        self._waiting = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="registrar")

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Raises OSError where the address is taken. Port 0 takes a free one."""
        return await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES, backlog=256)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        source = str(peer[0]) if peer else ""
        try:
            full = self._connections.total() >= MAX_CONNECTIONS
            if full or self._connections[source] >= MAX_CONNECTIONS_OF_ADDRESS:
                return  # closed without a word: whoever opens so many gets none
            self._connections[source] += 1
            try:
                await self._answer_one(reader, writer, source)
            finally:
                self._connections[source] -= 1
                if not self._connections[source]:
                    del self._connections[source]
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            log.debug("%s went before it was answered", source)
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> None:
        label = "unreadable request"
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await _read_head(reader)
                label = f"{head.method} {head.path[:200]}"
                if not self._rate.allows(source, now=time.monotonic()):
                    raise _Refused(429, "too many requests from this address; try again in a minute")
                body = await reader.readexactly(head.length)
            answer = await self._handled(Request(head.method, head.path, body, source))
        except _Refused as exc:
            answer = exc.answer
        # Only what matched printable ASCII is logged.
        log.info("%s %s: %d", source, label, answer.status)
        async with asyncio.timeout(ANSWER_SECONDS):
            writer.write(_encoded(answer))
            await writer.drain()

    async def _handled(self, request: Request) -> Answer:
        if self._waiting >= MAX_WAITING:
            return Answer(503, "the registrar is busy; try again")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._handler, request)
        finally:
            self._waiting -= 1


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _Refused(431, f"at most {MAX_HEAD_BYTES} bytes of head") from None
    lines = raw[:-4].split(b"\r\n")
    first = _REQUEST_LINE.fullmatch(lines[0])
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        match = _HEADER.fullmatch(line)
        if match is None or (match["name"].lower() == b"content-length" and b"content-length" in headers):
            raise _Refused(400, "malformed head")
        headers[match["name"].lower()] = match["value"].strip()
    if first is None:
        raise _Refused(400, "malformed request line")
    if b"transfer-encoding" in headers:
        raise _Refused(411, "a body needs its length (Content-Length)")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 9:
        raise _Refused(400, "malformed Content-Length")
    if int(length) > MAX_BODY_BYTES:
        raise _Refused(413, f"at most {MAX_BODY_BYTES} bytes")
    path = first["path"].decode("ascii").partition("?")[0]
    return _Head(first["method"].decode("ascii"), path, int(length))


def _encoded(answer: Answer) -> bytes:
    body = answer.body()
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if answer.status in (429, 503):
        lines.append("Retry-After: 60")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
