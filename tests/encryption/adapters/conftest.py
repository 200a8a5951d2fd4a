"""A real key server for the adapter's tests, and certificates to be right and wrong with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from encryption.adapters.kmip_client import KmipClient
from encryption.adapters.kmip_tls import Timeouts
from encryption.engine.key_server import ClientTls, ServerAddress
from encryption.engine.secret import Secret
from lab import kms
from lab.pki import Authority, Issued

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class RunningKms:
    layout: kms.KmsLayout
    process: subprocess.Popen[str]
    port: int

    @property
    def ca_pem(self) -> bytes:
        return (self.layout.ca / "ca-cert.pem").read_bytes()

    def tls(self, common_name: str = "console") -> ClientTls:
        return client_tls(self.ca_pem, kms.issue_client(self.layout, common_name))

    def client(self, common_name: str = "console", host: str = "127.0.0.1") -> KmipClient:
        return KmipClient(ServerAddress(host, self.port), self.tls(common_name), Timeouts(5, 30))


def client_tls(ca_pem: bytes, issued: Issued) -> ClientTls:
    return ClientTls(ca_pem, issued.certificate_pem, Secret(issued.key_pem))


def expired(authority: Authority, common_name: str, *, server: bool = False) -> Issued:
    """A certificate whose time is over: it began an hour ago and ends now."""
    return authority.issue(common_name, dns=["localhost"] if server else (), server=server, client=not server, days=0)


@contextmanager
def serving(layout: kms.KmsLayout, name: str = "kms") -> Iterator[RunningKms]:
    """One server process on a free port, stopped at the end."""
    process = subprocess.Popen(
        kms.command(layout, port=0, name=name),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=(layout.state / f"{name}.log").open("w"),
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listening on" in line, (layout.state / f"{name}.log").read_text()
        yield RunningKms(layout, process, int(line.rsplit(":", 1)[1]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="session")
def kms_layout() -> Iterator[kms.KmsLayout]:
    # Not pytest's own folder: as root the server runs as another user, who has to reach its files.
    base = Path(tempfile.mkdtemp(prefix="kms-", dir="/var/tmp"))
    base.chmod(0o755)
    try:
        yield kms.prepare(base / "kms", 5696)
    finally:
        shutil.rmtree(base)


@pytest.fixture(scope="session")
def kms_server(kms_layout: kms.KmsLayout) -> Iterator[RunningKms]:
    with serving(kms_layout) as running:
        yield running


@pytest.fixture
def client(kms_server: RunningKms) -> Iterator[KmipClient]:
    with kms_server.client() as opened:
        yield opened


@pytest.fixture
def name() -> str:
    return f"key {os.urandom(8).hex()}"


@pytest.fixture(scope="session")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("other-ca"), "Another CA")
