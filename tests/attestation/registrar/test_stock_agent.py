"""What a stock Keylime agent (6.5.3) said to registrar and verifier, recorded: keylime_agent.json beside this.

It was the unmodified Python agent with a TPM emulator; it registered, activated, and passed twice. What cannot be said
again is the answer to the challenge, as each has a secret of its own.
"""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from attestation.engine.tpm.algorithms import SignatureScheme
from attestation.engine.tpm.keylime_quote import parse_quote_text
from attestation.engine.tpm.public import parse_tpm2b_public
from attestation.engine.tpm.quote import verify
from attestation.models import HostAttestation, PendingRegistration, TpmIdentity, VerdictReason, VerdictStatus
from attestation.registrar.protocol import Request, answer
from attestation.services import questions, verifier
from inventory.models import Host
from lab.boots import Situation, measured_log
from tests.attestation.simulated import SimulatedAgent

pytestmark = pytest.mark.django_db
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("keylime_agent.json").read_text())
AGENT_ID = RECORDED["agent_id"]


def register() -> PendingRegistration:
    request = Request("POST", f"/v2.1/agents/{AGENT_ID}", json.dumps(RECORDED["registration"]).encode(), "127.0.0.1")
    found = answer(request)
    assert (found.status, list(found.results)) == (200, ["blob"])
    assert base64.b64decode(str(found.results["blob"])).startswith(bytes.fromhex("badcc0de 00000001"))
    return PendingRegistration.objects.get()


def test_its_registration_is_understood() -> None:
    assert "ek_tpm" not in RECORDED["registration"]
    row = register()
    assert row.agent_id == AGENT_ID and row.ek_certificate_pem and row.mtls_certificate_pem
    assert (row.contact_host, row.contact_port) == ("127.0.0.1", int(RECORDED["registration"]["port"]))
    late = Request("PUT", f"/v2.1/agents/{AGENT_ID}/activate", json.dumps(RECORDED["activation"]).encode(), "127.0.0.1")
    assert answer(late).status == 400, "its answer was to another challenge"
    assert PendingRegistration.objects.get().activated_at is None


def test_its_quotes_verify() -> None:
    ak = parse_tpm2b_public(base64.b64decode(RECORDED["registration"]["aik_tpm"]))
    clocks = []
    for each in RECORDED["answers"]:
        text = parse_quote_text(each["results"]["quote"])
        assert text.signature.scheme is SignatureScheme.RSASSA
        check = verify(text.quote, text.signature, ak, nonce=each["nonce"].encode(), values=text.values)
        assert check.quote is not None and not check.findings
        clocks.append(text.quote.clock.clock)
    assert clocks == sorted(clocks)


def test_it_passes_through_the_verifier(host: Host, agent: SimulatedAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    row = register()
    TpmIdentity.objects.create(
        host=host, agent_id=AGENT_ID, ek_public=row.ek_public, ek_name=row.ek_name, ek_accepted_by="alice",
        ak_public=row.ak_public, ak_name=row.ak_name, contact_host="127.0.0.1", contact_port=agent.port,
        mtls_certificate_pem=agent.certificate_pem.decode(), enrolled_by="alice", activated_at=row.created_at,
    )  # fmt: skip
    log = base64.b64encode(measured_log(Situation.NORMAL)).decode()
    for each in RECORDED["answers"]:
        monkeypatch.setattr(questions, "_nonce", lambda nonce=each["nonce"]: nonce)
        results = {**each["results"], "mb_measurement_list": log}
        agent.body = json.dumps({"code": 200, "status": "Success", "results": results}).encode()
        assert verifier.attest_hosts([host.pk], reason=VerdictReason.SCHEDULE) == 1
        standing = HostAttestation.objects.select_related("verdict").get()
        assert standing.status == VerdictStatus.PASSED, standing.message
        assert standing.verdict is not None and (standing.verdict.findings, standing.verdict.secure_boot) == ([], True)
