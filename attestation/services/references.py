"""Reference values of a cluster, in versions: from a boot that somebody trusts, from what an update changed, by hand.

A version is in force when it is approved: by its maker, or, where the cluster's policy says so, by a second
administrator. The newest approved one counts; none is ever changed or deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from attestation.engine import baseline as engine
from attestation.engine.appraisal import Appraisal
from attestation.engine.boot.components import Boot
from attestation.engine.errors import Malformed
from attestation.engine.findings import FindingCode
from attestation.engine.glob import BadPattern
from attestation.engine.ima.check import ImaPolicy, allowed_files
from attestation.engine.reference import Change, ImaReference, ReferenceValues, Revocations, diff
from attestation.engine.reference_json import from_json, to_json
from attestation.models import ReferenceSet, Verdict, VerdictReason
from attestation.services import appraisals, schedule
from attestation.services.policies import policy_of
from inventory import events, jobs
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound, Refused
from inventory.models import Cluster
from inventory.services.listings import FIRST, Listing, Paging, listed
from inventory.services.places import cluster_of

EDIT: Final = "attestation.edit_references"
APPROVE: Final = "attestation.approve_references"
# Of each sort of finding, what the event that it names has to be accepted as.
_ACCEPTED_AS: Final = {
    FindingCode.UNKNOWN_COMPONENT: "components",
    FindingCode.UNKNOWN_SIGNER: "authorities",
    FindingCode.COMMAND_LINE_CHANGED: "command_lines",
}


@dataclass(frozen=True, slots=True)
class Acceptable:
    """A finding that can be accepted into the reference values: something new was loaded at event `event`."""

    event: int
    code: str
    message: str


def versions(*, cluster_id: UUID, actor: Actor, paging: Paging = FIRST) -> Listing[ReferenceSet]:
    """Newest first."""
    cluster = cluster_of(cluster_id)
    authorize(actor, VIEW, cluster)
    return listed(ReferenceSet.objects.filter(cluster=cluster), paging)


def reference_of(reference_id: UUID, *, actor: Actor) -> ReferenceSet:
    found = ReferenceSet.objects.select_related("cluster").filter(pk=reference_id).first()
    if found is None:
        raise NotFound("reference_set_not_found", f"there are no reference values {reference_id}")
    authorize(actor, VIEW, found.cluster)
    return found


def active_of(*, cluster_id: UUID, actor: Actor) -> ReferenceSet | None:
    """The version in force."""
    cluster = cluster_of(cluster_id)
    authorize(actor, VIEW, cluster)
    return appraisals.active_reference(cluster.pk)


def values_of(row: ReferenceSet) -> ReferenceValues:
    return from_json(row.body.encode())


def changes_of(row: ReferenceSet) -> Sequence[Change]:
    """What the version changed: compared with the newest one before it that was in force; all of it where none was."""
    before = (
        ReferenceSet.objects.filter(cluster=row.cluster_id, version__lt=row.version, approved_at__isnull=False)
        .order_by("-version")
        .first()
    )
    return diff(ReferenceValues(secure_boot=False) if before is None else values_of(before), values_of(row))


@transaction.atomic
def trust_boot(
    *, verdict_id: int, reason: str, actor: Actor, keeps_others: bool = True, with_files: bool = False
) -> ReferenceSet:
    """Reference values from the boot that this verdict's evidence proves.

    `keeps_others`: what was allowed stays allowed beside it (hosts of other shapes); else the cluster's values are
    this boot's alone. `with_files`: the files of its IMA list become the allowlist.
    Raises NotFound, Invalid `reason_missing`, Conflict `boot_not_trustworthy`, `ima_list_not_kept`.
    """
    verdict = verdict_of(verdict_id, actor=actor)
    cluster = verdict.host.cluster
    authorize(actor, EDIT, cluster)
    appraisal = _again(verdict)
    try:
        values = engine.baseline(_boot(appraisal, verdict))
    except engine.NotTrustworthy as exc:
        raise Conflict(
            "boot_not_trustworthy", f"this boot of {verdict.host} cannot be trusted: {exc}",
            hint="attest the host again; an edited log or a missing quote never becomes a baseline",
        ) from exc  # fmt: skip
    active = appraisals.active_reference(cluster.pk)
    old = None if active is None else values_of(active)
    if with_files:
        if appraisal.measurements is None:
            raise Conflict(
                "ima_list_not_kept", f"this evidence of {verdict.host} holds no whole IMA list",
                hint="attest the host again after it has booted, or leave the files out",
            )  # fmt: skip
        kept = ImaReference() if old is None or old.ima is None else old.ima
        values = replace(values, ima=replace(kept, allowed=_merged(kept, allowed_files(appraisal.measurements))))
    elif old is not None:
        values = replace(values, ima=old.ima)
    if keeps_others and old is not None:
        values = _union(old, values)
    return _make(cluster, values, reason, actor, verdict)


def acceptable(verdict: Verdict) -> list[Acceptable]:
    """What of a verdict's findings can be accepted, where its evidence is kept."""
    if verdict.evidence_id is None or verdict.reference_id is None:
        return []
    return [
        Acceptable(int(each["event"]), str(each["code"]), str(each["message"]))
        for each in verdict.findings
        if each["code"] in _ACCEPTED_AS and each["event"] is not None
    ]


