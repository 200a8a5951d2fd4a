"""Attestation in a browser: report, tables, boot log, dialogs; accessible, and narrow windows are enough."""

from collections.abc import Iterator

import pytest
from django.urls import reverse

from attestation.models import ReferenceSet, Verdict, VerdictReason
from attestation.services import anchors, enrolment, references, verifier, verifier_identity
from inventory.authorize import SYSTEM
from tests.attestation.recorded import EVIDENCE
from tests.attestation.simulated import BOOT_B, LOG_B, SimulatedAgent, simulated_agent
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def agent(inventory: Sample) -> Iterator[SimulatedAgent]:
    """Of the first host, which passed once and booted something else since; a second TPM waits."""
    anchors.add_anchor(name="Maker of TPMs, root", certificate=(EVIDENCE / "captured/ca/root.pem").read_text(),
                       actor=SYSTEM)  # fmt: skip
    with simulated_agent("agent-1", verifier_identity.ca_pem()) as found:
        enrolment.enrol_host(
            host_id=inventory.host.pk,
            registration_id=found.registered().pk,
            actor=SYSTEM,
            reason="fingerprint compared",
        )
        verifier.attest_hosts([inventory.host.pk], reason=VerdictReason.REGISTRATION)
        references.trust_boot(verdict_id=Verdict.objects.get().pk, reason="installed today", actor=SYSTEM)
        verifier.attest_hosts([inventory.host.pk], reason=VerdictReason.REFERENCES)
        found.boot(BOOT_B, LOG_B)
        verifier.attest_hosts([inventory.host.pk], reason=VerdictReason.SCHEDULE)
        found.registered(agent_id="kvm02.corp.example")
        yield found


def test_accessible_wide_and_narrow(console: Console, inventory: Sample, agent: SimulatedAgent) -> None:
    verdict, version = Verdict.objects.all()[0], ReferenceSet.objects.get()
    assert verdict.status == "failed"
    passed = Verdict.objects.filter(status="passed")[0]
    addresses = {
        "report": reverse("attestation:report", args=[inventory.host.pk]),
        "report-passed": reverse("attestation:report", args=[inventory.host.pk]) + f"?verdict={passed.pk}",
        "report-none": reverse("attestation:report", args=[inventory.lost_host.pk]),
        "security": reverse("attestation:datacenter-security", args=[inventory.datacenter.pk]),
        "boot-log": reverse("attestation:boot-log", args=[verdict.pk]),
        "cluster": reverse("attestation:cluster", args=[inventory.cluster.pk]),
        "version": reverse("attestation:reference", args=[version.pk]),
        "trust": reverse("attestation:trust"),
        "enrol": reverse("attestation:enrol", args=[inventory.lost_host.pk]),
        "edit-references": reverse("attestation:edit-references", args=[inventory.cluster.pk]),
        "trust-boot": reverse("attestation:trust-boot", args=[passed.pk]),
        "policy": reverse("attestation:edit-policy", args=[inventory.cluster.pk]),
    }
    for name, path in addresses.items():
        console.open(path)
        console.look(f"attestation-{name}")


def test_the_policy_is_edited_by_keyboard(console: Console, inventory: Sample, agent: SimulatedAgent) -> None:
    page = console.open(reverse("attestation:cluster", args=[inventory.cluster.pk]))
    page.get_by_role("link", name="Edit policy").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] #id_freshness_minutes")
    page.fill("#id_freshness_minutes", "7")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]", state="detached")
    page.get_by_text("7 minutes").wait_for()
