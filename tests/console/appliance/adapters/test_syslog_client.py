"""Connections to collectors: who is trusted, what a collector that hangs or hangs up looks like, what is confirmed."""

import socket
import ssl
import threading

import pytest

from console.appliance.adapters import syslog_client
from console.appliance.adapters.syslog_client import Destination, SyslogFailure, SyslogUntrusted, connect
from encryption.engine.secret import Secret
from lab.pki import Authority, Issued
from tests.console.appliance.collector import Collector, server_context, until
from tests.console.appliance.conftest import CollectorMaker
from tests.encryption.adapters.conftest import expired

MESSAGES = [b"<110>1 - - - - - - one", b"<110>1 - - - - - - two"]


def tls(collector: Collector, authority: Authority | None, host: str = "127.0.0.1", **given: object) -> Destination:
    pem = authority.certificate_pem.decode() if authority else ""
    return Destination(host, collector.port, "tls", pem, **given)  # type: ignore[arg-type]


def tcp(collector: Collector) -> Destination:
    return Destination("127.0.0.1", collector.port, "tcp")


def failure(destination: Destination) -> SyslogFailure:
    with pytest.raises(SyslogFailure) as caught:
        link = connect(destination, connect_seconds=5)
        try:
            link.send(MESSAGES)
            until(lambda: link.check())
        finally:
            link.close()
    assert caught.value.hint and str(destination.port) in caught.value.message + str(destination)
    return caught.value


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class TestStreams:
    def test_over_tcp_all_arrives_and_is_confirmed(self, collectors: CollectorMaker) -> None:
        collector = collectors()
        link = connect(tcp(collector))
        link.send(MESSAGES)
        link.check()
        assert link.finish(5) is True
        link.close()
        assert collector.messages == MESSAGES

    def test_over_tls_with_a_verified_collector(
        self, collectors: CollectorMaker, authority: Authority, identity: Issued
    ) -> None:
        collector = collectors(server_context(identity))
        link = connect(tls(collector, authority))
        assert link.description.startswith("TLS 1.3, ")
        link.send(MESSAGES)
        link.check()
        assert link.finish(5) is True
        link.close()
        assert collector.messages == MESSAGES

    def test_a_collectors_own_certificate_may_be_what_is_trusted(
        self, collectors: CollectorMaker, identity: Issued
    ) -> None:
        collector = collectors(server_context(identity))
        destination = Destination("localhost", collector.port, "tls", identity.certificate_pem.decode())
        connect(destination).close()

    def test_with_a_client_certificate(
        self, collectors: CollectorMaker, authority: Authority, identity: Issued
    ) -> None:
        collector = collectors(server_context(identity, clients=authority))
        own = authority.issue("console", client=True)
        link = connect(
            tls(
                collector, authority, client_certificate_pem=own.certificate_pem.decode(),
                client_key=Secret(own.key_pem),
            )
        )  # fmt: skip
        link.send(MESSAGES)
        assert link.finish(5) is True
        link.close()
        assert collector.messages == MESSAGES and "console" in collector.clients[0]

    def test_a_collector_that_hangs_confirms_nothing_and_is_noticed(
        self, collectors: CollectorMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(syslog_client, "SEND_SECONDS", 0.2)
        link = connect(tcp(collectors(hangs=True)))
        link.send(MESSAGES)
        link.check()
        assert link.finish(0.1) is False
        link.close()
        link = connect(tcp(collectors(hangs=True)))
        link.send([b"x" * 100_000])
        until(lambda: link.unread() >= 0)
        with pytest.raises(SyslogFailure) as caught:
            link.send([b"x" * 100_000] * 400)
        assert caught.value.code == "syslog_stalled"
        # All but what a receive buffer takes without a word is known not to have been read.
        assert link.unsent() > 1_000_000 and link.unread() >= link.unsent()
        link.close()

    def test_a_send_that_waits_is_interrupted_from_outside(self, collectors: CollectorMaker) -> None:
        link = connect(tcp(collectors(hangs=True)))
        timer = threading.Timer(0.2, link.interrupt)
        timer.start()
        with pytest.raises(SyslogFailure) as caught:
            link.send([b"x" * 100_000] * 400)
        assert caught.value.code == "syslog_closed"
        timer.join()
        link.close()
        link.interrupt()  # no harm afterwards

    def test_one_that_hangs_up_is_noticed_without_a_word_from_us(self, collectors: CollectorMaker) -> None:
        collector = collectors()
        link = connect(tcp(collector))
        until(lambda: collector.streams)
        collector.hang_up()

        def gone() -> bool:
            try:
                link.check()
            except SyslogFailure as exc:
                return exc.code == "syslog_closed"
            return False

        until(gone)
        assert link.finish(1) in (True, False)
        link.close()


class TestTrust:
    def test_another_ca(
        self, collectors: CollectorMaker, identity: Issued, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        other = Authority.create(tmp_path_factory.mktemp("other"), "Another CA")
        found = failure(tls(collectors(server_context(identity)), other))
        assert isinstance(found, SyslogUntrusted)
        assert (found.code, "CA" in found.message) == ("syslog_server_untrusted", True)

    def test_the_systems_certificates_where_none_are_given(self, collectors: CollectorMaker, identity: Issued) -> None:
        assert failure(tls(collectors(server_context(identity)), None)).code == "syslog_server_untrusted"

    def test_another_name(self, collectors: CollectorMaker, authority: Authority) -> None:
        issued = authority.issue("127.0.0.1", dns=["logs.example"], server=True)
        found = failure(tls(collectors(server_context(issued)), authority))
        assert (found.code, "another address" in found.message) == ("syslog_server_untrusted", True)
        found = failure(tls(collectors(server_context(issued)), authority, host="localhost"))
        assert "another name" in found.message

    def test_an_expired_certificate(self, collectors: CollectorMaker, authority: Authority) -> None:
        found = failure(tls(collectors(server_context(expired(authority, "c", server=True))), authority, "localhost"))
        assert "expired" in found.message

    def test_a_collector_that_asks_for_a_client_certificate(
        self, collectors: CollectorMaker, authority: Authority, identity: Issued
    ) -> None:
        """Under TLS 1.3 the refusal comes after the handshake."""
        found = failure(tls(collectors(server_context(identity, clients=authority)), authority))
        assert isinstance(found, SyslogUntrusted) and found.code == "syslog_client_refused"

    def test_a_collector_without_an_approved_cipher(
        self, collectors: CollectorMaker, authority: Authority, identity: Issued
    ) -> None:
        context = server_context(identity)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
        assert failure(tls(collectors(context), authority)).code == "syslog_tls_failed"

    def test_a_collector_without_tls(self, collectors: CollectorMaker, authority: Authority) -> None:
        destination = tls(collectors(hangs=True), authority)
        with pytest.raises(SyslogFailure) as caught:
            connect(destination, connect_seconds=0.3)
        assert caught.value.code == "syslog_unreachable"

    @pytest.mark.parametrize(
        ("values", "code"),
        [
            ({"trusted_pem": "no pem"}, "syslog_trust_unusable"),
            ({"client_certificate_pem": "x", "client_key": Secret(b"no key")}, "syslog_client_unusable"),
        ],
    )
    def test_what_is_kept_and_cannot_be_used(self, values: dict[str, object], code: str) -> None:
        found = failure(Destination("127.0.0.1", 9, "tls", **values))  # type: ignore[arg-type]
        assert (type(found), found.code) == (SyslogUntrusted, code)
        assert "no key" not in str(found) + repr(found)


class TestReach:
    def test_nobody_listens(self) -> None:
        assert failure(Destination("127.0.0.1", closed_port(), "tcp")).code == "syslog_refused"

    @pytest.mark.parametrize("protocol", ["udp", "tcp", "tls"])
    @pytest.mark.parametrize("host", ["no-such-name.invalid", "x" * 70, "a..b"])
    def test_a_name_that_is_none(self, host: str, protocol: str) -> None:
        assert failure(Destination(host, 514, protocol)).code == "syslog_name_unknown"

    def test_an_address_with_colons_is_in_brackets(self) -> None:
        assert str(Destination("::1", 514, "udp")) == "[::1]:514"


class TestDatagrams:
    def test_one_message_each(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            receiver.settimeout(10)
            link = connect(Destination("127.0.0.1", receiver.getsockname()[1], "udp"))
            link.send(MESSAGES)
            link.check()
            assert [receiver.recv(9000), receiver.recv(9000)] == MESSAGES
            assert (link.finish(1), link.unsent(), link.unread(), link.description) == (False, 0, 0, "UDP")
            link.interrupt()
            with pytest.raises(SyslogFailure):
                link.send([b"x"] * 50)
            link.close()

    def test_a_machine_that_has_nobody_there_says_so(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            port = receiver.getsockname()[1]
        assert failure(Destination("127.0.0.1", port, "udp")).code == "syslog_refused"
