"""An agent registers, and its TPM answers a challenge. The registrar's side; no person acts here.

1. `register` keeps the offer beside everything that is known, and seals a secret to the TPM that has both keys.
2. `activate` compares the answer. Only a right one changes anything:
   - the TPM that is known under this id: its identity gets what was offered, a new attestation key among it;
   - another TPM under a known id: an incident. The identity stays; event, alarm; an administrator decides;
   - a TPM that is known under another id: refused in the same way;
   - nobody's: it waits to be enrolled to a host.

So nobody can disturb an active identity by registering, and a wrong answer deletes nothing. Rows are bounded: in all,
for each id and for each address. NOT protected: what plain HTTP carries beside the keys. Whoever stands between agent
and registrar can put an address and a TLS certificate of their own into an offer; they then see nonces and quotes, and
cannot make any.
"""

import base64
import hmac
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from django.db import transaction
from django.utils import timezone

from attestation.engine.errors import Malformed
from attestation.engine.registration import Offer
from attestation.engine.tpm.credential import challenge, ek_public_of
from attestation.engine.tpm.public import MalformedKey, Public, PublicKey, parse_key
from attestation.models import AgentOffer, HostAttestation, PendingRegistration, TpmIdentity, VerdictReason
from attestation.services import schedule
from inventory import alarms, events
from inventory.authorize import SYSTEM
from inventory.errors import Invalid, Refused, ServiceError
from inventory.models import Alarm, Severity

CHANGED_ALARM: Final = "host.tpm_changed"
ANSWER_WITHIN: Final = timedelta(minutes=10)
WAITS_FOR: Final = timedelta(days=30)
MOST_UNANSWERED: Final = 2_000
MOST_UNANSWERED_OF_ADDRESS: Final = 100
MOST_UNANSWERED_OF_AGENT: Final = 16
MOST_WAITING: Final = 5_000
MOST_WAITING_OF_AGENT: Final = 4


class TooMany(ServiceError):
    """So many registrations wait for an answer that another one is not kept. The agent tries again."""

    http_status = 429
    retryable = True


def register(*, agent_id: str, offer: Offer, source_address: str) -> str:
    """Keeps the offer, and returns the challenge to its TPM: base64 of tpm2-tools' credential file.

    Raises Invalid `ek_unusable`, TooMany `registrations_full`.
    """
    try:
        made = challenge(offer.ek, offer.ak.name)
    except MalformedKey as exc:
        raise Invalid("ek_unusable", str(exc)) from exc
    now = timezone.now()
    with transaction.atomic():
        _drop_expired(now)
        _require_room(agent_id, source_address)
        PendingRegistration.objects.create(
            agent_id=agent_id,
            expected_auth_tag=made.expected_auth_tag(agent_id),
            source_address=source_address,
            expires_at=now + ANSWER_WITHIN,
            **_fields(offer, source_address),
        )
    return base64.b64encode(made.blob).decode()


def activate(*, agent_id: str, auth_tag: str) -> None:
    """Takes the answer of a TPM. While a registration waits, the same answer once more is right and changes nothing.

    Raises Invalid `auth_tag_wrong`, Refused `tpm_changed` or `tpm_known_otherwise`.
    """
    now = timezone.now()
    with transaction.atomic():
        row = _answered(agent_id, auth_tag, now)
        if row is None:
            raise Invalid("auth_tag_wrong", "no registration of this agent has this answer", hint="register again")
        if row.activated_at is None:
            _activate(row, now)
    # Outside: the row with its refusal, event and alarm are to stay.
    if row.refusal_code:
        raise Refused(row.refusal_code, row.refusal)


def _fields(offer: Offer, source_address: str) -> dict[str, object]:
    return {
        "ek_public": offer.ek.raw,
        "ek_name": offer.ek.name.hex(),
        "ek_certificate_pem": offer.ek_certificate_pem,
        "ak_public": len(offer.ak.raw).to_bytes(2, "big") + offer.ak.raw,
        "ak_name": offer.ak.name.hex(),
        "mtls_certificate_pem": offer.mtls_certificate_pem,
        "contact_host": offer.contact_host or source_address,
        "contact_port": offer.contact_port,
    }


def _drop_expired(now: datetime) -> None:
    PendingRegistration.objects.filter(activated_at__isnull=True, expires_at__lt=now).delete()
    PendingRegistration.objects.filter(activated_at__lt=now - WAITS_FOR).delete()


def _require_room(agent_id: str, source_address: str) -> None:
    """An address that registers an id again takes back its own earlier, unanswered rows of it."""
    unanswered = PendingRegistration.objects.filter(activated_at__isnull=True)
    unanswered.filter(agent_id=agent_id, source_address=source_address).delete()
    for rows, most in (
        (unanswered, MOST_UNANSWERED),
        (unanswered.filter(source_address=source_address), MOST_UNANSWERED_OF_ADDRESS),
        (unanswered.filter(agent_id=agent_id), MOST_UNANSWERED_OF_AGENT),
    ):
        if rows.count() >= most:
            raise TooMany("registrations_full", "too many registrations wait for their TPMs", hint="try again later")


def _answered(agent_id: str, auth_tag: str, now: datetime) -> PendingRegistration | None:
    """The row with this answer. All are compared, each in the same time, so that time tells nothing."""
    rows = PendingRegistration.objects.select_for_update().filter(agent_id=agent_id, expires_at__gte=now)
    given, found = auth_tag.encode(), None
    for row in rows[: MOST_UNANSWERED_OF_AGENT + MOST_WAITING_OF_AGENT]:
        if hmac.compare_digest(row.expected_auth_tag.encode(), given):
            found = row
    return found


