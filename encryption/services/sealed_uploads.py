"""Private keys that somebody uploads, on their way from the web process, which must not keep them, to a worker.

The web process seals to the workers' transport key, which it cannot open; a worker opens, checks, and seals again under
the console key. `context` says what an upload is for: sealed for one purpose, it does not open for another.
"""

from contextlib import suppress
from typing import Final

from encryption.engine import keywrap, transport
from encryption.engine.secret import Secret
from encryption.models import TransportKey
from encryption.services import messages
from encryption.services.key_access import console_key
from inventory.errors import Unavailable, Untrusted

MAKE_TRANSPORT_KEY: Final = "encryption.make_transport_key"


def seal_to_workers(secret: Secret, *, context: bytes) -> bytes:
    """In the web process. Raises Unavailable `transport_key_missing`, having asked the workers for one."""
    transport_key = TransportKey.objects.first()
    if transport_key is None:
        messages.send(MAKE_TRANSPORT_KEY)
        raise Unavailable(
            "transport_key_missing",
            "the workers have not made the key yet under which uploads are sealed",
            hint="they do it now; try again in a moment, with a worker running",
        )
    return transport.seal(transport_key.public_pem, secret, context=context)


def open_upload(sealed: bytes, *, context: bytes, what: str) -> Secret:
    """In a worker. `what` names it ("the client key uploaded for ..."). Raises Untrusted `upload_sealed_otherwise`."""
    row = TransportKey.objects.first()
    with suppress(keywrap.UnwrapFailed, transport.OpenFailed):
        if row is not None:
            private = keywrap.unwrap(console_key(), bytes(row.private_sealed))
            return transport.unseal(private, sealed, context=context)
    raise Untrusted(
        "upload_sealed_otherwise", f"{what} does not open with the workers' transport key", hint="upload it again"
    )
