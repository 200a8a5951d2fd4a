"""The port to a key server (KMS): what Bartizan asks of it, in the words of KMIP (OASIS KMIP 1.2).

Pure: values, errors and one Protocol. `encryption/adapters/kmip_client.py` implements it.
Key bytes travel only inside `Secret`; no error text, repr or attribute here ever holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

from typing_extensions import override

from encryption.engine.secret import Secret

KMIP_PORT = 5696


class KeyState(StrEnum):
    """KMIP 1.2 section 3.22, State."""

    PRE_ACTIVE = "pre_active"
    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"
    DESTROYED_COMPROMISED = "destroyed_compromised"


class RevocationReason(StrEnum):
    """KMIP 1.2 section 3.31. KEY_COMPROMISE leads to `compromised`, every other reason to `deactivated`."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key_compromise"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessation_of_operation"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where one key server listens. `host` is a DNS name or an IP address, IPv6 without brackets."""

    host: str
    port: int = KMIP_PORT

    @override
    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Both sides of the trust with a key server, as PEM.

    `ca_pem` holds the only trust anchors for the server: its CA, or the server's own certificate to pin that
    one. `certificate_pem` is the console's certificate, followed by intermediates if there are any. `key_pem`
    is its private key, not encrypted.
    """

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: Secret


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A certificate that a server showed, for a person to review. Nothing about it was verified.

    `fingerprint` is the SHA-256 of the DER form, lower-case hex. `names` are its DNS and IP alternative
    names. `issuers_pem` are the further certificates that the server sent along, as sent; often empty.
    """

    pem: bytes
    subject: str
    issuer: str
    fingerprint: str
    not_before: datetime
    not_after: datetime
    names: tuple[str, ...]
    issuers_pem: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """A key to be created, see `KeyServer.create_key`."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeyAttributes:
    """What a key server tells about a key. Dates are aware, UTC; None where the server gives none.

    `labels` are the key's Application Specific Information (KMIP 1.2 section 3.36), namespace to data.
    """

    key_id: str
    names: tuple[str, ...]
    state: KeyState
    algorithm: str
    length_bits: int
    usages: frozenset[str]
    created_at: datetime | None = None
    activated_at: datetime | None = None
    deactivated_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """How a key server describes itself: vendor text, KMIP versions ("1.2") and operations ("Get") it knows."""

    vendor: str
    versions: tuple[str, ...]
    operations: frozenset[str]


class TrustDirection(StrEnum):
    """Trust between console and key server is two facts, and each can be missing."""

    CONSOLE_TRUSTS_SERVER = "console_trusts_server"
    SERVER_TRUSTS_CONSOLE = "server_trusts_console"


class TrustReason(StrEnum):
    """Why a connection was not trusted. The value is the error's code."""

    SERVER_CA_UNKNOWN = "kms_server_ca_unknown"
    SERVER_CERTIFICATE_EXPIRED = "kms_server_certificate_expired"
    SERVER_CERTIFICATE_NOT_YET_VALID = "kms_server_certificate_not_yet_valid"
    SERVER_NAME_MISMATCH = "kms_server_name_mismatch"
    SERVER_CERTIFICATE_INVALID = "kms_server_certificate_invalid"
    TRUST_ANCHOR_UNUSABLE = "kms_trust_anchor_unusable"
    CLIENT_CA_UNKNOWN = "kms_client_ca_unknown"
    CLIENT_CERTIFICATE_EXPIRED = "kms_client_certificate_expired"
    CLIENT_CERTIFICATE_REFUSED = "kms_client_certificate_refused"
    CLIENT_CERTIFICATE_UNUSABLE = "kms_client_certificate_unusable"

    @property
    def direction(self) -> TrustDirection:
        if self.value.startswith("kms_client"):
            return TrustDirection.SERVER_TRUSTS_CONSOLE
        return TrustDirection.CONSOLE_TRUSTS_SERVER


