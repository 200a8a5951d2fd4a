"""Trust between this console and key servers, web side: reviewing a server's certificate, and our client identity.

Four ways lead to a client identity: our own CA, a self-signed certificate, a signing request (key_providers.py), or
an uploaded certificate with its key. What was made or uploaded is *staged* while another is in use, so that the key
servers can be told first; "put into use" tries it there and changes over only when a server takes it.
"""

from typing import Final
from uuid import UUID

from django.db import transaction

from encryption.models import ClientKeyUpload, KmsCluster, KmsServer
from encryption.services import certificates, messages
from encryption.services.key_providers import MANAGE, ask_check, cluster, held, server
from encryption.services.sealed_uploads import seal_client_identity
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Job, Severity

FETCH_CERTIFICATE: Final = jobs.register(
    jobs.JobKind("encryption.fetch_server_certificate", "Fetch key server certificate", queue=messages.QUEUE)
)
ISSUE_CLIENT_CERTIFICATE: Final = jobs.register(
    jobs.JobKind("encryption.issue_client_certificate", "Make client certificate")
)
TAKE_CLIENT_KEY: Final = jobs.register(jobs.JobKind("encryption.take_client_key", "Take uploaded client key"))
USE_CLIENT_CERTIFICATE: Final = jobs.register(
    jobs.JobKind("encryption.use_client_certificate", "Put client certificate into use", queue=messages.QUEUE)
)
METHODS: Final = ("console_ca", "self_signed")
PINS: Final = ("certificate", "issuer")


@transaction.atomic
def fetch_certificate(*, server_id: UUID, actor: Actor) -> Job:
    """A worker looks at the certificate that the server shows, for a person to review. Nothing is trusted by it."""
    authorize(actor, MANAGE)
    found = server(server_id, actor=actor)
    return jobs.start(FETCH_CERTIFICATE, target=found.cluster, actor=actor, params={"server": str(found.pk)})


@transaction.atomic
def accept_certificate(*, server_id: UUID, fingerprint: str, pin: str, actor: Actor) -> KmsCluster:
    """Trusts what was reviewed, besides what is trusted already.

    `fingerprint` is that of the server's own certificate as the person saw it: another one shown since is refused.
    `pin`: "certificate" trusts that one alone, "issuer" the highest CA that the server sent along.
    """
    authorize(actor, MANAGE)
    if pin not in PINS:
        raise Invalid("pin_invalid", f"{pin[:20]!r} cannot be trusted", hint=f"one of {', '.join(PINS)}")
    found = server(server_id, actor=actor)
    owner = held(found.cluster_id, actor=actor)
    chain = certificates.loaded(found.certificate_pem)
    if not chain:
        raise Conflict(
            "no_server_certificate", f"no certificate of {found} was looked at yet", hint="fetch it, then review it"
        )
    if certificates.fingerprint(chain[0]) != fingerprint.strip().lower().replace(":", ""):
        raise Conflict(
            "server_certificate_changed",
            f"{found} shows another certificate than the one that was reviewed",
            hint="review the one that is shown now",
        )
    anchor = chain[0] if pin == "certificate" else certificates.issuer_of(chain)
    if anchor is None:
        raise Conflict(
            "server_issuer_unknown",
            f"{found} did not send the CA that issued its certificate",
            hint="trust the certificate itself, or paste the CA",
        )
    trusted = certificates.loaded(owner.trusted_pem)
    if certificates.fingerprint(anchor) not in {certificates.fingerprint(one) for one in trusted}:
        owner.trusted_pem = certificates.text_of([*trusted, anchor])
        owner.save(update_fields=["trusted_pem"])
        events.record(
            "kms.server_trusted",
            f"{owner}: servers under {certificates.subject(anchor)} are trusted, as {found} showed",
            target=owner, actor=actor, fingerprints=[certificates.fingerprint(anchor)], server=str(found), pin=pin,
        )  # fmt: skip
        ask_check(owner.pk)
    return owner


