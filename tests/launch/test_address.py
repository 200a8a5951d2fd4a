"""Where the console listens: loopback in clear, everything else with HTTPS."""

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from console.launch.address import Listen, ensure_certificate, parse_listen, require_free
from console.launch.steps import LaunchError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "host", "port", "https", "url"),
    [
        ("127.0.0.1:8440", "127.0.0.1", 8440, False, "http://127.0.0.1:8440/"),
        ("127.8.9.1:1", "127.8.9.1", 1, False, "http://127.8.9.1:1/"),
        ("localhost:80", "localhost", 80, False, "http://localhost:80/"),
        ("[::1]:8440", "::1", 8440, False, "http://[::1]:8440/"),
        ("192.0.2.7:443", "192.0.2.7", 443, True, "https://192.0.2.7:443/"),
        ("console.example:65535", "console.example", 65535, True, "https://console.example:65535/"),
        ("[2001:db8::7]:8440", "2001:db8::7", 8440, True, "https://[2001:db8::7]:8440/"),
    ],
)
def test_listen(text: str, host: str, port: int, https: bool, url: str) -> None:
    listen = parse_listen(text)
    assert (listen.host, listen.port, listen.https, listen.url, listen.bind) == (host, port, https, url, text)


@pytest.mark.parametrize(
    "text", ["", "8440", ":8440", "host", "host:", "host:0", "host:65536", "::1:80", "a b:1", "h:1;x"]
)
def test_listen_refuses(text: str) -> None:
    with pytest.raises(LaunchError, match="is not HOST:PORT"):
        parse_listen(text)


def test_a_wildcard_is_https_and_reached_by_loopback_from_here() -> None:
    listen = Listen("0.0.0.0", 8440)  # noqa: S104
    assert (listen.https, listen.local_host) == (True, "127.0.0.1")
    assert socket.gethostname() in listen.names
    assert "0.0.0.0" not in listen.names  # noqa: S104


def test_allowed_hosts_bracket_ipv6() -> None:
    assert Listen("127.0.0.1", 8440).allowed_hosts == "127.0.0.1,localhost,[::1]"
    assert "[2001:db8::7]" in Listen("2001:db8::7", 8440).allowed_hosts.split(",")


def test_a_taken_port_is_refused_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = Listen("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(LaunchError, match=f"cannot listen on {listen.bind}") as caught:
            require_free(listen)
    assert "--listen" in caught.value.hint
    require_free(listen)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(LaunchError, match="cannot listen on"):
        require_free(Listen("192.0.2.1", 8440))


def test_certificate_covers_the_names_and_is_kept(tmp_path: Path) -> None:
    names = ["127.0.0.1", "localhost", "console.example"]
    path, key, fingerprint = ensure_certificate(tmp_path, names, now=NOW)
    assert key.stat().st_mode & 0o077 == 0
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == ["localhost", "console.example"]
    assert [str(ip) for ip in found.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert ensure_certificate(tmp_path, names[:2], now=NOW + timedelta(days=300))[2] == fingerprint


@pytest.mark.parametrize(
    ("names", "days"), [(["localhost", "other.example"], 1), (["localhost"], 370)], ids=["new name", "near its end"]
)
def test_certificate_is_made_anew(tmp_path: Path, names: list[str], days: int) -> None:
    first = ensure_certificate(tmp_path, ["localhost"], now=NOW)[2]
    assert ensure_certificate(tmp_path, names, now=NOW + timedelta(days=days))[2] != first
