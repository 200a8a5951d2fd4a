"""Enrolment: an administrator ties a TPM whose agent has registered to a host, accepts another TPM, or lets one go.

Only a registration whose TPM has answered its challenge can be enrolled, with an attestation key that signs nothing
but what its TPM made, under no weak hash, and an endorsement key that a trust anchor or the administrator vouches for.
"""

import re
from typing import Final
from uuid import UUID

from cryptography import x509
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from attestation.engine.errors import Malformed
from attestation.engine.tpm.public import Public, ak_defects, parse_key, weak_hashes
from attestation.models import (
    AgentOffer,
    HostAttestation,
    PendingRegistration,
    TpmIdentity,
    TrustAnchor,
    VerdictReason,
    VerdictStatus,
)
from attestation.services import appraisals, schedule
from inventory import alarms, events
from inventory.authorize import VIEW_ALL, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Host, Severity
from inventory.services.hosts import host_of
from inventory.services.listings import FIRST, Listing, Paging, listed

ENROL: Final = "attestation.enrol_host"
TPM_CHANGED_ALARM: Final = "host.tpm_changed"
_OFFER: Final = tuple(field.name for field in AgentOffer._meta.get_fields())
_API_VERSION: Final = re.compile(r"[0-9]{1,2}\.[0-9]{1,2}")
_CONTACT: Final = re.compile(r"[0-9A-Za-z.:_-]{1,253}")


def registrations(*, actor: Actor, paging: Paging = FIRST) -> Listing[PendingRegistration]:
    """TPMs that have proven themselves and are no host's, newest first."""
    authorize(actor, VIEW_ALL)
    return listed(_waiting(), paging)


def _waiting() -> "QuerySet[PendingRegistration]":
    taken = TpmIdentity.objects.values("ek_name")
    return PendingRegistration.objects.filter(activated_at__isnull=False).exclude(ek_name__in=taken)


def registration_of(registration_id: UUID, *, actor: Actor) -> PendingRegistration:
    authorize(actor, VIEW_ALL)
    found = PendingRegistration.objects.filter(pk=registration_id, activated_at__isnull=False).first()
    if found is None:
        raise NotFound(
            "registration_not_found", f"there is no registration {registration_id} whose TPM has proven itself",
            hint="restart the agent, so that it registers again",
        )  # fmt: skip
    return found


def matching_host(registration: PendingRegistration) -> Host | None:
    """Whose it seems to be: by the host's UUID as agent id, or by a name or address. A proposal, and no proof."""
    try:
        by_uuid = Host.objects.filter(host_uuid=UUID(registration.agent_id)).first()
    except ValueError:
        by_uuid = None
    if by_uuid is not None:
        return by_uuid
    names = {registration.contact_host, registration.agent_id} - {""}
    return Host.objects.filter(name__in=names).first() or Host.objects.filter(hostname__in=names).first()


def matching_registration(host: Host) -> PendingRegistration | None:
    """The newest one that seems to be this host's."""
    return next((each for each in _waiting()[:100] if matching_host(each) == host), None)


def other_tpm_of(identity: TpmIdentity) -> PendingRegistration | None:
    """The newest registration by the same agent name of a TPM that is not the host's: an incident, or a new board."""
    return _waiting().filter(agent_id=identity.agent_id).exclude(ek_name=identity.ek_name).first()


def vouched(offer: PendingRegistration | TpmIdentity) -> tuple[TrustAnchor | None, str]:
    """The anchor behind its endorsement key; else None and why there is none."""
    anchors = appraisals.trusted_anchors()
    check = appraisals.endorsement_of(offer, appraisals.pinned_certificates(anchors), now=timezone.now())
    if check is None or not check.is_trusted:
        return None, "" if check is None else check.problem
    return next((each for each in anchors if each.fingerprint == check.fingerprints[-1]), None), ""