@transaction.atomic
def distrust_certificate(*, cluster_id: UUID, fingerprint: str, actor: Actor) -> KmsCluster:
    """Takes one certificate, by its SHA-256, out of what is trusted.

    Raises Conflict `last_trusted_certificate` for the only one while VMs have keys there: trust the next one first.
    """
    authorize(actor, MANAGE)
    owner = held(cluster_id, actor=actor)
    trusted = certificates.loaded(owner.trusted_pem)
    digest = fingerprint.strip().lower().replace(":", "")
    gone = [one for one in trusted if certificates.fingerprint(one) == digest]
    if not gone:
        raise NotFound("certificate_not_found", f"{owner} does not trust a certificate with that fingerprint")
    left = [one for one in trusted if one not in gone]
    if not left and owner.keys.filter(wrapped_secrets__isnull=False).exists():
        raise Conflict(
            "last_trusted_certificate",
            f"{owner} holds keys of VMs, and no other certificate of its servers is trusted",
            hint="trust the new certificate or CA first",
        )
    owner.trusted_pem = certificates.text_of(left)
    owner.save(update_fields=["trusted_pem"])
    events.record(
        "kms.server_distrusted", f"{owner}: servers under {certificates.subject(gone[0])} are trusted no longer",
        target=owner, actor=actor, severity=Severity.WARNING, fingerprints=[digest],
    )  # fmt: skip
    ask_check(owner.pk)
    return owner


def shown_certificate(found: KmsServer) -> list[certificates.CertificateFacts]:
    """The certificate that the server showed last and the issuers it sent along; none before the first look."""
    return certificates.describe(found.certificate_pem)


def can_pin_issuer(found: KmsServer) -> bool:
    return certificates.issuer_of(certificates.loaded(found.certificate_pem)) is not None


@transaction.atomic
def request_client_certificate(*, cluster_id: UUID, method: str, actor: Actor) -> Job:
    """A worker makes a key and a certificate: "console_ca" from our CA for this cluster, or "self_signed"."""
    authorize(actor, MANAGE)
    if method not in METHODS:
        raise Invalid("method_invalid", f"{method[:20]!r} is no way to a certificate", hint=f"{' or '.join(METHODS)}")
    target = cluster(cluster_id, actor=actor)
    return jobs.start(ISSUE_CLIENT_CERTIFICATE, target=target, actor=actor, params={"method": method})


@transaction.atomic
def upload_client_key(*, cluster_id: UUID, certificate_pem: str, private_key_pem: str, actor: Actor) -> Job:
    """A certificate and key that the KMS administrator issued. The key is sealed to the workers at once.

    This process cannot open what it writes: a worker takes the row, reseals the key and deletes the row.
    """
    authorize(actor, MANAGE)
    owner = cluster(cluster_id, actor=actor)
    chain, sealed = seal_client_identity(certificate_pem, private_key_pem, context=upload_context(owner))
    job = jobs.start(TAKE_CLIENT_KEY, target=owner, actor=actor)
    ClientKeyUpload.objects.update_or_create(
        cluster=owner, defaults={"certificate_pem": certificates.text_of(chain), "sealed": sealed}
    )
    return job


def upload_context(owner: KmsCluster) -> bytes:
    """What an uploaded key is sealed for: this cluster and nothing else."""
    return b"bartizan client key " + owner.pk.bytes


@transaction.atomic
def use_client_certificate(*, cluster_id: UUID, actor: Actor) -> Job:
    """A worker tries the staged certificate at the servers, and puts it into use when one of them takes it."""
    authorize(actor, MANAGE)
    owner = cluster(cluster_id, actor=actor)
    if not owner.client_certificate_next_pem:
        raise Conflict("no_staged_certificate", f"{owner} has no staged client certificate", hint="make one first")
    return jobs.start(USE_CLIENT_CERTIFICATE, target=owner, actor=actor)


def download(*, cluster_id: UUID, what: str, actor: Actor) -> str:
    """A certificate of ours as PEM, for the KMS administrator. Raises NotFound where there is none."""
    found = cluster(cluster_id, actor=actor)
    texts = {
        "console-ca": found.client_ca_pem,
        "client-certificate": found.client_certificate_pem,
        "next-client-certificate": found.client_certificate_next_pem,
    }
    if not texts.get(what):
        raise NotFound("certificate_not_found", f"{found} has no such certificate", hint="make it first")
    return texts[what]
