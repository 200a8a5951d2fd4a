"""A simulated agent: an HTTPS server that speaks Keylime's protocol, with recorded boots signed by a software TPM.

Nothing of it is a real TPM. What it shows are real boots (tests/attestation/evidence), quoted by a key of its own.
"""

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.utils import timezone
from typing_extensions import override

from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.pcrs import initial_value
from attestation.models import PendingRegistration
from tests.attestation.recorded import HOST_A, HOST_B, Entry, entries
from tests.attestation.signer import SoftwareTpm
from tests.attestation.wire import quote_text

_BY_NAME = {entry.name: entry for entry in entries()}
BOOT_A: Entry = _BY_NAME["a-secureboot-on/eventlog.bin"]
BOOT_B: Entry = _BY_NAME["b-secureboot-off/eventlog.bin"]
LOG_A, LOG_B = (HOST_A / "eventlog.bin").read_bytes(), (HOST_B / "eventlog.bin").read_bytes()


def own_certificate(name: str) -> tuple[bytes, bytes]:
    """Self-signed: certificate and key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30)).sign(key, hashes.SHA256())
    )  # fmt: skip
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


class SimulatedAgent:
    """Its attributes may be changed at any time: they are what the "host" has booted, and how the agent behaves."""

    def __init__(self, name: str, client_ca_pem: str) -> None:
        self.name = name
        self.tpm = SoftwareTpm()
        self.certificate_pem, self._key_pem = own_certificate(name)
        self.values = dict(BOOT_A.pcrs[HashAlg.SHA256])
        self.log: bytes | None = LOG_A
        self.ima: str | None = (HOST_A / "ima_ascii.txt").read_text()
        self.clock, self.reset_count = 1_000, 1
        self.status = 200
        self.body: bytes | None = None  # instead of an answer
        self.signs_another_nonce = False
        self.asked: list[dict[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "agent.pem"
            path.write_bytes(self.certificate_pem + self._key_pem)
            context.load_cert_chain(path)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_ca_pem)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # What may happen to the host

    def boot(self, entry: Entry, log: bytes | None) -> None:
        """Another boot: new values, new log, no IMA list."""
        self.values, self.log, self.ima = dict(entry.pcrs[HashAlg.SHA256]), log, None
        self.reset_count += 1

    def registered(self, **changes: object) -> PendingRegistration:
        """The row that the registrar leaves when this agent's TPM has answered its challenge."""
        ek = SoftwareTpm()
        values: dict[str, object] = {
            "agent_id": self.name, "ek_public": ek.ak_area, "ek_name": ek.ak.name.hex(), "ek_certificate_pem": "",
            "ak_public": self.tpm.ak_area, "ak_name": self.tpm.ak.name.hex(),
            "mtls_certificate_pem": self.certificate_pem.decode(), "contact_host": "127.0.0.1",
            "contact_port": self.port, "expected_auth_tag": "0" * 96, "source_address": "127.0.0.1",
            "expires_at": timezone.now() + timedelta(minutes=5), "activated_at": timezone.now(),
        }  # fmt: skip
        return PendingRegistration.objects.create(**{**values, **changes})

    def answer(self, query: dict[str, str]) -> dict[str, object]:
        self.asked.append(query)
        self.clock += 1
        mask, first_line = int(query["mask"], 16) | 1 << 16, int(query["ima_ml_entry"])
        quoted = {pcr: self.values.get(pcr, initial_value(HashAlg.SHA256, pcr)) for pcr in range(24) if mask >> pcr & 1}
        nonce = "0" * 40 if self.signs_another_nonce else query["nonce"]
        values = {HashAlg.SHA256: quoted}
        attest, signature = self.tpm.attest(
            values, nonce=nonce.encode(), clock=self.clock, reset_count=self.reset_count
        )
        results: dict[str, object] = {
            "quote": quote_text(attest, signature, values), "hash_alg": "sha256", "sign_alg": "ecdsa",
        }  # fmt: skip
        if self.ima is not None:
            lines = self.ima.splitlines(keepends=True)
            first_line = first_line if first_line <= len(lines) else 0
            results |= {"ima_measurement_list": "".join(lines[first_line:]), "ima_measurement_list_entry": first_line}
        if self.log is not None:
            results["mb_measurement_list"] = base64.b64encode(self.log).decode()
        return results


def _handler(agent: SimulatedAgent) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            assert parts.path == "/v2.1/quotes/integrity"
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            results = agent.answer(query) if agent.status == 200 else {}
            body = json.dumps({"code": agent.status, "status": "Success", "results": results}).encode()
            self.send_response(agent.status)
            self.end_headers()
            self.wfile.write(body if agent.body is None else agent.body)

    return Handler


@contextmanager
def simulated_agent(name: str, client_ca_pem: str) -> Iterator[SimulatedAgent]:
    agent = SimulatedAgent(name, client_ca_pem)
    try:
        yield agent
    finally:
        agent.stop()
