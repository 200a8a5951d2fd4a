"""Worker side of our client identity at a key provider: made, taken from an upload, put into use.

The private key exists in clear in worker memory only; the database has it sealed under the console key. Steps of a
renewal: the new pair is staged beside the one in use; the key servers are told; it is tried there; then both columns
change in one transaction. At no moment is there no usable pair.
"""

from contextlib import suppress
from datetime import timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from django.db import transaction
from django.utils import timezone

from encryption.engine import keywrap, transport
from encryption.engine.key_server import KmsError
from encryption.engine.secret import Secret
from encryption.models import ClientKeyUpload, KmsCluster, TransportKey
from encryption.services import certificates
from encryption.services.key_access import client_with, cluster_of, console_key, unsealed
from encryption.services.key_providers import ask_check
from encryption.services.key_trust import upload_context
from encryption.services.keys import ENDED
from encryption.services.kms_state import service_error
from encryption.services.sealed_uploads import open_client_identity
from inventory import events
from inventory.engine import crypto_policy
from inventory.errors import Conflict, ServiceError
from inventory.jobs import Progress
from inventory.models import Job

CLIENT_DAYS: Final = 398
CA_DAYS: Final = 3650
_CLOCK_SKEW: Final = timedelta(minutes=5)
_UPLOAD_KEPT: Final = timedelta(hours=1)


def create_client_key(job: Job, progress: Progress) -> None:
    """Makes the console's key pair for one key provider, seals it, and writes the CSR for its administrator."""
    cluster = cluster_of(job)
    progress.step("creating the client key")
    private = crypto_policy.new_signing_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bartizan {cluster.id}")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with transaction.atomic():
        cluster.client_key_next_sealed = keywrap.wrap(console_key(), Secret(pem))
        cluster.client_csr_pem = request.public_bytes(serialization.Encoding.PEM).decode()
        cluster.client_certificate_next_pem = ""  # one pair is in the making at a time: this one now
        cluster.save(update_fields=["client_key_next_sealed", "client_csr_pem", "client_certificate_next_pem"])
        events.record(
            "kms.client_key_created",
            f"{cluster}: new client key; its signing request waits for the KMS administrator",
            target=cluster, actor=job.actor, job=job,
        )  # fmt: skip


def issue_client_certificate(job: Job, progress: Progress) -> None:
    """A new key and certificate: from the cluster's console CA, which is made at first, or self-signed."""
    cluster = cluster_of(job)
    progress.step("making the client certificate")
    key = crypto_policy.new_signing_key()
    subject = _name(f"Bartizan {cluster.id}")
    if job.params["method"] == "self_signed":
        certificate = _signed(subject, subject, key.public_key(), key, days=CLIENT_DAYS)
    else:
        ca, ca_key = _console_ca(cluster)
        certificate = _signed(subject, ca.subject, key.public_key(), ca_key, days=CLIENT_DAYS, issuer=ca)
    _install(cluster, certificates.text_of([certificate]), certificates.key_pem(key), job)


def take_client_key(job: Job, progress: Progress) -> None:
    """Opens what was uploaded, checks it again, reseals it, and deletes the upload whatever comes of it."""
    cluster = cluster_of(job)
    progress.step("taking the uploaded key")
    upload = ClientKeyUpload.objects.filter(cluster=cluster).first()
    if upload is None:
        raise Conflict("upload_gone", f"the client key uploaded for {cluster} is gone", hint="upload it again")
    try:
        chain, key = open_client_identity(
            upload.certificate_pem, bytes(upload.sealed), context=upload_context(cluster), owner=cluster
        )
    except ServiceError:
        upload.delete()
        raise
    with transaction.atomic():
        upload.delete()
        _install(cluster, certificates.text_of(chain), key, job)


def use_client_certificate(job: Job, progress: Progress) -> None:
    """Changes over to the staged pair once a server of the cluster takes it; otherwise everything stays."""
    cluster = cluster_of(job)
    staged, sealed = cluster.client_certificate_next_pem, bytes(cluster.client_key_next_sealed)
    if not staged:
        raise Conflict("no_staged_certificate", f"{cluster} has no staged client certificate", hint="make one first")
    key = unsealed(cluster, sealed)
    # Many key servers give a key to its owner only, which is a certificate's name to them: a certificate that loses
    # the keys in use must not be put into use.
    living = cluster.keys.exclude(state__in=ENDED)
    in_use = living.filter(wrapped_secrets__isnull=False).first()
    failure: ServiceError | None = None
    for server in cluster.servers.all():
        progress.step(f"trying the certificate at {server}")
        try:
            with client_with(cluster, server, staged, key) as client:
                client.locate(maximum=1)
                if in_use is not None:
                    client.get_key(in_use.key_id)  # and dropped: that it is given is what counts
        except KmsError as exc:
            failure = failure or service_error(exc)
        else:
            break
    else:
        raise failure or Conflict("no_key_server", f"{cluster} has no server", hint="add one")
    with transaction.atomic():
        changed = KmsCluster.objects.filter(pk=cluster.pk, client_certificate_next_pem=staged).update(
            client_certificate_pem=staged,
            client_key_sealed=sealed,
            client_certificate_next_pem="",
            client_key_next_sealed=b"",
        )
        if not changed:
            raise Conflict(
                "staged_certificate_changed", f"{cluster}: another certificate was staged meanwhile",
                hint="look at the one that waits now, then put that into use",
            )  # fmt: skip
        _record_installed(cluster, staged, job)
        ask_check(cluster.pk)


