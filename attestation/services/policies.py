"""What a cluster asks of its hosts: whether keys need a good verdict, how fresh, and how often hosts are attested."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import transaction

from attestation.models import AttestationPolicy
from inventory import events
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Invalid
from inventory.models import Cluster
from inventory.services.places import cluster_of

EDIT: Final = "attestation.edit_policy"
MOST_MINUTES: Final = 7 * 24 * 60


@dataclass(frozen=True, slots=True)
class PolicyWish:
    """`require`: auto, always or never; minutes from 1 to a week."""

    require: str
    freshness_minutes: int
    interval_minutes: int
    two_person_references: bool


def policy_of(cluster: Cluster) -> AttestationPolicy:
    """The cluster's own, or the defaults, unsaved."""
    return AttestationPolicy.objects.filter(cluster=cluster).first() or AttestationPolicy(cluster=cluster)


def policy(*, cluster_id: UUID, actor: Actor) -> AttestationPolicy:
    cluster = cluster_of(cluster_id)
    authorize(actor, VIEW, cluster)
    return policy_of(cluster)


@transaction.atomic
def edit_policy(*, cluster_id: UUID, wish: PolicyWish, actor: Actor) -> AttestationPolicy:
    """Raises Invalid `attestation_policy_invalid`: an unknown choice, minutes that are none, evidence that is always
    staler than asked for."""
    cluster = cluster_of(cluster_id)
    authorize(actor, EDIT, cluster)
    if wish.require not in AttestationPolicy.Require.values:
        raise _invalid("it is required of hosts with an enrolled TPM, of all hosts, or of none")
    for minutes in (wish.freshness_minutes, wish.interval_minutes):
        if not 1 <= minutes <= MOST_MINUTES:
            raise _invalid(f"freshness and interval are 1 to {MOST_MINUTES} minutes")
    before = policy_of(cluster)
    row, _ = AttestationPolicy.objects.update_or_create(
        cluster=cluster,
        defaults={
            "require": wish.require,
            "freshness_minutes": wish.freshness_minutes,
            "interval_minutes": wish.interval_minutes,
            "two_person_references": wish.two_person_references,
        },
    )
    changed = [
        f"{name}: {getattr(before, name)} to {getattr(row, name)}"
        for name in ("require", "freshness_minutes", "interval_minutes", "two_person_references")
        if getattr(before, name) != getattr(row, name)
    ]
    if changed:
        events.record("attestation.policy_edited", f"Attestation policy of {cluster} changed: {'; '.join(changed)}",
                      target=cluster, actor=actor, changes=changed)  # fmt: skip
    return row


def _invalid(message: str) -> Invalid:
    return Invalid("attestation_policy_invalid", message, hint="see the attestation policy's help")
