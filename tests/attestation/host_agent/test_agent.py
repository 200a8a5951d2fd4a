"""Our agent against a real TPM, the real registrar and the real client: what it proves, and whom it answers."""

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from attestation.adapters.agent_client import AgentUntrusted, ClientCredentials, fetch_quote
from attestation.engine.appraisal import Evidence, Identity, appraise
from attestation.engine.boot_appraisal import BootAppraiser
from attestation.engine.findings import FindingCode, Verdict
from attestation.engine.ima_appraisal import ImaEvidence
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.endorsement import check_chain, parse_certificates
from attestation.engine.tpm.keylime_quote import parse_quote_text
from attestation.engine.tpm.pcrs import PcrSelection
from attestation.engine.tpm.public import Public, parse_key, parse_tpm2b_public
from attestation.engine.tpm.quote import QuoteCheck, verify
from attestation.models import PendingRegistration, TpmIdentity
from inventory.models import Alarm, Host
from lab.boots import Situation
from lab.pki import Authority
from tests.attestation.host_agent.host import (
    AGENT_ID,
    RunningAgent,
    TestHost,
    address_in,
    make_host,
    running_registrar,
)

NONCE = "a1B2c3D4e5F6"
PCRS = frozenset({*range(11), 14})


@pytest.fixture(scope="module")
def test_host(tmp_path_factory: pytest.TempPathFactory) -> TestHost:
    return make_host(tmp_path_factory.mktemp("host"))


@pytest.fixture
def registrar() -> Iterator[str]:
    with running_registrar() as address:
        yield address


@pytest.fixture(scope="module")
def agent(test_host: TestHost) -> Iterator[RunningAgent]:
    """One that never reaches a registrar: it answers all the same."""
    with test_host.booted(), test_host.agent("127.0.0.1:1") as running:
        yield running