def ensure_transport_key() -> TransportKey:
    """The workers' key pair for uploads, made anew where there is none or the console key is another one."""
    with transaction.atomic():
        found = TransportKey.objects.select_for_update().first()
        if found is not None:
            with suppress(keywrap.UnwrapFailed):
                keywrap.unwrap(console_key(), bytes(found.private_sealed))
                return found
        public_pem, private = transport.generate()
        made, _ = TransportKey.objects.update_or_create(
            pk=1, defaults={"public_pem": public_pem, "private_sealed": keywrap.wrap(console_key(), private)}
        )
        return made


def drop_old_uploads() -> int:
    """Uploads whose job was cancelled or lost; returns how many."""
    return ClientKeyUpload.objects.filter(created_at__lt=timezone.now() - _UPLOAD_KEPT).delete()[0]


def _install(cluster: KmsCluster, certificate_pem: str, key: Secret, job: Job) -> None:
    """In use at once where nothing is in use yet, else staged. A signing request that waits is given up."""
    sealed = keywrap.wrap(console_key(), key)
    with transaction.atomic():
        current = KmsCluster.objects.select_for_update().get(pk=cluster.pk)
        current.client_csr_pem = ""
        if current.client_certificate_pem:
            current.client_certificate_next_pem, current.client_key_next_sealed = certificate_pem, sealed
        else:
            current.client_certificate_pem, current.client_key_sealed = certificate_pem, sealed
            current.client_certificate_next_pem, current.client_key_next_sealed = "", b""
        current.save(
            update_fields=[
                "client_csr_pem", "client_certificate_pem", "client_key_sealed", "client_certificate_next_pem",
                "client_key_next_sealed",
            ]
        )  # fmt: skip
        if current.client_certificate_next_pem:
            events.record(
                "kms.client_certificate_staged",
                f"{cluster}: a new client certificate waits to be put into use; the one in use stays till then",
                target=cluster, actor=job.actor, job=job,
                fingerprint=certificates.describe(certificate_pem)[0].fingerprint,
            )  # fmt: skip
        else:
            _record_installed(cluster, certificate_pem, job)
            ask_check(cluster.pk)


def _record_installed(cluster: KmsCluster, certificate_pem: str, job: Job) -> None:
    facts = certificates.describe(certificate_pem)[0]
    events.record(
        "kms.client_certificate_installed", f"{cluster}: client certificate {facts.subject} installed",
        target=cluster, actor=job.actor, job=job, fingerprint=facts.fingerprint,
        not_after=facts.not_after.isoformat(),
    )  # fmt: skip


def _console_ca(cluster: KmsCluster) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The CA that issues our certificates for this cluster; anew where it would end before what it issues."""
    if cluster.client_ca_pem:
        (certificate,) = certificates.loaded(cluster.client_ca_pem)
        if certificate.not_valid_after_utc > timezone.now() + timedelta(days=CLIENT_DAYS):
            pem = unsealed(cluster, bytes(cluster.client_ca_key_sealed)).reveal()
            key = serialization.load_pem_private_key(pem, password=None)
            if isinstance(key, ec.EllipticCurvePrivateKey):
                return certificate, key
    key = crypto_policy.new_signing_key()
    name = _name(f"Bartizan CA {cluster.id}")
    certificate = _signed(name, name, key.public_key(), key, days=CA_DAYS, ca=True)
    cluster.client_ca_pem = certificates.text_of([certificate])
    cluster.client_ca_key_sealed = keywrap.wrap(console_key(), certificates.key_pem(key))
    cluster.save(update_fields=["client_ca_pem", "client_ca_key_sealed"])
    return certificate, key


def _signed(
    subject: x509.Name,
    issuer_name: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    days: int,
    issuer: x509.Certificate | None = None,
    ca: bool = False,
) -> x509.Certificate:
    """RFC 5280 section 4.2: a CA that issues leaves only, or a TLS client."""
    now = timezone.now()
    issuer_key = public_key if issuer is None else signer.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(_key_usage(ca=ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
