"""TLS as this product speaks it, on either end: 1.2 or newer, and under 1.2 only approved suites."""

import ssl

from inventory.engine.crypto_policy import TLS_1_2_CIPHERS


def client_context() -> ssl.SSLContext:
    """For a client: verifies certificate and host name, and trusts nobody until the caller says whom."""
    return _approved(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def server_context() -> ssl.SSLContext:
    """For a server: asks for no client certificate until the caller says so."""
    return _approved(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


def _approved(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS_1_2_CIPHERS)
    return context
