"""The TPMs of the lab's hosts are enrolled, and what the first host boots becomes what the cluster should boot.

Runs inside Django with the workers up, as lab/register.py, through the services that a user's clicks call.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from attestation.models import (
    GOOD,
    HostAttestation,
    PendingRegistration,
    ReferenceSet,
    TpmIdentity,
    TrustAnchor,
    Verdict,
)
from attestation.services import anchors, enrolment, references
from inventory.authorize import SYSTEM
from inventory.models import Host
from lab import machine
from lab.errors import LabError
from lab.layout import HostLayout, Lab

ANCHOR = "Lab TPM CA"
REASON = "the lab's own recorded boot"
PATIENCE_SECONDS = 60.0
_T = TypeVar("_T")


def register(lab: Lab) -> list[str]:
    """One line for each thing done. Raises LabError where an agent does not register, or a host cannot be attested."""
    _trust(machine.authority(lab).certificate.read_text())
    enrolled = [host for layout in lab.hosts if (host := _enrol(layout)) is not None]
    if not enrolled:
        return []
    return [*(f"{host}: TPM enrolled" for host in enrolled), *_baseline(enrolled)]


def _trust(certificate: str) -> None:
    found = TrustAnchor.objects.filter(name=ANCHOR).first()
    if found is not None and found.certificate_pem.strip() == certificate.strip():
        return
    if found is not None:
        anchors.remove_anchor(anchor_id=found.pk, actor=SYSTEM)
    anchors.add_anchor(name=ANCHOR, certificate=certificate, actor=SYSTEM)


def _enrol(layout: HostLayout) -> Host | None:
    """None where the host is enrolled already."""
    host = Host.objects.get(name=f"host-{layout.name}")
    if TpmIdentity.objects.filter(host=host).exists():
        return None
    answered = PendingRegistration.objects.filter(agent_id=layout.uuid, activated_at__isnull=False)
    found = _wait(answered.first, f"the agent of {host} has not registered; see machine-{layout.name}.log")
    enrolment.enrol_host(host_id=host.pk, registration_id=found.pk, actor=SYSTEM)
    return host


def _baseline(hosts: list[Host]) -> list[str]:
    """Nothing is compared without reference values. The lab takes them from a host whose boot is known to be good."""
    first = hosts[0]
    proven = Verdict.objects.filter(host=first, status__in=GOOD, evidence__isnull=False)
    verdict = _wait(proven.first, f"{first} has not passed its attestation; see its page, Monitor, Attestation")
    said = []
    if not ReferenceSet.objects.filter(cluster=first.cluster).exists():
        references.trust_boot(verdict_id=verdict.pk, reason=REASON, actor=SYSTEM)
        said.append("reference values: the recorded boot")
    for host in hosts:
        passed = HostAttestation.objects.filter(host=host, status__in=GOOD)
        _wait(passed.first, f"{host} has not passed its attestation; see its page, Monitor, Attestation")
    return said


def _wait(found: Callable[[], _T | None], otherwise: str) -> _T:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        if (row := found()) is not None:
            return row
        if time.monotonic() > deadline:
            raise LabError(otherwise)
        time.sleep(0.2)
