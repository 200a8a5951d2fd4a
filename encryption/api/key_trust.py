"""Routes of trust with key servers: review of a server's certificate, and how the console comes to its own."""

from typing import Literal
from uuid import UUID

from django.http import HttpRequest
from ninja import Router

from encryption.api.schemas import (
    AcceptCertificateIn,
    CertificateOut,
    ClientIdentityIn,
    KeyProviderOut,
    MethodIn,
    PemOut,
    ServerCertificateOut,
)
from encryption.services import key_providers, key_trust
from inventory.api.frame import actor_of
from inventory.api.schemas import JobOut

router = Router(tags=["Key providers"])


@router.post("/key-servers/{uuid:server_id}/fetch-certificate", response={202: JobOut})
def fetch_server_certificate(request: HttpRequest, server_id: UUID) -> JobOut:
    """A worker looks at the certificate that the server shows. Nothing is trusted by that."""
    return JobOut.of(key_trust.fetch_certificate(server_id=server_id, actor=actor_of(request)))


@router.get("/key-servers/{uuid:server_id}/certificate", response=ServerCertificateOut)
def get_server_certificate(request: HttpRequest, server_id: UUID) -> ServerCertificateOut:
    """What the server showed last, for review. Compare the fingerprint with the KMS administrator's."""
    found = key_providers.server(server_id, actor=actor_of(request))
    return ServerCertificateOut(
        seen_at=found.certificate_seen_at,
        certificates=[CertificateOut.of(one) for one in key_trust.shown_certificate(found)],
        can_pin_issuer=key_trust.can_pin_issuer(found),
    )


@router.post("/key-servers/{uuid:server_id}/accept-certificate", response=KeyProviderOut)
def accept_server_certificate(request: HttpRequest, server_id: UUID, wanted: AcceptCertificateIn) -> KeyProviderOut:
    """Trusts what was reviewed, besides what is trusted already."""
    accepted = key_trust.accept_certificate(
        server_id=server_id, fingerprint=wanted.fingerprint, pin=wanted.pin, actor=actor_of(request)
    )
    return KeyProviderOut.of(accepted)


@router.delete("/key-providers/{uuid:provider_id}/trusted-certificates/{fingerprint}", response=KeyProviderOut)
def distrust_certificate(request: HttpRequest, provider_id: UUID, fingerprint: str) -> KeyProviderOut:
    """One certificate, by its SHA-256, is trusted no longer. Refused for the last one while VMs have keys there."""
    left = key_trust.distrust_certificate(cluster_id=provider_id, fingerprint=fingerprint, actor=actor_of(request))
    return KeyProviderOut.of(left)


@router.post("/key-providers/{uuid:provider_id}/make-client-certificate", response={202: JobOut})
def make_client_certificate(request: HttpRequest, provider_id: UUID, wanted: MethodIn) -> JobOut:
    """A worker makes a key and a certificate. It waits to be put into use where another one is in use."""
    job = key_trust.request_client_certificate(cluster_id=provider_id, method=wanted.method, actor=actor_of(request))
    return JobOut.of(job)


@router.put("/key-providers/{uuid:provider_id}/client-identity", response={202: JobOut})
def upload_client_identity(request: HttpRequest, provider_id: UUID, wanted: ClientIdentityIn) -> JobOut:
    """A certificate and key that the KMS administrator issued. The key is sealed at once and never comes out again."""
    job = key_trust.upload_client_key(
        cluster_id=provider_id,
        certificate_pem=wanted.certificate_pem,
        private_key_pem=wanted.private_key_pem.get_secret_value(),
        actor=actor_of(request),
    )
    return JobOut.of(job)


@router.post("/key-providers/{uuid:provider_id}/use-client-certificate", response={202: JobOut})
def use_client_certificate(request: HttpRequest, provider_id: UUID) -> JobOut:
    """A worker tries the staged certificate at the servers and changes over when one of them takes it."""
    return JobOut.of(key_trust.use_client_certificate(cluster_id=provider_id, actor=actor_of(request)))


@router.get("/key-providers/{uuid:provider_id}/downloads/{what}", response=PemOut)
def download_certificate(
    request: HttpRequest,
    provider_id: UUID,
    what: Literal["console-ca", "client-certificate", "next-client-certificate"],
) -> PemOut:
    """A certificate of ours, for the KMS administrator."""
    return PemOut(pem=key_trust.download(cluster_id=provider_id, what=what, actor=actor_of(request)))
