"""Key providers: clusters of KMIP key servers, and the two directions of trust with them.

The web process writes addresses and certificates only. Everything that needs the client's private key, or a
connection, is a job on a worker, which has the console key (settings.CONSOLE_KEY).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from django.db import transaction
from django.db.models import Max, Prefetch, QuerySet

from encryption.models import Key, KmsCluster, KmsServer, WrappedSecret
from inventory import events, jobs
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Job, Severity
from inventory.services.listings import FIRST, Listing, Paging, listed

CREATE_CLIENT_KEY: Final = jobs.register(jobs.JobKind("encryption.create_client_key", "Create client key"))
CHECK: Final = jobs.register(jobs.JobKind("encryption.check_key_provider", "Check key provider"))
MANAGE: Final = "encryption.manage_key_servers"
MAX_NAME: Final = 80
MAX_HOST: Final = 253
MAX_PEM_CHARACTERS: Final = 65_536


def clusters(*, actor: Actor) -> QuerySet[KmsCluster]:
    """All key providers with their servers, in two queries."""
    authorize(actor, VIEW)
    return KmsCluster.objects.prefetch_related("servers")


def cluster(cluster_id: UUID, *, actor: Actor) -> KmsCluster:
    authorize(actor, VIEW)
    found = KmsCluster.objects.filter(pk=cluster_id).first()
    if found is None:
        raise NotFound("key_provider_not_found", f"there is no key provider {cluster_id}")
    return found


def keys(*, cluster_id: UUID, actor: Actor, paging: Paging = FIRST) -> Listing[Key]:
    """The cluster's keys, the newest first, with the VMs whose secrets each wraps; the wrapped secrets stay behind."""
    owner = cluster(cluster_id, actor=actor)
    secrets = WrappedSecret.objects.select_related("virtual_machine").defer("wrapped")
    return listed(owner.keys.prefetch_related(Prefetch("wrapped_secrets", secrets)), paging)


@transaction.atomic
def add_cluster(*, name: str, actor: Actor, is_lab: bool = False) -> KmsCluster:
    """A key provider without servers. The first one becomes the default."""
    authorize(actor, MANAGE)
    name = name.strip()
    if not name:
        raise Invalid("name_missing", "the key provider has no name", hint="give it one")
    if len(name) > MAX_NAME or not name.isprintable():
        raise Invalid(
            "name_invalid",
            "that name is too long or holds characters that cannot be printed",
            hint=f"at most {MAX_NAME} characters; it is written into the metadata of VMs",
        )
    if KmsCluster.objects.filter(name__iexact=name).exists():
        raise Conflict("name_taken", f"there is a key provider {name} already", hint="choose another name")
    is_default = not KmsCluster.objects.filter(is_default=True).exists()
    added = KmsCluster.objects.create(name=name, is_lab=is_lab, is_default=is_default)
    events.record("kms.added", f"Key provider {name} added", target=added, actor=actor, default=is_default, lab=is_lab)
    return added


@transaction.atomic
def add_provider(*, name: str, host: str, port: int, actor: Actor) -> KmsCluster:
    """A key provider with its first server."""
    added = add_cluster(name=name, actor=actor)
    add_server(cluster_id=added.pk, host=host, port=port, actor=actor)
    return added


def server(server_id: UUID, *, actor: Actor) -> KmsServer:
    authorize(actor, VIEW)
    found = KmsServer.objects.select_related("cluster").filter(pk=server_id).first()
    if found is None:
        raise NotFound("key_server_not_found", f"there is no key server {server_id}")
    return found


@transaction.atomic
def add_server(*, cluster_id: UUID, host: str, port: int, actor: Actor) -> KmsServer:
    """One more server of the cluster, tried after those that are there."""
    authorize(actor, MANAGE)
    owner = cluster(cluster_id, actor=actor)
    host = host.strip().strip("[]")
    if (
        not 0 < len(host) <= MAX_HOST
        or not host.isprintable()
        or any(char.isspace() or char in "/@?#" for char in host)
    ):
        raise Invalid(
            "host_invalid", f"{host[:80]!r} is no host name or address", hint="give a DNS name or an IP address"
        )
    if not 1 <= port <= 65535:
        raise Invalid("port_invalid", f"{port} is no port", hint="KMIP servers listen on 5696 as a rule")
    if owner.servers.filter(host__iexact=host, port=port).exists():
        raise Conflict("server_taken", f"{owner} has the server {host}:{port} already")
    last = owner.servers.aggregate(last=Max("position"))["last"]
    added = KmsServer.objects.create(cluster=owner, host=host, port=port, position=0 if last is None else last + 1)
    events.record(
        "kms.server_added", f"Key server {added} added to {owner}", target=owner, actor=actor, server=str(added)
    )
    return added


@transaction.atomic
def remove_server(*, server_id: UUID, actor: Actor) -> None:
    authorize(actor, MANAGE)
    gone = server(server_id, actor=actor)
    owner, name = gone.cluster, str(gone)
    if owner.keys.exists() and owner.servers.count() == 1:
        raise Conflict("key_server_needed", f"{name} is the only server of {owner}, which has keys in use")
    gone.delete()
    events.record(
        "kms.server_removed", f"Key server {name} removed from {owner}", target=owner, actor=actor,
        severity=Severity.WARNING, server=name,
    )  # fmt: skip


