"""The console's key for signatures over its history and its exports (ECDSA, P-256). Signing is for workers and the
command line, which have the console key; everybody may read the public half."""

from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings
from django.db import transaction
from django.db.models import F

from inventory import events
from inventory.authorize import SYSTEM, VIEW_ALL, Actor, authorize
from inventory.engine.checkpoint import fingerprint, in_text
from inventory.errors import Conflict, NotFound
from inventory.models import AuditKey, EventChain
from inventory.services.console_key import sealed, unsealed

NEWEST: Final = "-made_at"


def public_pem(*, actor: Actor) -> str:
    """Of the key that signs now. Raises NotFound `audit_key_not_made` before a worker has signed anything."""
    authorize(actor, VIEW_ALL)
    found = AuditKey.objects.order_by(NEWEST).first()
    if found is None:
        raise NotFound(
            "audit_key_not_made",
            "this console has signed nothing yet",
            hint="a worker makes the key when it first signs",
        )
    return found.public_pem


def current() -> AuditKey:
    """The row that signs; made at the first call. Raises Unavailable `console_key_missing` where it must be made."""
    found = AuditKey.objects.order_by(NEWEST).first()
    return found if found is not None else _made()


@transaction.atomic
def _made() -> AuditKey:
    EventChain.objects.get_or_create(pk=1)
    EventChain.objects.filter(pk=1).update(sequence=F("sequence"))  # one maker at a time
    found = AuditKey.objects.order_by(NEWEST).first()
    if found is not None:
        return found
    private = ec.generate_private_key(ec.SECP256R1())
    pem = _public_pem(private)
    made = AuditKey.objects.create(
        fingerprint=fingerprint(pem),
        public_pem=pem,
        private_sealed=sealed(private),
    )
    events.record(
        "audit.key_made", f"A key for signatures over the history was made: {made.fingerprint}", target=None,
        actor=SYSTEM, key=made.fingerprint,
    )  # fmt: skip
    return made


def sign(key: AuditKey, content: bytes) -> str:
    """The signature in base64url. Raises Unavailable `console_key_missing`, Conflict `audit_key_sealed_otherwise`."""
    return in_text(_private(key).sign(content, ec.ECDSA(hashes.SHA256())))


def has_console_key() -> bool:
    return bool(settings.CONSOLE_KEY)


def is_own(key: AuditKey) -> bool:
    """Whether this console's key sealed it, which nobody can feign who can only write the database. Raises Unavailable
    `console_key_missing`."""
    try:
        return _public_pem(_private(key)) == key.public_pem and fingerprint(key.public_pem) == key.fingerprint
    except Conflict:
        return False


def _private(key: AuditKey) -> ec.EllipticCurvePrivateKey:
    return unsealed(
        bytes(key.private_sealed), code="audit_key_sealed_otherwise",
        what=f"the key {key.fingerprint[:16]} for signatures",
    )  # fmt: skip


def _public_pem(private: ec.EllipticCurvePrivateKey) -> str:
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode("ascii")