@transaction.atomic
def enrol_host(
    *, host_id: UUID, registration_id: UUID, actor: Actor, reason: str = "", contact_host: str = ""
) -> TpmIdentity:
    """Ties the registration's TPM to the host, and has it attested.

    `reason` is needed where no trust anchor vouches for the TPM: the administrator does, after comparing the EK's
    fingerprint. `contact_host`: where the agent is asked, if not where it says; its later registrations keep it.
    Raises Conflict `host_enrolled`, `tpm_in_use`; Invalid `ek_not_vouched_for`, `attestation_key_unfit`,
    `agent_contact_invalid`.
    """
    host = host_of(host_id)
    authorize(actor, ENROL, host)
    found = registration_of(registration_id, actor=actor)
    if TpmIdentity.objects.filter(host=host).exists():
        raise Conflict(
            "host_enrolled",
            f"{host} has an enrolled TPM already",
            hint="accept the new TPM, or remove the old one first",
        )
    identity = _identity(host, found, reason, contact_host, actor)
    _begin(identity)
    events.record(
        "host.tpm_enrolled", f"TPM of {host} enrolled", target=host, actor=actor, ek_name=identity.ek_name,
        ak_name=identity.ak_name, agent=identity.agent_id, vouched_by=_voucher(identity),
        why=identity.ek_accepted_reason,
    )  # fmt: skip
    return identity


@transaction.atomic
def accept_new_tpm(
    *, host_id: UUID, registration_id: UUID, reason: str, actor: Actor, contact_host: str = ""
) -> TpmIdentity:
    """The host has another TPM, and somebody knows why (a new mainboard). The old identity goes.

    Raises Conflict `host_not_enrolled`, `tpm_in_use`; Invalid `reason_missing` and what `enrol_host` raises.
    """
    host = host_of(host_id)
    authorize(actor, ENROL, host)
    reason = _reason(reason)
    old = identity_of(host)
    found = registration_of(registration_id, actor=actor)
    before = old.ek_name
    old.delete()
    identity = _identity(host, found, reason, contact_host, actor)
    _begin(identity)
    alarms.clear_alarm(TPM_CHANGED_ALARM, target=host)
    events.record(
        "host.tpm_replaced", f"{host}: another TPM accepted: {reason}", target=host, actor=actor,
        severity=Severity.WARNING, before=before, ek_name=identity.ek_name, agent=identity.agent_id,
        vouched_by=_voucher(identity), why=reason,
    )  # fmt: skip
    return identity


@transaction.atomic
def remove_identity(*, host_id: UUID, reason: str, actor: Actor) -> None:
    """The host is attested no longer. Under *hosts with an enrolled TPM* it gets keys without a verdict from then on.

    Raises Conflict `host_not_enrolled`, Invalid `reason_missing`.
    """
    host = host_of(host_id)
    authorize(actor, ENROL, host)
    reason = _reason(reason)
    identity = identity_of(host)
    identity.delete()
    HostAttestation.objects.filter(host=host).delete()
    for kind in (TPM_CHANGED_ALARM, "host.attestation_failed", "host.agent_unreachable"):
        alarms.clear_alarm(kind, target=host, is_told=True)
    events.record(
        "host.tpm_removed", f"TPM of {host} is no longer enrolled: {reason}", target=host, actor=actor,
        severity=Severity.WARNING, ek_name=identity.ek_name, agent=identity.agent_id,
    )  # fmt: skip


@transaction.atomic
def dismiss_registration(*, registration_id: UUID, actor: Actor) -> None:
    """Forgets a registration that is nobody's. Its agent may register again."""
    authorize(actor, ENROL)
    found = registration_of(registration_id, actor=actor)
    events.record(
        "attestation.registration_dismissed", f"Registration of agent {found.agent_id} dismissed", target=None,
        actor=actor, ek_name=found.ek_name, source=found.source_address,
    )  # fmt: skip
    found.delete()


def identity_of(host: Host) -> TpmIdentity:
    found = TpmIdentity.objects.select_related("ek_anchor").filter(host=host).first()
    if found is None:
        raise Conflict("host_not_enrolled", f"{host} has no enrolled TPM", hint="enrol it first")
    return found


