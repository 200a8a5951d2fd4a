"""Client certificates and keys that somebody uploads, on their way from the web process, which must not keep the key,
to a worker.

The web process seals to the workers' transport key, which it cannot open; a worker opens, checks, and seals again under
the console key. `context` says what an upload is for: sealed for one purpose, it does not open for another.
"""

from contextlib import suppress
from typing import Final

from cryptography import x509
from django.utils import timezone

from encryption.engine import keywrap, transport
from encryption.engine.secret import Secret
from encryption.models import TransportKey
from encryption.services import certificates, messages
from encryption.services.key_access import console_key
from inventory.errors import Invalid, Unavailable, Untrusted

MAKE_TRANSPORT_KEY: Final = "encryption.make_transport_key"


def seal_client_identity(
    certificate_pem: str, private_key_pem: str, *, context: bytes
) -> tuple[list[x509.Certificate], bytes]:
    """In the web process: the chain, and its key sealed to the workers.

    Raises Invalid where the two are no pair or the certificate has expired, and Unavailable `transport_key_missing`,
    having asked the workers for one.
    """
    chain = certificates.given(certificate_pem)
    key = certificates.given_key(private_key_pem, chain[0])
    if chain[0].not_valid_after_utc <= timezone.now():
        raise Invalid(
            "client_certificate_expired", f"the certificate {certificates.subject(chain[0])} has expired",
            hint="have another one issued",
        )  # fmt: skip
    transport_key = TransportKey.objects.first()
    if transport_key is None:
        messages.send(MAKE_TRANSPORT_KEY)
        raise Unavailable(
            "transport_key_missing",
            "the workers have not made the key yet under which uploads are sealed",
            hint="they do it now; try again in a moment, with a worker running",
        )
    return chain, transport.seal(transport_key.public_pem, key, context=context)


def open_client_identity(
    certificate_pem: str, sealed: bytes, *, context: bytes, owner: object
) -> tuple[list[x509.Certificate], Secret]:
    """In a worker: chain and key, checked again. `owner` names whose they are.

    Raises Untrusted `upload_sealed_otherwise`, and Invalid as above.
    """
    key = _opened(sealed, context)
    if key is None:
        raise Untrusted(
            "upload_sealed_otherwise",
            f"the client key uploaded for {owner} does not open with the workers' transport key",
            hint="upload it again",
        )
    chain = certificates.given(certificate_pem)
    return chain, certificates.given_key(key.reveal().decode("ascii"), chain[0])


def _opened(sealed: bytes, context: bytes) -> Secret | None:
    row = TransportKey.objects.first()
    with suppress(keywrap.UnwrapFailed, transport.OpenFailed):
        if row is not None:
            private = keywrap.unwrap(console_key(), bytes(row.private_sealed))
            return transport.unseal(private, sealed, context=context)
    return None
