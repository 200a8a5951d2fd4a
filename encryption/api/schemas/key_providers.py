"""Key providers, their servers and the two directions of trust."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field, SecretStr
from typing_extensions import override

from encryption.models import (
    KmsCluster,
    KmsServer,
)
from encryption.services import certificates
from encryption.services.certificates import CertificateFacts
from inventory.api.frame import Input
from inventory.api.schemas import Name

ServerState = Literal["unknown", "connected", "unreachable", "untrusted", "failing"]

Pem = Annotated[str, Field(max_length=certificates.MAX_PEM_CHARACTERS)]


class KeyServerOut(Schema):
    """One server of a key provider, as it was last found. `state_code` is that of the error, empty while connected.

    The directions of trust are null where they are not known. `certificate_fingerprint` is the SHA-256 of what the
    server showed last, which nobody verified: review it, then accept it.
    """

    id: UUID
    position: int
    host: str
    port: int
    state: ServerState
    state_code: str
    state_reason: str
    console_trusts_server: bool | None
    server_trusts_console: bool | None
    certificate_subject: str
    certificate_issuer: str
    certificate_fingerprint: str
    certificate_not_after: datetime | None
    certificate_seen_at: datetime | None
    vendor: str
    latency_ms: int | None
    checked_at: datetime | None

    @classmethod
    def of(cls, row: KmsServer) -> Self:
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class KeyProviderLine(Schema):
    """Key servers that replicate each other. `is_lab`: of the local lab, not for real keys."""

    id: UUID
    name: str
    is_default: bool
    is_lab: bool
    created_at: datetime
    servers: list[KeyServerOut]

    @classmethod
    def of(cls, row: KmsCluster) -> Self:
        return cls(
            id=row.pk,
            name=row.name,
            is_default=row.is_default,
            is_lab=row.is_lab,
            created_at=row.created_at,
            servers=[KeyServerOut.of(server) for server in row.servers.all()],
        )


class CertificateOut(Schema):
    """`fingerprint` is SHA-256 in hexadecimal."""

    subject: str
    issuer: str
    fingerprint: str
    not_before: datetime
    not_after: datetime
    names: list[str]
    is_ca: bool

    @classmethod
    def of(cls, facts: CertificateFacts) -> Self:
        return cls.model_validate({name: getattr(facts, name) for name in cls.model_fields})


class KeyProviderOut(KeyProviderLine):
    """With both directions of trust: what the console trusts, and the certificate by which it shows itself.

    `has_client_request`: a signing request waits to be turned into the next client certificate.
    `next_client_certificate`: made or uploaded, and not in use until it is put into use.
    """

    trusted: list[CertificateOut]
    client_certificate: list[CertificateOut]
    next_client_certificate: list[CertificateOut]
    console_ca: list[CertificateOut]
    has_client_request: bool

    @override
    @classmethod
    def of(cls, row: KmsCluster) -> Self:
        line = KeyProviderLine.of(row)
        return cls(
            **line.dict(),
            trusted=[CertificateOut.of(one) for one in certificates.describe(row.trusted_pem)],
            client_certificate=[CertificateOut.of(one) for one in certificates.describe(row.client_certificate_pem)],
            next_client_certificate=[
                CertificateOut.of(one) for one in certificates.describe(row.client_certificate_next_pem)
            ],
            console_ca=[CertificateOut.of(one) for one in certificates.describe(row.client_ca_pem)],
            has_client_request=bool(row.client_csr_pem),
        )


class RequestOut(Schema):
    """A PKCS #10 signing request for the KMS administrator."""

    pem: str


class KeyProviderIn(Input):
    """A key provider with its first server."""

    name: Name
    host: Annotated[str, Field(max_length=253)]
    port: int = 5696
    identity: UUID | None = Field(
        None, description="The UUID by which the metadata of VMs names it; left out: a new one."
    )


class AdoptKeysIn(Input):
    """The identity of a key provider that locked VMs name and that is not known here."""

    identity: UUID


class ForeignProviderOut(Schema):
    """A key provider that locked VMs name and that is not known here; its name is what they say."""

    identity: UUID
    name: str
    vms: int


class KeyServerIn(Input):
    host: Annotated[str, Field(max_length=253)]
    port: int = 5696


class CertificateIn(Input):
    certificate_pem: Pem


class ServerCertificateOut(Schema):
    """What a server showed last, its issuers behind it. `can_pin_issuer`: it sent the CA that issued it along."""

    seen_at: datetime | None
    certificates: list[CertificateOut]
    can_pin_issuer: bool


class AcceptCertificateIn(Input):
    """`fingerprint` of the server's own certificate, as it was reviewed; `pin` certificate or issuer."""

    fingerprint: Annotated[str, Field(max_length=100)]
    pin: Annotated[str, Field(max_length=20)] = "certificate"


class DirectionIn(Input):
    """`direction`: up is tried earlier, down later."""

    direction: Annotated[str, Field(max_length=20)]


class MethodIn(Input):
    """`method`: console_ca (from a CA of this console) or self_signed."""

    method: Annotated[str, Field(max_length=20)]


class ClientIdentityIn(Input):
    """A certificate with intermediates behind it, and its private key, not encrypted, both as PEM."""

    certificate_pem: Pem
    private_key_pem: Annotated[SecretStr, Field(max_length=certificates.MAX_PEM_CHARACTERS)]


class PemOut(Schema):
    pem: str
