"""Attesting hosts against simulated agents: real boots, real TLS, real rows."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from attestation.adapters import agent_client
from attestation.models import (
    EventLog,
    Evidence,
    HostAttestation,
    ReferenceSet,
    TpmIdentity,
    Verdict,
    VerdictReason,
    VerdictStatus,
)
from attestation.services import references, schedule, verifier
from inventory.models import Alarm, Event, Host
from tests.attestation.recorded import EVIDENCE
from tests.attestation.signer import SoftwareTpm
from tests.attestation.simulated import BOOT_B, LOG_B, SimulatedAgent, own_certificate, simulated_agent

pytestmark = pytest.mark.django_db
DEMAND = VerdictReason.DEMAND


def attest(host: Host) -> HostAttestation:
    assert verifier.attest_hosts([host.pk], reason=DEMAND) == 1
    return HostAttestation.objects.select_related("verdict").get(host=host)


def codes(standing: HostAttestation) -> list[str]:
    assert standing.verdict is not None
    return [each["code"] for each in standing.verdict.findings]


def told(kind: str) -> list[Event]:
    return list(Event.objects.filter(kind=kind))


def test_a_good_boot_passes_and_its_evidence_is_kept(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    began = timezone.now()
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.PASSED, standing.message
    assert standing.message == ("the boot is proven, with Secure Boot on; no reference values say what should boot")
    verdict = standing.verdict
    assert verdict is not None and verdict.secure_boot is True and verdict.is_change
    assert standing.passed_at is not None and began <= standing.passed_at <= verdict.checked_at
    evidence = verdict.evidence
    assert evidence is not None and evidence.nonce == agent.asked[0]["nonce"]
    assert len(evidence.nonce) == 40 and evidence.nonce.isalnum()
    assert evidence.event_log is not None and evidence.event_log.event_count == 48
    assert evidence.pcrs["sha256"]["7"] == agent.values[7].hex()
    assert [event.data["verdict"] for event in told("host.attestation_passed")] == [verdict.pk]
    assert not Alarm.objects.exists()


def test_each_question_has_its_own_nonce_and_a_log_is_kept_once(
    enrolled: HostAttestation, agent: SimulatedAgent
) -> None:
    attest(enrolled.host)
    again = attest(enrolled.host)
    assert again.status == VerdictStatus.PASSED and again.verdict is not None and not again.verdict.is_change
    assert len({query["nonce"] for query in agent.asked}) == 2
    assert (EventLog.objects.count(), Evidence.objects.count(), Verdict.objects.count()) == (1, 2, 2)
    assert len(told("host.attestation_passed")) == 1


def test_an_old_quote_fails_and_raises_an_alarm_that_a_good_one_clears(
    enrolled: HostAttestation, agent: SimulatedAgent
) -> None:
    agent.signs_another_nonce = True
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.FAILED and codes(standing) == ["nonce_mismatch"]
    assert standing.passed_at is None
    alarm = Alarm.objects.get(kind="host.attestation_failed", cleared_at=None)
    assert "nonce" in alarm.message and alarm.remedy and alarm.evidence
    agent.signs_another_nonce = False
    assert attest(enrolled.host).status == VerdictStatus.PASSED
    assert not Alarm.objects.filter(cleared_at=None).exists()
    assert [event.kind for event in Event.objects.filter(kind__startswith="host.attestation_").order_by("id")] == [
        "host.attestation_failed", "host.attestation_passed",
    ]  # fmt: skip


def test_a_quote_by_another_key_fails(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    agent.tpm = SoftwareTpm()
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.FAILED and codes(standing) == ["bad_signature"]
    assert standing.verdict is not None and standing.verdict.secure_boot is None and standing.clock is None


def test_an_edited_log_fails_and_claims_nothing(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    agent.boot(BOOT_B, (EVIDENCE / "captured/d-log-edited/eventlog-claims-on.bin").read_bytes())
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.FAILED and "log_does_not_replay" in codes(standing)
    assert standing.verdict is not None and standing.verdict.secure_boot is None


def test_values_that_were_not_quoted_fail(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    """Those of the agent count only under the quote's digest; the log alone would otherwise replay."""
    real = agent.tpm.attest
    agent.tpm.attest = lambda values, **rest: real(  # type: ignore[method-assign]
        {bank: {**found, 7: bytes(32)} for bank, found in values.items()}, **rest
    )
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.FAILED and "pcr_mismatch" in codes(standing)


def test_a_pcr_that_was_asked_for_must_be_quoted(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    real = agent.tpm.attest
    agent.tpm.attest = lambda values, **rest: real(  # type: ignore[method-assign]
        {bank: {pcr: value for pcr, value in found.items() if pcr != 7} for bank, found in values.items()}, **rest
    )
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.FAILED and "pcr_mismatch" in codes(standing)


def test_a_clock_that_went_back_fails_until_the_tpm_is_enrolled_again(
    enrolled: HostAttestation, agent: SimulatedAgent
) -> None:
    attest(enrolled.host)
    agent.clock = 5
    for standing in (attest(enrolled.host), attest(enrolled.host)):
        assert standing.status == VerdictStatus.FAILED and codes(standing) == ["clock_went_back"]
    assert standing.clock == 1_001


def test_what_does_not_answer_is_unreachable_and_the_last_verdict_stays(
    enrolled: HostAttestation, agent: SimulatedAgent
) -> None:
    good = attest(enrolled.host)
    agent.stop()
    waits, standing = [], good
    for _ in range(3):
        standing = attest(enrolled.host)
        assert standing.status == VerdictStatus.UNREACHABLE
        assert standing.next_check_at is not None
        waits.append(standing.next_check_at - timezone.now())
    assert standing.verdict == good.verdict and standing.passed_at == good.passed_at
    assert standing.failures == 3 and standing.unreachable_since is not None
    assert waits == sorted(waits) and waits[-1] < timedelta(minutes=10)
    assert Verdict.objects.filter(status=VerdictStatus.UNREACHABLE).count() == 1
    assert len(told("host.attestation_unreachable")) == 1
    assert Alarm.objects.get(cleared_at=None).kind == "host.agent_unreachable"
    assert not Alarm.objects.filter(kind="host.attestation_failed").exists()


def test_an_agent_that_is_back_clears_its_alarm(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    agent.status = 500
    for _ in range(3):
        assert attest(enrolled.host).status == VerdictStatus.UNREACHABLE
    assert Alarm.objects.filter(kind="host.agent_unreachable", cleared_at=None).exists()
    agent.status = 200
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.PASSED and standing.failures == 0 and standing.unreachable_since is None
    assert not Alarm.objects.filter(cleared_at=None).exists()


@pytest.mark.parametrize(
    "body", [b"", b"no JSON", b"[]", b'{"results": {"quote": 7}}', b'{"results": {"quote": "rx"}}']
)
def test_an_answer_that_is_none_fails(enrolled: HostAttestation, agent: SimulatedAgent, body: bytes) -> None:
    agent.body = body
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.FAILED and codes(standing) == ["quote_malformed"]


def test_an_answer_beyond_all_measure_fails(
    enrolled: HostAttestation, agent: SimulatedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_client, "MAX_ANSWER_BYTES", 4096)
    assert codes(attest(enrolled.host)) == ["quote_malformed"]


def test_somebody_with_another_certificate_is_told_nothing(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    other, _ = own_certificate("agent-a")
    TpmIdentity.objects.update(mtls_certificate_pem=other.decode())
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.UNREACHABLE and "certificate" in standing.message
    assert agent.asked == []


def test_an_agent_that_distrusts_the_console(enrolled: HostAttestation) -> None:
    stranger, _ = own_certificate("another console")
    with simulated_agent("agent-a", stranger.decode()) as agent:
        TpmIdentity.objects.update(
            contact_port=agent.port, mtls_certificate_pem=agent.certificate_pem.decode(), ak_public=agent.tpm.ak_area
        )
        standing = attest(enrolled.host)
        assert standing.status == VerdictStatus.UNREACHABLE and agent.asked == []
    assert "does not accept this console" in standing.message


def test_only_new_lines_of_the_ima_list_are_asked_for(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    assert attest(enrolled.host).ima_state is not None
    attest(enrolled.host)
    lines = len((agent.ima or "").splitlines())
    assert [int(query["ima_ml_entry"]) for query in agent.asked] == [0, lines]


def test_after_a_boot_the_whole_list_is_asked_for_before_anything_passes(
    enrolled: HostAttestation, agent: SimulatedAgent
) -> None:
    attest(enrolled.host)
    agent.reset_count += 1
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.PASSED and codes(standing) == ["host_rebooted"]
    assert [int(query["ima_ml_entry"]) for query in agent.asked][1:] == [len((agent.ima or "").splitlines()), 0]
    assert len({query["nonce"] for query in agent.asked}) == 3
    assert Verdict.objects.count() == 2  # the answer to the second question is no verdict
    assert len(told("host.rebooted")) == 1


def test_a_bad_line_fails_again_at_each_poll(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    """A list is judged anew as long as it holds something bad: later lines alone would pass."""
    attest(enrolled.host)
    agent.ima = (agent.ima or "") + "10 " + "11" * 20 + " ima-ng sha256:" + "22" * 32 + " /usr/bin/evil\n"
    agent.values[10] = b"\x33" * 32
    for _ in range(2):
        standing = attest(enrolled.host)
        assert standing.status == VerdictStatus.FAILED and "ima_does_not_replay" in codes(standing)
        assert standing.ima_state is None


def test_another_boot_than_the_reference_values_say_fails(
    enrolled: HostAttestation, agent: SimulatedAgent, alice: User
) -> None:
    good = attest(enrolled.host)
    assert good.verdict is not None
    references.trust_boot(verdict_id=good.verdict.pk, reason="first boot, seen on the console", actor=alice)
    passed = attest(enrolled.host)
    assert passed.status == VerdictStatus.PASSED and passed.message.endswith("what booted is approved")
    agent.boot(BOOT_B, LOG_B)
    standing = attest(enrolled.host)
    assert standing.status == VerdictStatus.FAILED and "secure_boot_off" in codes(standing)
    assert standing.verdict is not None and standing.verdict.secure_boot is False
    assert codes(standing)[-1] == "host_rebooted", "what is only told stands behind what is wrong"


def test_an_answer_from_before_new_reference_values_counts_for_none_of_its_files(
    enrolled: HostAttestation, agent: SimulatedAgent, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = attest(enrolled.host)
    assert good.verdict is not None and good.ima_state is not None
    fetch = agent_client.fetch_quote

    def fetch_and_trust(*args: object, **rest: object) -> agent_client.AgentAnswer:
        answer = fetch(*args, **rest)  # type: ignore[arg-type]
        if not ReferenceSet.objects.exists():
            references.trust_boot(verdict_id=good.verdict_id or 0, reason="meanwhile", actor=alice)
        return answer

    monkeypatch.setattr(agent_client, "fetch_quote", fetch_and_trust)
    standing = attest(enrolled.host)
    assert standing.next_check_at is not None and standing.next_check_at <= timezone.now()
    assert standing.ima_state is None
    attest(enrolled.host)
    assert int(agent.asked[-1]["ima_ml_entry"]) == 0


def test_two_workers_do_not_ask_one_agent(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    HostAttestation.objects.update(claim=enrolled.host_id, claimed_at=timezone.now())
    assert verifier.attest_hosts([enrolled.host_id], reason=DEMAND) == 0
    HostAttestation.objects.update(claimed_at=timezone.now() - schedule.CLAIM_LASTS - timedelta(seconds=1))
    assert verifier.attest_hosts([enrolled.host_id], reason=DEMAND) == 1
    assert not HostAttestation.objects.filter(claim__isnull=False).exists()


def test_an_answer_about_a_tpm_that_is_no_longer_enrolled_is_dropped(
    enrolled: HostAttestation, agent: SimulatedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = agent_client.fetch_quote

    def swapped(*args: object, **rest: object) -> agent_client.AgentAnswer:
        answer = fetch(*args, **rest)  # type: ignore[arg-type]
        TpmIdentity.objects.update(ak_name="00" * 34)
        return answer

    monkeypatch.setattr(agent_client, "fetch_quote", swapped)
    assert verifier.attest_hosts([enrolled.host_id], reason=DEMAND) == 1
    assert not Verdict.objects.exists()


def more_hosts(enrolled: HostAttestation, *ports: int) -> list[Host]:
    """The enrolled host, and others with the same TPM whose agents listen at these ports."""
    hosts = [enrolled.host]
    for number, port in enumerate(ports):
        host = Host.objects.create(
            cluster=enrolled.host.cluster, name=f"kvm-{number}", uri=f"qemu+tls://k{number}/system"
        )
        identity = TpmIdentity.objects.get(host=enrolled.host)
        identity.pk, identity.host, identity.agent_id = None, host, f"agent-{number}"
        identity.ek_name, identity.contact_port = f"{number:068x}", port
        identity._state.adding = True
        identity.save()
        hosts.append(host)
    return hosts


def test_many_hosts_in_one_batch_one_of_them_silent(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    hosts = more_hosts(enrolled, agent.port, 1, agent.port)
    assert verifier.attest_hosts([host.pk for host in hosts], reason=VerdictReason.SCHEDULE) == 4
    found = dict(HostAttestation.objects.values_list("host__name", "status"))
    assert found == {"kvm-a": "passed", "kvm-0": "passed", "kvm-1": "unreachable", "kvm-2": "passed"}


def test_what_hosts_have_in_common_is_read_once(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    hosts = [host.pk for host in more_hosts(enrolled, agent.port, agent.port)]
    verifier.attest_hosts(hosts, reason=DEMAND)
    counts = []
    for batch in (hosts[:1], hosts):
        with CaptureQueriesContext(connection) as queries:
            assert verifier.attest_hosts(batch, reason=DEMAND) == len(batch)
        counts.append(len(queries))
    assert counts[1] - counts[0] <= 2 * 8, "another host costs its own row, evidence and verdict, and no more"


def test_a_host_without_identity_is_not_asked(host: Host) -> None:
    assert verifier.attest_hosts([host.pk], reason=DEMAND) == 0


def test_who_is_due(enrolled: HostAttestation, sent: list[tuple[str, list[str], str]]) -> None:
    sent.clear()
    assert schedule.attest_due() == 1
    assert sent == [("attestation.attest_hosts", [[str(enrolled.host_id)], "schedule"], "attestation")]
    assert schedule.attest_due() == 0  # it waits in the queue
    attest(enrolled.host)
    row = HostAttestation.objects.get()
    assert row.next_check_at is not None
    assert timedelta(minutes=8.9) < row.next_check_at - timezone.now() <= timedelta(minutes=10)
