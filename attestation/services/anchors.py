"""Trust anchors: certificates of TPM makers' CAs, pinned by people. Each change has hosts attested anew."""

import hashlib
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.db import IntegrityError, transaction

from attestation.engine.errors import Malformed
from attestation.engine.tpm.endorsement import fingerprint, key_of, parse_certificates
from attestation.models import TpmIdentity, TrustAnchor, VerdictReason
from attestation.services import schedule
from inventory import events
from inventory.authorize import VIEW_ALL, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound

MANAGE: Final = "attestation.manage_anchors"


def anchors(*, actor: Actor) -> list[TrustAnchor]:
    """By name."""
    authorize(actor, VIEW_ALL)
    return list(TrustAnchor.objects.all())


def anchor_of(anchor_id: UUID, *, actor: Actor) -> TrustAnchor:
    authorize(actor, VIEW_ALL)
    found = TrustAnchor.objects.filter(pk=anchor_id).first()
    if found is None:
        raise NotFound("trust_anchor_not_found", f"there is no trust anchor {anchor_id}")
    return found


def add_anchor(*, name: str, certificate: str, actor: Actor) -> TrustAnchor:
    """Pins one certificate in PEM. Raises Invalid `trust_anchor_invalid`, Conflict `trust_anchor_exists`.

    NOT checked: whether it is a maker's at all. That is the comparison of its fingerprint, by the person.
    """
    authorize(actor, MANAGE)
    name = name.strip()
    if not name or len(name) > 200 or not name.isprintable():
        raise Invalid("trust_anchor_invalid", "a trust anchor needs a name of 1 to 200 characters")
    try:
        found = parse_certificates(certificate.encode())
        key = key_of(found[0])
    except Malformed as exc:
        raise Invalid("trust_anchor_invalid", str(exc), hint="paste one certificate in PEM") from exc
    if len(found) != 1:
        raise Invalid(
            "trust_anchor_invalid", f"these are {len(found)} certificates", hint="add them one by one: each is trusted"
        )
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        with transaction.atomic():
            row = TrustAnchor.objects.create(
                name=name,
                certificate_pem=found[0].public_bytes(Encoding.PEM).decode("ascii"),
                spki_sha256=hashlib.sha256(spki).hexdigest(),
                fingerprint=fingerprint(found[0]),
                not_after=found[0].not_valid_after_utc,
                added_by=actor.username,
            )
            events.record("attestation.anchor_added", f"Trust anchor {name} for TPMs added", target=None, actor=actor,
                          fingerprint=row.fingerprint)  # fmt: skip
    except IntegrityError as exc:
        raise Conflict(
            "trust_anchor_exists", f"there is a trust anchor {name} already, or one with this key",
            hint="choose another name, or remove the other one first",
        ) from exc  # fmt: skip
    return row


@transaction.atomic
def remove_anchor(*, anchor_id: UUID, actor: Actor) -> None:
    """Hosts that were trusted by it fail their next attestation, which is asked for at once."""
    authorize(actor, MANAGE)
    found = anchor_of(anchor_id, actor=actor)
    hosts = list(TpmIdentity.objects.filter(ek_anchor=found).values_list("host_id", flat=True))
    events.record("attestation.anchor_removed", f"Trust anchor {found} for TPMs removed", target=None, actor=actor,
                  fingerprint=found.fingerprint, hosts=len(hosts))  # fmt: skip
    found.delete()
    for host_id in hosts:
        schedule.void_and_attest(host_id, reason=VerdictReason.REFERENCES)