@transaction.atomic
def accept_changes(*, verdict_id: int, events_accepted: Sequence[int], reason: str, actor: Actor) -> ReferenceSet:
    """The events of these numbers, that a verdict found unknown, become allowed beside what was allowed.

    Raises Invalid `nothing_to_accept`, Conflict `references_missing`, `boot_not_trustworthy`.
    """
    verdict = verdict_of(verdict_id, actor=actor)
    cluster = verdict.host.cluster
    authorize(actor, EDIT, cluster)
    active = appraisals.active_reference(cluster.pk)
    if active is None:
        raise Conflict(
            "references_missing", f"{cluster} has no reference values", hint="trust a boot as baseline first"
        )
    wanted = set(events_accepted)
    chosen = [each for each in acceptable(verdict) if each.event in wanted]
    if not chosen or wanted - {each.event for each in chosen}:
        raise Invalid(
            "nothing_to_accept", f"the verdict of {verdict.host} names no such change", hint="choose from its findings"
        )
    boot = _boot(_again(verdict), verdict)
    by_part: dict[str, set[int]] = {}
    for each in chosen:
        by_part.setdefault(_ACCEPTED_AS[FindingCode(each.code)], set()).add(each.event)
    try:
        values = engine.accept(
            values_of(active),
            boot,
            components=frozenset(by_part.get("components", ())),
            authorities=frozenset(by_part.get("authorities", ())),
            command_lines=frozenset(by_part.get("command_lines", ())),
        )
    except (engine.NotTrustworthy, KeyError) as exc:
        raise Conflict(
            "boot_not_trustworthy", f"this boot of {verdict.host} cannot be accepted from", hint="attest the host again"
        ) from exc
    return _make(cluster, values, reason, actor, verdict)


@transaction.atomic
def save_references(*, cluster_id: UUID, body: str, reason: str, actor: Actor) -> ReferenceSet:
    """A version by hand: the whole JSON (docs/attestation.md). Raises Invalid `references_malformed`."""
    cluster = cluster_of(cluster_id)
    authorize(actor, EDIT, cluster)
    try:
        values = from_json(body.encode())
        if values.ima is not None:
            ImaPolicy(values.ima)
    except (Malformed, BadPattern, UnicodeEncodeError, ValueError) as exc:
        raise Invalid("references_malformed", str(exc), hint="see docs/attestation.md, Reference values") from exc
    return _make(cluster, values, reason, actor, None)


@transaction.atomic
def approve_references(*, reference_id: UUID, actor: Actor) -> ReferenceSet:
    """A second administrator puts a version in force. Raises Conflict `references_approved`, `references_superseded`,
    Refused `second_person_needed`."""
    found = reference_of(reference_id, actor=actor)
    authorize(actor, APPROVE, found.cluster)
    found = ReferenceSet.objects.select_for_update().select_related("cluster").get(pk=found.pk)
    if found.approved_at is not None:
        raise Conflict("references_approved", f"{found} are approved already")
    active = appraisals.active_reference(found.cluster_id)
    if active is not None and active.version > found.version:
        raise Conflict(
            "references_superseded", f"version {active.version} is in force, and newer", hint="make a new one"
        )
    if _needs_second(found.cluster) and actor.username == found.made_by:
        raise Refused(
            "second_person_needed", f"{found} were made by {found.made_by}: somebody else has to approve them",
            hint="ask a second administrator",
        )  # fmt: skip
    _approve(found, actor)
    return found