@transaction.atomic
def remove_cluster(*, cluster_id: UUID, actor: Actor) -> None:
    authorize(actor, MANAGE)
    owner = cluster(cluster_id, actor=actor)
    if owner.keys.exists():
        raise Conflict(
            "key_provider_in_use",
            f"{owner} holds keys of this console's VMs",
            hint="decrypt or recrypt those VMs first",
        )
    events.record("kms.removed", f"Key provider {owner} removed", target=owner, actor=actor, severity=Severity.WARNING)
    owner.delete()


@transaction.atomic
def set_default(*, cluster_id: UUID, actor: Actor) -> KmsCluster:
    """New keys come from the default provider."""
    authorize(actor, MANAGE)
    chosen = cluster(cluster_id, actor=actor)
    KmsCluster.objects.filter(is_default=True).update(is_default=False)
    chosen.is_default = True
    chosen.save(update_fields=["is_default"])
    events.record("kms.default_set", f"{chosen} is the default key provider now", target=chosen, actor=actor)
    return chosen


@transaction.atomic
def trust_server(*, cluster_id: UUID, certificate_pem: str, actor: Actor) -> KmsCluster:
    """The console trusts servers of this cluster that show a certificate issued by (or equal to) this one."""
    authorize(actor, MANAGE)
    owner = cluster(cluster_id, actor=actor)
    anchors = _certificates(certificate_pem)
    owner.trusted_pem = _pem(anchors)
    owner.save(update_fields=["trusted_pem"])
    subjects = [_subject(certificate) for certificate in anchors]
    events.record(
        "kms.server_trusted", f"{owner}: servers under {'; '.join(subjects)} are trusted", target=owner, actor=actor,
        fingerprints=[_fingerprint(certificate) for certificate in anchors],
    )  # fmt: skip
    return owner


@transaction.atomic
def request_client_key(*, cluster_id: UUID, actor: Actor) -> Job:
    """A worker makes a new client key and a signing request for it. The key in use stays until the new certificate."""
    authorize(actor, MANAGE)
    return jobs.start(CREATE_CLIENT_KEY, target=cluster(cluster_id, actor=actor), actor=actor)


@transaction.atomic
def install_client_certificate(*, cluster_id: UUID, certificate_pem: str, actor: Actor) -> KmsCluster:
    """Installs the certificate that a KMS administrator made from our CSR. It must be for that very key."""
    authorize(actor, MANAGE)
    owner = cluster(cluster_id, actor=actor)
    if not owner.client_csr_pem:
        raise Conflict("no_signing_request", f"{owner} has no signing request", hint="create a client key first")
    chain = _certificates(certificate_pem)
    wanted = x509.load_pem_x509_csr(owner.client_csr_pem.encode()).public_key()
    if _public_bytes(chain[0].public_key()) != _public_bytes(wanted):
        raise Invalid(
            "certificate_of_another_key",
            f"the first certificate ({_subject(chain[0])}) is not for the key of {owner}'s signing request",
            hint="have the request that is shown now signed, and put its certificate first",
        )
    owner.client_certificate_pem = _pem(chain)
    owner.client_key_sealed, owner.client_key_next_sealed = owner.client_key_next_sealed, b""
    owner.client_csr_pem = ""
    owner.save(
        update_fields=["client_certificate_pem", "client_key_sealed", "client_key_next_sealed", "client_csr_pem"]
    )
    events.record(
        "kms.client_certificate_installed",
        f"{owner}: client certificate {_subject(chain[0])} installed",
        target=owner, actor=actor, fingerprint=_fingerprint(chain[0]),
        not_after=chain[0].not_valid_after_utc.isoformat(),
    )  # fmt: skip
    return owner


@transaction.atomic
def check(*, cluster_id: UUID, actor: Actor) -> Job:
    """A worker connects to every server of the cluster and notes what it finds."""
    authorize(actor, MANAGE)
    return jobs.start(CHECK, target=cluster(cluster_id, actor=actor), actor=actor)


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a page shows of one certificate."""

    subject: str
    issuer: str
    fingerprint: str
    not_before: datetime
    not_after: datetime


def describe(pem: str) -> list[CertificateFacts]:
    """Of certificates that are installed already; none for an empty text."""
    return [
        CertificateFacts(
            subject=_subject(one),
            issuer=one.issuer.rfc4514_string(),
            fingerprint=_fingerprint(one),
            not_before=one.not_valid_before_utc,
            not_after=one.not_valid_after_utc,
        )
        for one in (x509.load_pem_x509_certificates(pem.encode()) if pem else [])
    ]


def _certificates(pem: str) -> list[x509.Certificate]:
    if len(pem) > MAX_PEM_CHARACTERS:
        raise Invalid("certificate_too_long", f"more than {MAX_PEM_CHARACTERS} characters of certificates")
    if "PRIVATE KEY" in pem:
        raise Invalid(
            "private_key_given", "that text holds a private key", hint="give certificates only, and replace that key"
        )
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except (ValueError, InvalidSignature) as exc:
        raise Invalid(
            "certificate_invalid", "that text is no PEM certificate", hint="it begins with -----BEGIN CERTIFICATE-----"
        ) from exc


def _pem(certificates: list[x509.Certificate]) -> str:
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in certificates)


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def _public_bytes(key: object) -> bytes:
    encode = key.public_bytes  # type: ignore[attr-defined]
    encoded: bytes = encode(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded
