"""The gate in front of key releases, by itself."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from attestation.models import AttestationPolicy, HostAttestation, VerdictReason
from attestation.services import gate, hosts, policies, references, verifier
from attestation.services.policies import PolicyWish
from inventory.errors import Invalid, Refused
from inventory.models import Event, Host
from tests.attestation.simulated import BOOT_B, LOG_B, SimulatedAgent
from tests.fakes import FakeHypervisor

pytestmark = pytest.mark.django_db


def ask(host: Host) -> gate.GateDecision:
    return gate.check_host(Host.objects.get(pk=host.pk), purpose="start of vm-1")


def require(host: Host, what: str) -> None:
    AttestationPolicy.objects.update_or_create(cluster=host.cluster, defaults={"require": what})


def test_a_host_without_a_tpm_gets_keys_unless_all_hosts_are_to_be_attested(host: Host) -> None:
    assert ask(host).code == "attestation_not_required" and ask(host).allowed
    require(host, "always")
    decision = ask(host)
    assert (decision.allowed, decision.code) == (False, "host_not_enrolled")
    assert "kvm-a" in decision.message and decision.hint


def test_an_enrolled_host_is_attested_on_the_spot_and_then_for_a_while_not(
    enrolled: HostAttestation, agent: SimulatedAgent
) -> None:
    first = ask(enrolled.host)
    assert first.allowed and first.verdict is not None and first.verdict.reason == VerdictReason.GATE
    second = ask(enrolled.host)
    assert second.allowed and second.verdict == first.verdict and len(agent.asked) == 1


def test_where_nothing_is_required_nobody_is_asked(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    require(enrolled.host, "never")
    agent.stop()
    assert ask(enrolled.host).code == "attestation_not_required"


def test_a_failed_host_gets_none_and_is_looked_at_anew_each_time(
    enrolled: HostAttestation, agent: SimulatedAgent
) -> None:
    agent.signs_another_nonce = True
    decision = ask(enrolled.host)
    assert (decision.allowed, decision.code) == (False, "host_attestation_failed")
    assert decision.verdict is not None and decision.hint == decision.verdict.findings[0]["remedy"]
    agent.signs_another_nonce = False
    assert ask(enrolled.host).allowed


def test_an_unreachable_host_is_trusted_while_its_verdict_is_fresh(
    enrolled: HostAttestation, agent: SimulatedAgent
) -> None:
    assert ask(enrolled.host).allowed
    agent.stop()
    verifier.attest_hosts([enrolled.host_id], reason=VerdictReason.SCHEDULE)
    assert ask(enrolled.host).allowed
    HostAttestation.objects.update(passed_at=timezone.now() - timedelta(minutes=61))
    decision = ask(enrolled.host)
    assert (decision.allowed, decision.code) == (False, "host_unreachable_for_attestation")


def test_a_host_that_was_away_is_asked_anew_before_it_gets_keys(
    enrolled: HostAttestation, agent: SimulatedAgent, hypervisor: FakeHypervisor
) -> None:
    assert ask(enrolled.host).allowed
    agent.boot(BOOT_B, None)
    hosts.after_reconnect(enrolled.host, hypervisor)
    decision = ask(enrolled.host)
    assert decision.verdict is not None and len(agent.asked) == 3  # the second answer showed a boot
    assert decision.verdict.status == "warning" and decision.allowed  # nobody has said what should boot


def test_a_host_that_was_away_and_is_silent_gets_none(
    enrolled: HostAttestation, agent: SimulatedAgent, hypervisor: FakeHypervisor
) -> None:
    assert ask(enrolled.host).allowed
    agent.stop()
    hosts.after_reconnect(enrolled.host, hypervisor)
    assert ask(enrolled.host).code == "host_unreachable_for_attestation"


def test_a_verdict_by_older_reference_values_opens_nothing(
    enrolled: HostAttestation, agent: SimulatedAgent, alice: User
) -> None:
    first = ask(enrolled.host)
    assert first.verdict is not None
    references.trust_boot(verdict_id=first.verdict.pk, reason="seen", actor=alice)
    agent.boot(BOOT_B, LOG_B)
    decision = ask(enrolled.host)
    assert (decision.allowed, decision.code) == (False, "host_attestation_failed")


def test_a_policy_is_edited_and_told_of(host: Host, alice: User, charlie: User) -> None:
    wish = PolicyWish("always", 30, 5, True)
    with pytest.raises(Refused):
        policies.edit_policy(cluster_id=host.cluster_id, wish=wish, actor=charlie)
    row = policies.edit_policy(cluster_id=host.cluster_id, wish=wish, actor=alice)
    assert (row.require, row.freshness_minutes, row.interval_minutes, row.two_person_references) == (
        "always", 30, 5, True,
    )  # fmt: skip
    policies.edit_policy(cluster_id=host.cluster_id, wish=wish, actor=alice)
    (event,) = Event.objects.filter(kind="attestation.policy_edited")
    assert event.actor == "alice" and len(event.data["changes"]) == 4


@pytest.mark.parametrize(
    "wish",
    [PolicyWish("sometimes", 60, 10, False), PolicyWish("auto", 0, 10, False), PolicyWish("auto", 60, 10081, False)],
)
def test_a_policy_that_is_none(host: Host, alice: User, wish: PolicyWish) -> None:
    with pytest.raises(Invalid) as caught:
        policies.edit_policy(cluster_id=host.cluster_id, wish=wish, actor=alice)
    assert caught.value.code == "attestation_policy_invalid"