def _identity(host: Host, found: PendingRegistration, reason: str, contact_host: str, actor: Actor) -> TpmIdentity:
    identity = TpmIdentity(
        host=host, agent_id=found.agent_id, activated_at=found.activated_at or timezone.now(),
        enrolled_by=actor.username,
        **{name: getattr(found, name) for name in _OFFER},
    )  # fmt: skip
    if contact_host.strip():
        identity.contact_host, identity.has_fixed_contact = contact_host.strip(), True
    _check_contact(identity)
    _check_key(identity)
    anchor, why = vouched(found)
    identity.ek_anchor = anchor
    if anchor is None:
        if not reason.strip():
            raise Invalid(
                "ek_not_vouched_for", f"no trust anchor vouches for this TPM: {why}",
                hint="add its maker's certificate to the trust anchors, or compare the fingerprint and give a reason",
            )  # fmt: skip
        identity.ek_accepted_by, identity.ek_accepted_reason = actor.username, _reason(reason)
    try:
        with transaction.atomic():
            identity.save(force_insert=True)
    except IntegrityError as exc:
        raise Conflict(
            "tpm_in_use", "this TPM, or an agent of this name, belongs to another host",
            hint="remove it there first",
        ) from exc  # fmt: skip
    PendingRegistration.objects.filter(agent_id=found.agent_id).delete()
    return identity


def _begin(identity: TpmIdentity) -> None:
    """The host stands anew: clock and IMA list of another TPM say nothing."""
    HostAttestation.objects.filter(host=identity.host).delete()
    HostAttestation.objects.create(
        host=identity.host, status=VerdictStatus.PENDING, message="enrolled, and not attested yet",
        next_check_at=timezone.now(),
    )  # fmt: skip
    schedule.attest_soon(identity.host_id, reason=VerdictReason.REGISTRATION)


def _voucher(identity: TpmIdentity) -> str:
    return identity.ek_anchor.name if identity.ek_anchor is not None else identity.ek_accepted_by


def _reason(reason: str) -> str:
    reason = reason.strip()
    if not reason or len(reason) > 300 or not reason.isprintable():
        raise Invalid("reason_missing", "a reason of 1 to 300 characters is needed", hint="say why, for those who ask")
    return reason


def _check_contact(identity: TpmIdentity) -> None:
    try:
        x509.load_pem_x509_certificate(identity.mtls_certificate_pem.encode())
        is_usable = True
    except ValueError:
        is_usable = False
    if not is_usable or not _API_VERSION.fullmatch(identity.api_version):
        raise Invalid(
            "agent_contact_invalid", f"agent {identity.agent_id} cannot be asked over TLS",
            hint="switch mutual TLS on in the agent's configuration, and restart it",
        )  # fmt: skip
    if not _CONTACT.fullmatch(identity.contact_host) or not 1 <= identity.contact_port <= 65535:
        raise Invalid(
            "agent_contact_invalid", f"{identity.contact_host[:100]!r} is no address of an agent",
            hint="give the host's name or IP address",
        )  # fmt: skip


def _check_key(identity: TpmIdentity) -> None:
    """An unrestricted key signs what anybody writes, and one under SHA-1 what somebody may have found a second of."""
    try:
        key = parse_key(bytes(identity.ak_public))
    except Malformed as exc:
        raise _unfit(str(exc)) from exc
    if not isinstance(key, Public):
        raise _unfit("it came without its attributes")
    if defects := (*ak_defects(key), *weak_hashes(key)):
        raise _unfit(f"it {'; it '.join(defects)}")
    if key.name.hex() != identity.ak_name:
        raise _unfit("it is not the key that was activated")


def _unfit(why: str) -> Invalid:
    return Invalid(
        "attestation_key_unfit", f"the attestation key cannot be enrolled: {why}",
        hint="set the agent to a restricted signing key with SHA-256 or better, and restart it",
    )  # fmt: skip