def _activate(row: PendingRegistration, now: datetime) -> None:
    row.activated_at = now
    identity = TpmIdentity.objects.select_for_update().select_related("host").filter(agent_id=row.agent_id).first()
    if identity is not None and _same_ek(identity, row):
        _renew(identity, row, now)
    elif identity is not None:
        _refuse(
            row, identity, "tpm_changed",
            f"another TPM has registered as {row.agent_id}, the agent of {identity.host}",
            "was the mainboard or the TPM replaced? Then accept the new TPM of this host; else somebody poses as it",
        )  # fmt: skip
    elif (other := _identity_with_ek(row)) is not None:
        _refuse(
            row, other, "tpm_known_otherwise",
            f"the TPM of {other.host} has registered as {row.agent_id}, and is known as {other.agent_id}",
            "give the agent its old id again, or remove the enrolment of the host and enrol it anew",
        )  # fmt: skip
    else:
        _let_wait(row)


def _renew(identity: TpmIdentity, row: PendingRegistration, now: datetime) -> None:
    is_new_key = identity.ak_name != row.ak_name
    for field in ("ak_public", "ak_name", "mtls_certificate_pem", "contact_port", "api_version"):
        setattr(identity, field, getattr(row, field))
    if not identity.has_fixed_contact:
        identity.contact_host = row.contact_host
    if row.ek_certificate_pem:
        identity.ek_certificate_pem = row.ek_certificate_pem
    identity.activated_at = now
    identity.registrations += 1
    identity.save()
    # The TPM that belongs here has shown itself: what others tried under its id is over.
    PendingRegistration.objects.filter(agent_id=row.agent_id, activated_at__isnull=False).delete()
    row.delete()
    key = "with a new attestation key" if is_new_key else "with the same attestation key"
    events.record(
        "host.agent_registered", f"The agent of {identity.host} has registered {key}", target=identity.host,
        actor=SYSTEM, agent=row.agent_id, ak=row.ak_name, source=row.source_address,
    )  # fmt: skip
    alarms.clear_alarm(CHANGED_ALARM, target=identity.host)
    HostAttestation.objects.get_or_create(host=identity.host)
    schedule.void_and_attest(identity.host_id, reason=VerdictReason.REGISTRATION)


def _refuse(row: PendingRegistration, identity: TpmIdentity, code: str, message: str, remedy: str) -> None:
    """The answer was right, and the TPM is not the one that belongs here."""
    _make_room_to_wait(row)
    row.refusal_code, row.refusal = code, message[:500]
    row.save()
    is_news = not Alarm.objects.filter(kind=CHANGED_ALARM, target_id=identity.host_id, cleared_at=None).exists()
    alarms.raise_alarm(
        CHANGED_ALARM, message, target=identity.host, severity=Severity.ERROR, remedy=remedy, is_told=True,
        evidence=[f"endorsement key now: {row.ek_name}", f"endorsement key enrolled: {identity.ek_name}",
                  f"registered from {row.source_address}"],
    )  # fmt: skip
    if is_news:
        events.record(
            "host.tpm_changed", message, target=identity.host, actor=SYSTEM, severity=Severity.ERROR,
            agent=row.agent_id, ek=row.ek_name, source=row.source_address, refusal=code,
        )  # fmt: skip


def _let_wait(row: PendingRegistration) -> None:
    before = PendingRegistration.objects.filter(agent_id=row.agent_id, activated_at__isnull=False)
    is_news = not before.filter(ek_name=row.ek_name).exists()
    _make_room_to_wait(row)
    row.save()
    if is_news:
        events.record(
            "attestation.agent_waits", f"Agent {row.agent_id} has shown its TPM and waits to be enrolled to a host",
            target=None, actor=SYSTEM, agent=row.agent_id, ek=row.ek_name, source=row.source_address,
        )  # fmt: skip


def _make_room_to_wait(row: PendingRegistration) -> None:
    """The newest of a TPM replaces its older ones. Raises TooMany, and then the row stays unanswered."""
    waiting = PendingRegistration.objects.filter(activated_at__isnull=False)
    waiting.filter(agent_id=row.agent_id, ek_name=row.ek_name).delete()
    if (
        waiting.filter(agent_id=row.agent_id).count() >= MOST_WAITING_OF_AGENT
        or waiting.count() >= MOST_WAITING
    ):  # fmt: skip
        raise TooMany("registrations_full", "too many agents wait to be enrolled", hint="enrol or dismiss them")


def _same_ek(one: AgentOffer, other: AgentOffer) -> bool:
    """By the key: what an agent says of the key's attributes is its own word, and changes the name."""
    if one.ek_name == other.ek_name:
        return True
    return _ek(one) == _ek(other)


def _ek(offer: AgentOffer) -> PublicKey:
    found = parse_key(bytes(offer.ek_public))
    return found.key if isinstance(found, Public) else found


def _identity_with_ek(row: PendingRegistration) -> TpmIdentity | None:
    return TpmIdentity.objects.select_related("host").filter(ek_name__in=_names(row)).first()


def _names(row: PendingRegistration) -> Iterable[str]:
    """The EK's name as it was offered, and as it is by the TCG's template."""
    try:
        return {row.ek_name, ek_public_of(_ek(row)).name.hex()}
    except Malformed:
        return {row.ek_name}