_TRUST_TEXTS: Mapping[TrustReason, tuple[str, str]] = {
    TrustReason.SERVER_CA_UNKNOWN: (
        "its certificate was not issued by the trusted CA",
        "review the server's certificate and trust it, or correct the CA of this KMS cluster",
    ),
    TrustReason.SERVER_CERTIFICATE_EXPIRED: (
        "its certificate has expired",
        "renew the certificate on the key server",
    ),
    TrustReason.SERVER_CERTIFICATE_NOT_YET_VALID: (
        "its certificate is not valid yet",
        "compare the clocks of the key server and of this machine",
    ),
    TrustReason.SERVER_NAME_MISMATCH: (
        "its certificate was issued for another name",
        "use an address that stands in the certificate's alternative names, or reissue the certificate",
    ),
    TrustReason.SERVER_CERTIFICATE_INVALID: (
        "its certificate does not verify",
        "look at the certificate chain of the key server",
    ),
    TrustReason.TRUST_ANCHOR_UNUSABLE: (
        "the trusted CA kept for it cannot be read",
        "set the CA of this KMS cluster again, as PEM",
    ),
    TrustReason.CLIENT_CA_UNKNOWN: (
        "it does not know the issuer of the console's certificate",
        "make the key server trust the console: upload the console's CA or certificate there",
    ),
    TrustReason.CLIENT_CERTIFICATE_EXPIRED: (
        "it refuses the console's certificate as expired",
        "renew the console's client certificate for this KMS cluster",
    ),
    TrustReason.CLIENT_CERTIFICATE_REFUSED: (
        "it refuses the console's certificate",
        "check on the key server which client certificates it accepts, and register the console's there",
    ),
    TrustReason.CLIENT_CERTIFICATE_UNUSABLE: (
        "the console's certificate and key for it cannot be used together",
        "set the console's client certificate and its unencrypted private key again, as PEM",
    ),
}


class KmsError(Exception):
    """A key server did not do what was asked. `code` is stable; `hint` says what to do."""

    code: str = "kms_error"
    hint: str = "see the log of the key server"

    def __init__(self, server: ServerAddress, message: str) -> None:
        super().__init__(server, message)
        self.server = server
        self.message = message

    @override
    def __str__(self) -> str:
        return f"key server {self.server}: {self.message}"


