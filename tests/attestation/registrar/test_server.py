"""The registrar's listener against clients that are slow, greedy, or speak no HTTP."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from attestation.registrar import server
from attestation.registrar.protocol import MAX_BODY_BYTES, Answer, Request
from attestation.registrar.rate_limit import MAX_ADDRESSES, RateLimit
from attestation.registrar.server import Registrar

Talk = Callable[[int], Coroutine[Any, Any, Any]]


def echo(request: Request) -> Answer:
    return Answer(200, "Success", {"method": request.method, "path": request.path, "size": len(request.body)})


def with_registrar(registrar: Registrar, talk: Talk) -> Any:
    async def run() -> Any:
        listening = await registrar.listen("127.0.0.1", 0)
        async with listening:
            return await talk(listening.sockets[0].getsockname()[1])

    return asyncio.run(run())


async def ask(port: int, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def status(raw: bytes, registrar: Registrar | None = None) -> int:
    found: bytes = with_registrar(registrar or Registrar(echo), lambda port: ask(port, raw))
    return int(found.split(b" ", 2)[1])


def test_a_request_without_content_type_as_python_agents_send_it() -> None:
    raw = b"POST /v2.1/agents/a?x=1 HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}"
    found = with_registrar(Registrar(echo), lambda port: ask(port, raw))
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close" in head
    assert b"set-cookie" not in head.lower()
    assert json.loads(body)["results"] == {"method": "POST", "path": "/v2.1/agents/a", "size": 2}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 200),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), 413),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * server.MAX_HEAD_BYTES, 431),
    ],
)
def test_requests(raw: bytes, expected: int) -> None:
    assert status(raw) == expected


def test_slow_clients_are_dropped_and_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.3)

    async def talk(port: int) -> list[bytes]:
        slow = [asyncio.create_task(ask(port, b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")) for _ in range(8)]
        quick = await ask(port, b"GET / HTTP/1.1\r\n\r\n")
        assert not any(task.done() for task in slow)
        return [quick, *await asyncio.gather(*slow)]

    quick, *slow = with_registrar(Registrar(echo), talk)
    assert quick.startswith(b"HTTP/1.1 200")
    assert set(slow) == {b""}


def test_an_address_that_opens_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS_OF_ADDRESS", 2)

    async def talk(port: int) -> bytes:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        refused = await ask(port, b"GET / HTTP/1.1\r\n\r\n")
        for _, writer in held:
            writer.close()
        return refused

    assert with_registrar(Registrar(echo), talk) == b""


def test_too_many_requests_of_an_address() -> None:
    async def talk(port: int) -> list[bytes]:
        return [await ask(port, b"GET / HTTP/1.1\r\n\r\n") for _ in range(3)]

    registrar = Registrar(echo, rate=RateLimit(burst=2, per_minute=0.001))
    first, second, third = with_registrar(registrar, talk)
    assert first.startswith(b"HTTP/1.1 200") and second.startswith(b"HTTP/1.1 200")
    assert third.startswith(b"HTTP/1.1 429") and b"Retry-After" in third


def test_a_failure_ends_one_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    def fails(request: Request) -> Answer:
        if request.path == "/bad":
            raise RuntimeError("planted")
        return echo(request)

    async def talk(port: int) -> list[bytes]:
        return [await ask(port, b"GET /%s HTTP/1.1\r\n\r\n" % path) for path in (b"bad", b"good")]

    with caplog.at_level(logging.ERROR):
        bad, good = with_registrar(Registrar(fails), talk)
    assert bad == b""
    assert good.startswith(b"HTTP/1.1 200")


def test_rate_limit_refills_and_forgets() -> None:
    rate = RateLimit(burst=2, per_minute=60)
    assert [rate.allows("192.0.2.1", now=0.0) for _ in range(3)] == [True, True, False]
    assert rate.allows("192.0.2.2", now=0.0)
    assert rate.allows("192.0.2.1", now=1.0)
    assert not rate.allows("192.0.2.1", now=1.0)
    assert rate.allows("2001:db8::1", now=0.0) and rate.allows("2001:db8::2", now=0.0)
    assert not rate.allows("2001:db8::3", now=0.0)
    for number in range(MAX_ADDRESSES):
        rate.allows(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", now=2.0)
    assert len(rate._buckets) == MAX_ADDRESSES