def verdict_of(verdict_id: int, *, actor: Actor) -> Verdict:
    found = (
        Verdict.objects.select_related("host__cluster__datacenter", "evidence__event_log", "reference")
        .filter(pk=verdict_id)
        .first()
    )
    if found is None:
        raise NotFound("verdict_not_found", f"there is no verdict {verdict_id}", hint="old ones are dropped")
    authorize(actor, VIEW, found.host)
    return found


def _again(verdict: Verdict) -> Appraisal:
    if verdict.evidence is None:
        raise Conflict(
            "evidence_not_kept", f"the evidence of this verdict of {verdict.host} is no longer kept",
            hint="attest the host again",
        )  # fmt: skip
    return appraisals.appraise_again(verdict.evidence, appraisals.compile_anew(None))


def _boot(appraisal: Appraisal, verdict: Verdict) -> Boot:
    if appraisal.boot is None:
        raise Conflict(
            "boot_not_trustworthy", f"nothing proves what {verdict.host} booted: {verdict.message}",
            hint="see the findings, repair the cause, and attest the host again",
        )  # fmt: skip
    return appraisal.boot


def _union(old: ReferenceValues, new: ReferenceValues) -> ReferenceValues:
    """Allowed is what either allows; required of all is what both require. A part that is not looked at stays so."""
    return replace(
        new,
        secure_boot=old.secure_boot and new.secure_boot,
        authorities=None if old.authorities is None else old.authorities | (new.authorities or frozenset()),
        components=None if old.components is None else old.components | (new.components or frozenset()),
        pin_configuration=old.pin_configuration,
        command_lines=(
            None
            if old.command_lines is None
            else (*old.command_lines, *(each for each in new.command_lines or () if each not in old.command_lines))
        ),
        revocations=Revocations(min(old.revocations.minimum, new.revocations.minimum), old.revocations.required),
    )


def _merged(kept: ImaReference, found: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    return {
        path: kept.allowed.get(path, frozenset()) | found.get(path, frozenset()) for path in {*kept.allowed, *found}
    }


def _make(
    cluster: Cluster, values: ReferenceValues, reason: str, actor: Actor, verdict: Verdict | None
) -> ReferenceSet:
    reason = reason.strip()
    if not reason or len(reason) > 300 or not reason.isprintable():
        raise Invalid("reason_missing", "a reason of 1 to 300 characters is needed", hint="say why, for those who ask")
    Cluster.objects.select_for_update().filter(pk=cluster.pk).first()
    newest = ReferenceSet.objects.filter(cluster=cluster).order_by("-version").first()
    row = ReferenceSet.objects.create(
        cluster=cluster, version=1 if newest is None else newest.version + 1, body=to_json(values).decode(),
        reason=reason, made_by=actor.username, from_verdict=verdict,
    )  # fmt: skip
    needs_second = _needs_second(cluster)
    waits = "; they wait for approval" if needs_second else ""
    events.record(
        "attestation.references_made", f"Reference values {row.version} of {cluster} made: {reason}{waits}",
        target=cluster, actor=actor, version=row.version, host=None if verdict is None else verdict.host.name,
        changes=[_printable(f"{each.kind.value} {each.part}: {each.subject}")[:200] for each in changes_of(row)][:50],
    )  # fmt: skip
    if not needs_second:
        _approve(row, actor)
    return row


def _needs_second(cluster: Cluster) -> bool:
    """By the cluster's policy, or by the console's rule for all of them."""
    return policy_of(cluster).two_person_references or jobs.needs_second_person(EDIT)


def _printable(text: str) -> str:
    """Names are anybody's text, and an event's data take no NUL."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _approve(row: ReferenceSet, actor: Actor) -> None:
    row.approved_by, row.approved_at = actor.username, timezone.now()
    row.save(update_fields=["approved_by", "approved_at"])
    events.record(
        "attestation.references_approved", f"Reference values {row.version} of {row.cluster} are in force",
        target=row.cluster, actor=actor, version=row.version,
    )  # fmt: skip
    schedule.attest_cluster_soon(row.cluster_id, reason=VerdictReason.REFERENCES)