class KmsUnreachable(KmsError):
    """No connection, a lost one, or no answer in time.

    `outcome_unknown` is True when the request may have been carried out although no answer came; after a
    create, `locate` the key by its unique name before creating another.
    """

    code = "kms_unreachable"
    hint = "check that the key server runs and that its address and port can be reached from the workers"

    def __init__(self, server: ServerAddress, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(server, message)
        self.outcome_unknown = outcome_unknown


class KmsUntrusted(KmsError):
    """One direction of trust is missing; the request was not carried out. `code` names the reason."""

    def __init__(self, server: ServerAddress, reason: TrustReason) -> None:
        message, hint = _TRUST_TEXTS[reason]
        super().__init__(server, message)
        self.reason = reason
        self.code = reason.value
        self.hint = hint

    @property
    def direction(self) -> TrustDirection:
        return self.reason.direction


class KeyNotFound(KmsError):
    """The server has no such key, or has destroyed it."""

    code = "kms_key_not_found"
    hint = "check that this is the key server that made the key, and that nobody destroyed the key there"

    def __init__(self, server: ServerAddress, key_id: str) -> None:
        super().__init__(server, f"has no key {key_id!r}")
        self.key_id = key_id


class NotPermitted(KmsError):
    """The server knows the console and refuses this operation to it."""

    code = "kms_not_permitted"
    hint = "grant the console this operation on the key server; often only the owner of a key has it"

    def __init__(self, server: ServerAddress, operation: str, key_id: str | None = None) -> None:
        target = f" key {key_id!r}" if key_id else ""
        super().__init__(server, f"does not permit the console to {operation}{target}")
        self.operation = operation
        self.key_id = key_id


class WrongState(KmsError):
    """The key's state rules the operation out (KMIP 1.2 section 3.22)."""

    code = "kms_wrong_key_state"
    hint = "an active key is revoked before it is destroyed; a key that was revoked is never active again"

    def __init__(self, server: ServerAddress, operation: str, key_id: str, state: KeyState | None) -> None:
        known = f"it is {state.value.replace('_', ' ')}" if state else "its state does not allow it"
        super().__init__(server, f"cannot {operation} key {key_id!r}: {known}")
        self.operation = operation
        self.key_id = key_id
        self.state = state


class NotSupported(KmsError):
    """The server does not offer this operation."""

    code = "kms_operation_not_supported"
    hint = "the key server lacks this operation; see the list that it reports"

    def __init__(self, server: ServerAddress, operation: str) -> None:
        super().__init__(server, f"does not support {operation}")
        self.operation = operation


class KmsProtocolError(KmsError):
    """The answer is not the KMIP that was asked for, or the server reports a failure without a better name."""

    code = "kms_protocol_error"
    hint = "check that the port belongs to a KMIP server, and look into its log"


class KeyServer(Protocol):
    """One connection to one key server, for one thread. A context manager; leaving it closes the connection.

    Every method raises `KmsUnreachable`, `KmsUntrusted` or `KmsProtocolError`; those that name a key also
    `KeyNotFound` and `NotPermitted`.
    """

    @property
    def address(self) -> ServerAddress: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def close(self) -> None: ...

    def create_key(self, *, name: str, labels: Mapping[str, str] | None = None) -> str:
        """Create an AES-256 key for encrypt, decrypt, wrap and unwrap, pre-active; return its unique
        identifier.

        `name` should be unique; `labels` (namespace to data) tell the server's own administrators what the
        key is for. Never sent twice: see `KmsUnreachable.outcome_unknown`.
        """
        ...

    def activate(self, key_id: str) -> None:
        """Make a pre-active key active. Raises WrongState in any other state."""
        ...

    def get_key(self, key_id: str) -> Secret:
        """Return the 32 bytes of an AES-256 key, whatever its state. Raises KmsProtocolError for another
        kind.
        """
        ...

    # Many at once, in few messages where the server takes several requests in one (Batch Item, KMIP 1.2 section 6.15).
    # These raise no KmsError: what a request failed with stands in its place, and a lost connection in the place of all
    # that were not answered. A create says by `outcome_unknown` whether it may have been carried out.

    def create_keys(self, orders: Sequence[KeyOrder]) -> tuple[str | KmsError, ...]:
        """`create_key` of each. Names must be unique: a key that a message without an answer may have made is looked
        for by its name, and taken.
        """
        ...

    def activate_keys(self, key_ids: Sequence[str]) -> tuple[KmsError | None, ...]:
        """`activate` of each."""
        ...

    def get_keys(self, key_ids: Sequence[str]) -> tuple[Secret | KmsError, ...]:
        """`get_key` of each."""
        ...

    def state(self, key_id: str) -> KeyState: ...

    def attributes(self, key_id: str) -> KeyAttributes: ...

    def revoke(self, key_id: str, reason: RevocationReason, message: str = "") -> None:
        """Take a key out of use. Raises WrongState unless it is active or the reason is KEY_COMPROMISE."""
        ...

    def destroy(self, key_id: str) -> None:
        """Destroy the key material, for ever. Raises WrongState for an active key."""
        ...

    def locate(self, *, name: str | None = None, maximum: int | None = None) -> tuple[str, ...]:
        """Identifiers of the keys with this name, or of all keys the console may see; newest first."""
        ...

    def rekey(self, key_id: str) -> str:
        """KMIP Re-key: a replacement that takes over name and attributes; return its identifier.

        Raises NotSupported where the server lacks it; then create a new key in its place.
        """
        ...

    def query(self) -> ServerInfo: ...
