"""What attestations leave behind, and what goes of it."""

from datetime import timedelta

import pytest
from django.utils import timezone

from attestation.models import EventLog, Evidence, HostAttestation, PendingRegistration, Verdict, VerdictReason
from attestation.services import hosts, verifier
from tests.attestation.simulated import SimulatedAgent

pytestmark = pytest.mark.django_db


def attest(standing: HostAttestation) -> Verdict:
    assert verifier.attest_hosts([standing.host_id], reason=VerdictReason.SCHEDULE) == 1
    return Verdict.objects.all()[0]


def test_the_newest_and_the_changes_stay(
    enrolled: HostAttestation, agent: SimulatedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "KEEP_NEWEST", 2)
    first, second = attest(enrolled), attest(enrolled)
    agent.signs_another_nonce = True
    failed = attest(enrolled)
    agent.signs_another_nonce = False
    rest = [attest(enrolled) for _ in range(3)]
    assert hosts.prune() == 1
    assert set(Verdict.objects.all()) == {first, failed, *rest} and second not in Verdict.objects.all()
    failed.refresh_from_db()
    first.refresh_from_db()
    assert failed.evidence is not None and first.evidence is None
    assert hosts.prune() == 0


def test_old_changes_go_with_their_evidence(
    enrolled: HostAttestation, agent: SimulatedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "KEEP_NEWEST", 1)
    old = attest(enrolled)
    newest = attest(enrolled)
    Verdict.objects.filter(pk=old.pk).update(checked_at=timezone.now() - timedelta(days=181))
    assert hosts.prune() == 1
    assert list(Verdict.objects.all()) == [newest]
    assert Evidence.objects.count() == 1 and EventLog.objects.count() == 1


def test_logs_that_no_evidence_needs_go(enrolled: HostAttestation, agent: SimulatedAgent) -> None:
    attest(enrolled)
    Verdict.objects.all().delete()
    Evidence.objects.update(taken_at=timezone.now() - timedelta(days=2))
    EventLog.objects.update(first_seen_at=timezone.now() - timedelta(days=2))
    row = agent.registered()
    PendingRegistration.objects.filter(pk=row.pk).update(created_at=timezone.now() - timedelta(days=31))
    hosts.prune()
    assert not Evidence.objects.exists() and not EventLog.objects.exists() and not PendingRegistration.objects.exists()