def ask(agent: RunningAgent, credentials: ClientCredentials | None, path: str, method: str = "GET") -> tuple[int, Any]:
    """Status and results. Raises ssl.SSLError where the handshake fails, or what comes instead of an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if credentials is None else credentials.context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", agent.port), timeout=30) as plain,
        context.wrap_socket(plain) as secured,
    ):
        secured.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        answer = b"".join(iter(lambda: secured.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)["results"]


def checked(text: str, ak: Public, pcrs: frozenset[int], nonce: str = NONCE) -> QuoteCheck:
    parsed = parse_quote_text(text)
    asked = PcrSelection.of(HashAlg.SHA256, *pcrs)
    return verify(parsed.quote, parsed.signature, ak, nonce=nonce.encode(), values=parsed.values, asked=asked)


@pytest.mark.django_db(transaction=True)
def test_it_registers_activates_and_proves_its_boot(test_host: TestHost, registrar: str) -> None:
    with test_host.booted(), test_host.agent(registrar) as running:
        assert running.said("registered as"), running.lines
        row = PendingRegistration.objects.get()
        assert (row.agent_id, row.contact_port, row.refusal_code) == (AGENT_ID, running.port, "")
        assert row.activated_at is not None
        answer = fetch_quote(
            address_in(row), test_host.credentials.context(), nonce=NONCE, pcrs=PCRS, ima_first_line=0
        )  # fmt: skip
    anchors = parse_certificates(test_host.authority.certificate.read_bytes())
    (ek_certificate,) = parse_certificates(row.ek_certificate_pem.encode())
    chain = check_chain(ek_certificate, [], anchors, now=row.activated_at)
    assert chain.is_trusted, chain.problem
    ak = parse_tpm2b_public(bytes(row.ak_public))
    assert answer.ima is not None
    evidence = Evidence(
        checked(answer.quote, ak, PCRS), answer.event_log, ImaEvidence(answer.ima, answer.ima_first_line)
    )  # fmt: skip
    appraisal = appraise(
        evidence, BootAppraiser(None), identity=Identity(bytes.fromhex(row.ak_name)), endorsement=chain
    )  # fmt: skip
    assert (appraisal.verdict, appraisal.findings) == (Verdict.PASSED, ())
    assert appraisal.secure_boot is True
    assert appraisal.measurements is not None


@pytest.mark.django_db(transaction=True)
def test_another_tpm_in_the_same_host(test_host: TestHost, registrar: str, host: Host) -> None:
    with test_host.booted(), test_host.agent(registrar) as running:
        assert running.said("registered as"), running.lines
    row = PendingRegistration.objects.get()
    identity = TpmIdentity.objects.create(
        host=host, enrolled_by="alice", activated_at=timezone.now(), agent_id=row.agent_id,
        ek_public=row.ek_public, ek_name=row.ek_name, ak_public=row.ak_public, ak_name=row.ak_name,
        mtls_certificate_pem=row.mtls_certificate_pem, contact_host="127.0.0.1", contact_port=row.contact_port,
    )  # fmt: skip
    row.delete()
    with test_host.booted(tpm="other"), test_host.agent(registrar) as running:
        assert running.said("the registrar answers 403"), running.lines
        # The TLS key is on the disk and so the same; the TPM's keys are not.
        identity.contact_port = running.port
        answer = fetch_quote(
            address_in(identity), test_host.credentials.context(), nonce=NONCE, pcrs=PCRS, ima_first_line=0
        )  # fmt: skip
    enrolled = parse_key(bytes(identity.ak_public))
    assert isinstance(enrolled, Public)
    findings = checked(answer.quote, enrolled, PCRS).findings
    assert [finding.code for finding in findings] == [FindingCode.BAD_SIGNATURE]
    assert TpmIdentity.objects.get().ak_name == identity.ak_name
    assert Alarm.objects.get().kind == "host.tpm_changed"
    with test_host.booted(Situation.SECURE_BOOT_OFF), test_host.agent(registrar) as running:
        assert running.said("registered as"), running.lines
    again = TpmIdentity.objects.get()
    assert (again.ak_name, again.ek_name) == (identity.ak_name, identity.ek_name)
    assert again.registrations == 2
    assert Alarm.objects.get().cleared_at is not None


def test_nobody_without_a_certificate_of_the_console(agent: RunningAgent, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        ask(agent, None, "/version")
    foreign = Authority.create(tmp_path / "ca", "another console").issue("verifier", client=True)
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        ask(agent, ClientCredentials(foreign.certificate_pem, foreign.key_pem), "/version")


@pytest.mark.django_db(transaction=True)
def test_the_client_tells_that_it_is_not_trusted(test_host: TestHost, registrar: str, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path / "ca", "another console").issue("verifier", client=True)
    credentials = ClientCredentials(foreign.certificate_pem, foreign.key_pem)
    with test_host.booted(), test_host.agent(registrar) as running:
        assert running.said("registered as"), running.lines
        with pytest.raises(AgentUntrusted) as caught:
            fetch_quote(
                address_in(PendingRegistration.objects.get()), credentials.context(), nonce=NONCE, pcrs=PCRS,
                ima_first_line=0,
            )  # fmt: skip
    assert caught.value.code == "agent_distrusts_console"


def test_version_and_transport_key(agent: RunningAgent, test_host: TestHost) -> None:
    assert ask(agent, test_host.credentials, "/version") == (200, {"supported_version": "2.1"})
    status, results = ask(agent, test_host.credentials, "/v2.1/keys/pubkey")
    assert status == 200
    assert results["pubkey"].startswith("-----BEGIN PUBLIC KEY-----\n")


def test_identity_quote(agent: RunningAgent, test_host: TestHost) -> None:
    status, results = ask(agent, test_host.credentials, f"/v2.1/quotes/identity?nonce={NONCE}")
    assert status == 200
    assert {"mb_measurement_list", "ima_measurement_list"}.isdisjoint(results)
    parsed = parse_quote_text(results["quote"])
    assert parsed.quote.extra_data == NONCE.encode()
    assert set(parsed.values[HashAlg.SHA256]) == {16}
    assert (results["hash_alg"], results["enc_alg"], results["sign_alg"]) == ("sha256", "ecc", "ecdsa")


@pytest.mark.parametrize(
    ("partial", "mask", "has"),
    [
        ("0", "0x0", {"pubkey"}),
        ("1", "0x0", set()),
        ("1", "0x1", {"mb_measurement_list"}),
        ("1", "0x400", {"ima_measurement_list", "ima_measurement_list_entry"}),
    ],
)
def test_only_what_was_asked_for(
    agent: RunningAgent, test_host: TestHost, partial: str, mask: str, has: set[str]
) -> None:
    query = f"nonce={NONCE}&mask={mask}&partial={partial}&ima_ml_entry=0"
    status, results = ask(agent, test_host.credentials, f"/v2.1/quotes/integrity?{query}")
    assert status == 200
    assert set(results) - {"quote", "hash_alg", "enc_alg", "sign_alg", "boottime"} == has


@pytest.mark.parametrize(("entry", "lines", "start"), [("0", 1, 0), ("1", 0, 1), ("7", 1, 0)])
def test_lines_of_the_ima_list(agent: RunningAgent, test_host: TestHost, entry: str, lines: int, start: int) -> None:
    query = f"nonce={NONCE}&mask=0x400&partial=1&ima_ml_entry={entry}"
    _, results = ask(agent, test_host.credentials, f"/v2.1/quotes/integrity?{query}")
    assert results["ima_measurement_list"].count("\n") == lines
    assert results["ima_measurement_list_entry"] == start


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2.1/quotes/integrity?nonce=&mask=0x1&partial=1", 400),
        ("/v2.1/quotes/integrity?mask=0x1&partial=1", 400),
        (f"/v2.1/quotes/integrity?nonce={'a' * 65}&mask=0x1", 400),
        ("/v2.1/quotes/integrity?nonce=a-b&mask=0x1", 400),
        ("/v2.1/quotes/integrity?nonce=a%0a&mask=0x1", 400),
        ("/v2.1/quotes/integrity?nonce=a&mask=1", 400),
        ("/v2.1/quotes/integrity?nonce=a&mask=0x1000000", 400),
        ("/v2.1/quotes/integrity?nonce=a&mask=0x1&partial=2", 400),
        ("/v2.1/quotes/integrity?nonce=a&mask=0x1&ima_ml_entry=-1", 400),
        ("/v2.1/quotes/integrity?" + "&".join(["nonce=a"] * 9), 400),
        ("/v3.0/quotes/integrity?nonce=a", 404),
        ("/v2.1/quotes/", 404),
        ("/v2.1/keys/ukey", 404),
        ("/../etc/passwd", 404),
    ],
)
def test_what_it_does_not_answer(agent: RunningAgent, test_host: TestHost, path: str, expected: int) -> None:
    assert ask(agent, test_host.credentials, path) == (expected, {})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_takes_nothing(agent: RunningAgent, test_host: TestHost, method: str) -> None:
    assert ask(agent, test_host.credentials, "/v2.1/keys/ukey", method) == (405, {})


def test_clients_that_stall_hold_up_nobody(agent: RunningAgent, test_host: TestHost) -> None:
    stalled = [socket.create_connection(("127.0.0.1", agent.port)) for _ in range(40)]
    try:
        assert ask(agent, test_host.credentials, "/version")[0] == 200
    finally:
        for each in stalled:
            each.close()


def test_a_list_that_is_missing_is_left_out(agent: RunningAgent, test_host: TestHost) -> None:
    log = test_host.folder / "log"
    content = log.read_bytes()
    log.unlink()
    try:
        query = f"nonce={NONCE}&mask=0x1&partial=1"
        status, results = ask(agent, test_host.credentials, f"/v2.1/quotes/integrity?{query}")
    finally:
        log.write_bytes(content)
    assert status == 200
    assert "mb_measurement_list" not in results


def test_its_tls_key_is_private(agent: RunningAgent, test_host: TestHost) -> None:
    assert (test_host.folder / "tls.pem").stat().st_mode & 0o777 == 0o600


def test_pcr_16_holds_the_transport_key(agent: RunningAgent, test_host: TestHost) -> None:
    query = f"nonce={NONCE}&mask=0x0&partial=0"
    _, results = ask(agent, test_host.credentials, f"/v2.1/quotes/integrity?{query}")
    parsed = parse_quote_text(results["quote"])
    value = parsed.values[HashAlg.SHA256][16]
    digest = HashAlg.SHA256.digest(results["pubkey"].encode())
    assert value == HashAlg.SHA256.digest(bytes(32) + digest)
