"""Routes of key providers: servers, both directions of trust."""

from uuid import UUID

from django.http import HttpRequest
from ninja import Router

from encryption.api.schemas import (
    AdoptKeysIn,
    CertificateIn,
    DirectionIn,
    ForeignProviderOut,
    KeyProviderIn,
    KeyProviderLine,
    KeyProviderOut,
    KeyServerIn,
    KeyServerOut,
    RequestOut,
)
from encryption.services import adoption, key_providers
from encryption.services.adoption import ForeignProvider
from inventory.api.frame import actor_of
from inventory.api.schemas import JobOut
from inventory.errors import Conflict

router = Router(tags=["Key providers"])


@router.get("/key-providers", response=list[KeyProviderLine])
def list_key_providers(request: HttpRequest) -> list[KeyProviderLine]:
    """All of them, with their servers."""
    return [KeyProviderLine.of(row) for row in key_providers.clusters(actor=actor_of(request))]


@router.post("/key-providers", response={201: KeyProviderOut})
def add_key_provider(request: HttpRequest, wanted: KeyProviderIn) -> KeyProviderOut:
    """A key provider with its first server. The first one becomes the default."""
    added = key_providers.add_provider(actor=actor_of(request), **wanted.dict())
    return KeyProviderOut.of(added)


@router.get("/foreign-key-providers", response=list[ForeignProviderOut])
def list_foreign_key_providers(request: HttpRequest) -> list[ForeignProvider]:
    """Key providers that locked VMs name and that are not known here."""
    return adoption.foreign_providers(actor=actor_of(request))


@router.post("/key-providers/{uuid:provider_id}/adopt", response={202: JobOut})
def adopt_keys(request: HttpRequest, provider_id: UUID, wanted: AdoptKeysIn) -> JobOut:
    """Says that this provider holds the keys of the unknown one that `identity` names; a worker tries them."""
    return JobOut.of(adoption.adopt_keys(cluster_id=provider_id, identity=wanted.identity, actor=actor_of(request)))


@router.get("/key-providers/{uuid:provider_id}", response=KeyProviderOut)
def get_key_provider(request: HttpRequest, provider_id: UUID) -> KeyProviderOut:
    return KeyProviderOut.of(key_providers.cluster(provider_id, actor=actor_of(request)))


@router.delete("/key-providers/{uuid:provider_id}", response={204: None})
def remove_key_provider(request: HttpRequest, provider_id: UUID) -> None:
    """Refused while it holds keys of this console's virtual machines. Its servers are not touched."""
    key_providers.remove_cluster(cluster_id=provider_id, actor=actor_of(request))


@router.post("/key-providers/{uuid:provider_id}/default", response=KeyProviderOut)
def set_default_key_provider(request: HttpRequest, provider_id: UUID) -> KeyProviderOut:
    """New keys come from the default provider."""
    return KeyProviderOut.of(key_providers.set_default(cluster_id=provider_id, actor=actor_of(request)))


@router.post("/key-providers/{uuid:provider_id}/servers", response={201: KeyServerOut})
def add_key_server(request: HttpRequest, provider_id: UUID, wanted: KeyServerIn) -> KeyServerOut:
    """One more server, tried after those that are there."""
    added = key_providers.add_server(
        cluster_id=provider_id, host=wanted.host, port=wanted.port, actor=actor_of(request)
    )
    return KeyServerOut.of(added)


@router.get("/key-servers/{uuid:server_id}", response=KeyServerOut)
def get_key_server(request: HttpRequest, server_id: UUID) -> KeyServerOut:
    return KeyServerOut.of(key_providers.server(server_id, actor=actor_of(request)))


@router.put("/key-servers/{uuid:server_id}", response=KeyServerOut)
def edit_key_server(request: HttpRequest, server_id: UUID, wanted: KeyServerIn) -> KeyServerOut:
    """Another address. What was found out about the old one is forgotten."""
    edited = key_providers.edit_server(server_id=server_id, host=wanted.host, port=wanted.port, actor=actor_of(request))
    return KeyServerOut.of(edited)


@router.post("/key-servers/{uuid:server_id}/move", response=KeyServerOut)
def move_key_server(request: HttpRequest, server_id: UUID, wanted: DirectionIn) -> KeyServerOut:
    """Changes places with its neighbour; at the end of the order nothing happens."""
    moved = key_providers.move_server(server_id=server_id, direction=wanted.direction, actor=actor_of(request))
    return KeyServerOut.of(moved)


@router.delete("/key-servers/{uuid:server_id}", response={204: None})
def remove_key_server(request: HttpRequest, server_id: UUID) -> None:
    key_providers.remove_server(server_id=server_id, actor=actor_of(request))


@router.put("/key-providers/{uuid:provider_id}/trusted-certificates", response=KeyProviderOut)
def trust_key_servers(request: HttpRequest, provider_id: UUID, wanted: CertificateIn) -> KeyProviderOut:
    """Trusts servers that show a certificate issued by (or equal to) one of these, in place of those before."""
    trusted = key_providers.trust_server(
        cluster_id=provider_id, certificate_pem=wanted.certificate_pem, actor=actor_of(request)
    )
    return KeyProviderOut.of(trusted)


@router.post("/key-providers/{uuid:provider_id}/client-key", response={202: JobOut})
def create_client_key(request: HttpRequest, provider_id: UUID) -> JobOut:
    """A worker makes a new client key and a signing request for it. What is in use stays until it is replaced."""
    return JobOut.of(key_providers.request_client_key(cluster_id=provider_id, actor=actor_of(request)))


@router.get("/key-providers/{uuid:provider_id}/client-request", response=RequestOut)
def get_client_request(request: HttpRequest, provider_id: UUID) -> RequestOut:
    """The signing request that waits for its certificate."""
    found = key_providers.cluster(provider_id, actor=actor_of(request))
    if not found.client_csr_pem:
        raise Conflict("no_signing_request", f"{found} has no signing request", hint="create a client key first")
    return RequestOut(pem=found.client_csr_pem)


@router.put("/key-providers/{uuid:provider_id}/client-certificate", response=KeyProviderOut)
def install_client_certificate(request: HttpRequest, provider_id: UUID, wanted: CertificateIn) -> KeyProviderOut:
    """The certificate that was made from the signing request, intermediates behind it."""
    installed = key_providers.install_client_certificate(
        cluster_id=provider_id, certificate_pem=wanted.certificate_pem, actor=actor_of(request)
    )
    return KeyProviderOut.of(installed)


@router.post("/key-providers/{uuid:provider_id}/check", response={202: JobOut})
def check_key_provider(request: HttpRequest, provider_id: UUID) -> JobOut:
    """A worker connects to every server and notes what it finds."""
    return JobOut.of(key_providers.check(cluster_id=provider_id, actor=actor_of(request)))
