"""No attestation, no keys: may this host be given a key now? Asked on workers before every release."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.utils import timezone

from attestation.models import (
    GOOD,
    AttestationPolicy,
    HostAttestation,
    ReferenceSet,
    TpmIdentity,
    Verdict,
    VerdictReason,
    VerdictStatus,
)
from attestation.services import appraisals, verifier
from attestation.services.policies import policy_of
from inventory.errors import ServiceError
from inventory.models import Host

# Another worker may be asking the agent just now; its answer serves as well.
_WAIT_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class GateDecision:
    """`code` is stable; `message` and `hint` are for people. `verdict` is what the decision rests on, if on any."""

    allowed: bool
    code: str
    message: str
    hint: str
    verdict: Verdict | None


def check_host(host: Host, *, purpose: str) -> GateDecision:
    """Decides by the cluster's policy and the host's last verdict; where that is not good and fresh, the host is
    attested once on the spot, and then it is decided. `purpose` is for people: "start of vm-1"."""
    policy = policy_of(host.cluster)
    has_identity = TpmIdentity.objects.filter(host=host).exists()
    if policy.require == AttestationPolicy.Require.NEVER or (
        policy.require == AttestationPolicy.Require.AUTO and not has_identity
    ):
        return GateDecision(True, "attestation_not_required", f"{host.cluster} asks no attestation of {host}", "", None)
    if not has_identity:
        return GateDecision(
            False, "host_not_enrolled",
            f"{host} has no enrolled TPM, and {host.cluster} gives keys to attested hosts only",
            f"enrol the TPM of {host} (Monitor, Attestation), or change the attestation policy of {host.cluster}", None,
        )  # fmt: skip
    decision = _decide(host, policy, purpose)
    if decision.allowed:
        return decision
    try:
        asked = verifier.attest_hosts([host.pk], reason=VerdictReason.GATE)
    except ServiceError as exc:
        return GateDecision(False, exc.code, f"{host} cannot be attested: {exc.message}", exc.hint, decision.verdict)
    if not asked:
        _wait_for_other(host)
    return _decide(host, policy, purpose)


def is_fresh(
    standing: HostAttestation, policy: AttestationPolicy, active: ReferenceSet | None, *, now: datetime
) -> bool:
    """The last verdict was good, compared with the values in force, and its evidence is young and of this presence."""
    verdict, passed_at = standing.verdict, standing.passed_at
    if verdict is None or passed_at is None or verdict.status not in GOOD:
        return False
    if standing.voided_at is not None and passed_at <= standing.voided_at:
        return False
    if verdict.reference_id != (None if active is None else active.pk):
        return False
    return now - passed_at <= timedelta(minutes=policy.freshness_minutes)


def _decide(host: Host, policy: AttestationPolicy, purpose: str) -> GateDecision:
    standing = HostAttestation.objects.select_related("verdict").filter(host=host).first()
    if standing is None or (standing.verdict is None and standing.status != VerdictStatus.UNREACHABLE):
        return _refused(host, purpose, "host_not_attested", "it has not been attested yet", "attest it", None)
    active = appraisals.active_reference(host.cluster_id)
    if is_fresh(standing, policy, active, now=timezone.now()):
        return GateDecision(True, "host_trusted", f"{host} was attested", "", standing.verdict)
    verdict = standing.verdict
    if standing.status == VerdictStatus.UNREACHABLE:
        return _refused(
            host, purpose, "host_unreachable_for_attestation", standing.message,
            "see to the agent on the host; the VM can start on another host meanwhile", verdict,
        )  # fmt: skip
    if verdict is not None and verdict.status == VerdictStatus.FAILED:
        remedy = next((str(each["remedy"]) for each in verdict.findings if each["severity"] == "error"), "")
        return _refused(host, purpose, "host_attestation_failed", verdict.message, remedy, verdict)
    return _refused(host, purpose, "attestation_stale", "its last good verdict is too old", "attest it anew", verdict)


def _refused(host: Host, purpose: str, code: str, why: str, hint: str, verdict: Verdict | None) -> GateDecision:
    return GateDecision(False, code, f"{host} gets no keys for the {purpose}: {why}", hint, verdict)


def _wait_for_other(host: Host) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        if not HostAttestation.objects.filter(host=host, claim__isnull=False).exists():
            return
        time.sleep(_POLL_SECONDS)
