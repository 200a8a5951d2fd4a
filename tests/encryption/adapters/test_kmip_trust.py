"""Both directions of trust, each missing in each way; a server that is gone, hangs, drops or talks nonsense."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encryption.adapters.kmip_client import KmipClient
from encryption.adapters.kmip_tls import Timeouts
from encryption.adapters.server_certificate import fetch_server_certificate
from encryption.engine.key_server import (
    ClientTls,
    KmsProtocolError,
    KmsUnreachable,
    KmsUntrusted,
    ServerAddress,
    TrustDirection,
    TrustReason,
)
from encryption.engine.secret import Secret
from lab import kms
from lab.pki import Authority, Issued
from tests.encryption.adapters.conftest import RunningKms, client_tls, expired
from tests.encryption.adapters.fake_server import fake_server, general_failure, read_request, relay, tls_context

QUICK = Timeouts(0.5, 0.5)


@pytest.fixture(scope="session")
def fake_identity(other_ca: Authority) -> Issued:
    return other_ca.issue("fake", dns=["localhost"], ips=["127.0.0.1"], server=True)


@pytest.fixture(scope="session")
def fake_tls(other_ca: Authority) -> ClientTls:
    return client_tls(other_ca.certificate_pem, other_ca.issue("console", client=True))


def wait(release: threading.Event) -> None:
    release.wait(10)


def refused(client: KmipClient) -> KmsUntrusted:
    with client, pytest.raises(KmsUntrusted) as caught:
        client.query()
    assert caught.value.hint
    return caught.value


def test_server_of_an_unknown_ca(kms_server: RunningKms, other_ca: Authority) -> None:
    tls = client_tls(other_ca.certificate_pem, kms.issue_client(kms_server.layout, "console"))
    error = refused(KmipClient(ServerAddress("127.0.0.1", kms_server.port), tls))
    assert error.code == "kms_server_ca_unknown"
    assert error.direction is TrustDirection.CONSOLE_TRUSTS_SERVER


@pytest.mark.parametrize("host", ["127.0.0.2", "ip6-localhost.invalid"])
def test_server_under_another_name(kms_server: RunningKms, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever the name resolves to, the right server answers; only the name is wrong.
    target = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", kms_server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: target)
    assert refused(kms_server.client(host=host)).code == "kms_server_name_mismatch"


def test_a_common_name_is_no_server_name(tmp_path: Path, other_ca: Authority, fake_tls: ClientTls) -> None:
    unnamed = other_ca.issue("localhost", dns=["elsewhere.example"], server=True)
    with fake_server(tls_context(tmp_path, unnamed), lambda *_: None) as address:
        error = refused(KmipClient(address, fake_tls))
    assert error.reason is TrustReason.SERVER_NAME_MISMATCH


def test_expired_server(tmp_path: Path, other_ca: Authority, fake_tls: ClientTls) -> None:
    context = tls_context(tmp_path, expired(other_ca, "fake", server=True))
    with fake_server(context, lambda *_: None) as address:
        assert refused(KmipClient(address, fake_tls)).code == "kms_server_certificate_expired"


def test_pinned_to_the_server_certificate(
    tmp_path: Path, other_ca: Authority, fake_identity: Issued, fake_tls: ClientTls
) -> None:
    pinned = ClientTls(fake_identity.certificate_pem, fake_tls.certificate_pem, fake_tls.key_pem)
    with (
        fake_server(tls_context(tmp_path, fake_identity), lambda *_: None) as address,
        KmipClient(address, pinned) as client,
        pytest.raises(KmsUnreachable),
    ):
        client.query()  # trusted; this server just hangs up
    twin = other_ca.issue("fake", dns=["localhost"], server=True)
    with fake_server(tls_context(tmp_path, twin), lambda *_: None) as address:
        assert refused(KmipClient(address, pinned)).code == "kms_server_ca_unknown"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_of_an_unknown_ca(
    tmp_path: Path, kms_server: RunningKms, fake_identity: Issued, fake_tls: ClientTls, version: ssl.TLSVersion
) -> None:
    context = tls_context(tmp_path, fake_identity, client_ca=kms_server.ca_pem)
    context.minimum_version = context.maximum_version = version
    with fake_server(context, lambda *_: None) as address:
        error = refused(KmipClient(address, fake_tls))
    assert error.code == "kms_client_ca_unknown"
    assert error.direction is TrustDirection.SERVER_TRUSTS_CONSOLE


def test_real_server_refuses_a_strange_client(kms_server: RunningKms, other_ca: Authority) -> None:
    tls = client_tls(kms_server.ca_pem, other_ca.issue("stranger", client=True))
    error = refused(KmipClient(ServerAddress("localhost", kms_server.port), tls))
    assert error.code == "kms_client_ca_unknown"


def test_real_server_refuses_an_expired_client(kms_server: RunningKms) -> None:
    authority = Authority.create(kms_server.layout.ca, kms.CA_NAME)
    tls = client_tls(kms_server.ca_pem, expired(authority, "console"))
    error = refused(KmipClient(ServerAddress("127.0.0.1", kms_server.port), tls))
    assert error.code == "kms_client_certificate_expired"


def test_trust_in_a_client_takes_effect_at_once(kms_server: RunningKms, tmp_path: Path) -> None:
    console_ca = Authority.create(tmp_path, "Console CA")
    tls = client_tls(kms_server.ca_pem, console_ca.issue("console 2", client=True))
    address = ServerAddress("127.0.0.1", kms_server.port)
    refused(KmipClient(address, tls))
    kms.trust_client(kms_server.layout, "console-2", console_ca.certificate_pem)
    with KmipClient(address, tls) as client:
        assert client.query().vendor


def test_unusable_pem_is_refused_before_connecting(kms_server: RunningKms, other_ca: Authority) -> None:
    good = kms_server.tls()
    stranger = other_ca.issue("stranger", client=True)
    address = ServerAddress("127.0.0.1", 1)
    cases = [
        (ClientTls(b"no pem", good.certificate_pem, good.key_pem), "kms_trust_anchor_unusable"),
        (ClientTls("grün".encode(), good.certificate_pem, good.key_pem), "kms_trust_anchor_unusable"),
        (ClientTls(good.ca_pem, b"no pem", good.key_pem), "kms_client_certificate_unusable"),
        (ClientTls(good.ca_pem, good.certificate_pem, Secret(b"no pem")), "kms_client_certificate_unusable"),
        (
            ClientTls(good.ca_pem, good.certificate_pem, Secret(stranger.key_pem)),
            "kms_client_certificate_unusable",
        ),
    ]
    for tls, code in cases:
        with pytest.raises(KmsUntrusted) as caught:
            KmipClient(address, tls)
        assert caught.value.code == code


def test_the_client_key_leaves_no_descriptor(kms_server: RunningKms) -> None:
    def memory_files() -> int:
        links = []
        for entry in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{entry}"))
            except FileNotFoundError:
                continue
        return sum("memfd:client" in link for link in links)

    with kms_server.client() as client:
        client.query()
        assert memory_files() == 0


def test_server_down(kms_server: RunningKms) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with (
        KmipClient(ServerAddress("127.0.0.1", port), kms_server.tls()) as client,
        pytest.raises(KmsUnreachable) as caught,
    ):
        client.query()
    assert not caught.value.outcome_unknown


def test_server_that_accepts_and_says_nothing(kms_server: RunningKms) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = ServerAddress("127.0.0.1", silent.getsockname()[1])
        with KmipClient(address, kms_server.tls(), QUICK) as client, pytest.raises(KmsUnreachable) as caught:
            client.query()
        assert "no answer in time" in str(caught.value)
        with pytest.raises(KmsUnreachable):
            fetch_server_certificate(address, timeout=0.5)


def test_server_that_hangs_after_the_request(tmp_path: Path, fake_identity: Issued, fake_tls: ClientTls) -> None:
    release = threading.Event()
    with fake_server(tls_context(tmp_path, fake_identity), lambda *_: wait(release)) as address:
        with KmipClient(address, fake_tls, QUICK) as client, pytest.raises(KmsUnreachable) as caught:
            client.create_key(name="x")
        release.set()
    assert caught.value.outcome_unknown


def test_server_that_trickles_is_cut_off(tmp_path: Path, fake_identity: Issued, fake_tls: ClientTls) -> None:
    stop = threading.Event()

    def trickle(connection: ssl.SSLSocket, _number: int) -> None:
        connection.sendall(b"\x42\x00\x7b\x01\x00\x00\x10\x00")
        while not stop.wait(0.1):
            connection.sendall(b"\x00")

    with fake_server(tls_context(tmp_path, fake_identity), trickle) as address:
        with KmipClient(address, fake_tls, QUICK) as client, pytest.raises(KmsUnreachable):
            client.query()
        stop.set()


def test_connection_dropped_while_idle_is_replaced(kms_layout: kms.KmsLayout, kms_server: RunningKms) -> None:
    with (
        relay(kms_server.port) as (port, cut),
        KmipClient(ServerAddress("127.0.0.1", port), kms_server.tls()) as client,
    ):
        first = client.create_key(name=f"idle {os.urandom(4).hex()}")
        cut()
        name = f"idle {os.urandom(4).hex()}"
        second = client.create_key(name=name)
        assert second != first
        assert client.locate(name=name) == (second,)


@pytest.mark.parametrize(("create", "expected"), [(True, 1), (False, 2)])
def test_only_what_changes_nothing_is_sent_again(
    tmp_path: Path, fake_identity: Issued, fake_tls: ClientTls, create: bool, expected: int
) -> None:
    received: list[int] = []

    def handle(connection: ssl.SSLSocket, number: int) -> None:
        if number == 0:
            read_request(connection)
            connection.sendall(general_failure())
        if read_request(connection):  # and hang up without an answer
            received.append(number)

    with (
        fake_server(tls_context(tmp_path, fake_identity), handle) as address,
        KmipClient(address, fake_tls, Timeouts(5, 5)) as client,
    ):
        with pytest.raises(KmsProtocolError, match="general failure"):
            client.locate(name="x")
        with pytest.raises(KmsUnreachable) as caught:
            if create:
                client.create_key(name="x")
            else:
                client.locate(name="x")
    assert len(received) == expected
    assert caught.value.outcome_unknown


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), framed=st.booleans())
def test_garbage_is_a_protocol_error(
    body: bytes, framed: bool, tmp_path: Path, fake_identity: Issued, fake_tls: ClientTls
) -> None:
    answer = b"\x42\x00\x7b\x01" + len(body).to_bytes(4, "big") + body if framed else b"HTTP/1.1 " + body

    def handle(connection: ssl.SSLSocket, _number: int) -> None:
        read_request(connection)
        connection.sendall(answer)

    with (
        fake_server(tls_context(tmp_path, fake_identity), handle) as address,
        KmipClient(address, fake_tls, Timeouts(5, 5)) as client,
        pytest.raises(KmsProtocolError) as caught,
    ):
        client.get_key("1")
    assert caught.value.__cause__ is None


def test_a_size_beyond_reason_is_refused_unread(tmp_path: Path, fake_identity: Issued, fake_tls: ClientTls) -> None:
    def handle(connection: ssl.SSLSocket, _number: int) -> None:
        read_request(connection)
        connection.sendall(b"\x42\x00\x7b\x01\xff\xff\xff\xff")

    with (
        fake_server(tls_context(tmp_path, fake_identity), handle) as address,
        KmipClient(address, fake_tls) as client,
        pytest.raises(KmsProtocolError),
    ):
        client.query()


def test_plain_tcp_server(kms_server: RunningKms) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        address = ServerAddress("127.0.0.1", listener.getsockname()[1])
        with KmipClient(address, kms_server.tls()) as client, pytest.raises(KmsProtocolError):
            client.query()
        thread.join(10)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_fetch_without_a_client_certificate(
    tmp_path: Path, kms_server: RunningKms, fake_identity: Issued, version: ssl.TLSVersion
) -> None:
    context = tls_context(tmp_path, fake_identity, client_ca=kms_server.ca_pem)
    context.minimum_version = context.maximum_version = version
    with fake_server(context, lambda *_: None) as address:
        shown = fetch_server_certificate(address)
    assert shown.pem == fake_identity.certificate_pem
    assert shown.names == ("localhost", "127.0.0.1")
    assert "CN=Another CA" in shown.issuer
    assert len(shown.fingerprint) == 64


def test_fetch_brings_the_chain(kms_server: RunningKms) -> None:
    shown = fetch_server_certificate(ServerAddress("127.0.0.1", kms_server.port))
    assert shown.pem == kms_server.layout.server_certificate.read_bytes()
    assert shown.issuers_pem == (kms_server.ca_pem,)
    assert shown.not_before < shown.not_after
