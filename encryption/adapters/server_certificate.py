"""Look at the certificate of a key server before it is trusted. Verifies nothing, sends no secret."""

from __future__ import annotations

import socket
import ssl
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from encryption.adapters.kmip_tls import open_tcp
from encryption.engine.key_server import KmsProtocolError, KmsUnreachable, ServerAddress, ServerCertificate
from inventory.adapters.tls import client_context

_HANDSHAKE = 22  # TLS record types and handshake message types: RFC 5246 sections 6.2.1 and 7.4
_CERTIFICATE = 11
# Real chains are a few KB; more than this before the handshake ends is not a server worth reading.
_MAX_HANDSHAKE = 256 * 1024
_MAX_CHAIN = 10


def fetch_server_certificate(address: ServerAddress, *, timeout: float = 5.0) -> ServerCertificate:
    """Return the certificate that the server shows, UNVERIFIED: whoever answers at the address chose it.

    Key servers end a handshake without an accepted client certificate. TLS 1.2 sends the server's chain in
    clear before that, so it is asked for first; a server of TLS 1.3 alone shows its own certificate, without
    issuers.

    Raises KmsUnreachable, or KmsProtocolError when what answers shows no readable certificate.
    """
    deadline = time.monotonic() + timeout
    chain = _shown_chain(address, ssl.TLSVersion.TLSv1_2, deadline)
    if not chain:
        chain = _shown_chain(address, ssl.TLSVersion.TLSv1_3, deadline)
    if not chain:
        raise KmsProtocolError(address, "shows no certificate: no TLS server, or one older than TLS 1.2")
    try:
        return _described(x509.load_der_x509_certificate(chain[0]), chain[1:])
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as exc:
        raise KmsProtocolError(address, "shows a certificate that cannot be read") from exc


def _shown_chain(address: ServerAddress, version: ssl.TLSVersion, deadline: float) -> list[bytes]:
    """Do a handshake in memory, so that the server's flight can be read even if the handshake fails."""
    context = client_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = context.wrap_bio(incoming, outgoing, server_hostname=address.host)
    received = bytearray()
    try:
        with open_tcp(address, deadline) as connection:
            while True:
                try:
                    handshake.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
                    connection.sendall(outgoing.read())
                    chunk = _receive(connection)
                    if not chunk or len(received) + len(chunk) > _MAX_HANDSHAKE:
                        break
                    received += chunk
                    incoming.write(chunk)
                except ssl.SSLError:
                    break
    except TimeoutError as exc:
        raise KmsUnreachable(address, "no answer in time") from exc
    if version is ssl.TLSVersion.TLSv1_2:
        return _chain_in_clear(bytes(received))
    try:
        leaf = handshake.getpeercert(binary_form=True)
    except ValueError:  # the handshake did not get that far
        return []
    return [leaf] if leaf else []


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(16384)
    except ConnectionError:
        return b""


def _chain_in_clear(stream: bytes) -> list[bytes]:
    """Certificates (DER) of the first Certificate message in a server's TLS 1.2 records; empty if there is
    none.
    """
    messages = bytearray()
    while len(stream) >= 5 and stream[0] == _HANDSHAKE:
        size = int.from_bytes(stream[3:5], "big")
        messages += stream[5 : 5 + size]
        stream = stream[5 + size :]
    while len(messages) >= 4:
        kind, size = messages[0], int.from_bytes(messages[1:4], "big")
        body = bytes(messages[4 : 4 + size])
        if kind == _CERTIFICATE and len(body) == size:
            return _certificate_list(body)
        del messages[: 4 + size]
    return []


def _certificate_list(body: bytes) -> list[bytes]:
    chain: list[bytes] = []
    rest = body[3:]
    while len(rest) > 3 and len(chain) < _MAX_CHAIN:
        size = int.from_bytes(rest[:3], "big")
        chain.append(rest[3 : 3 + size])
        rest = rest[3 + size :]
    return chain


def _described(certificate: x509.Certificate, issuers: list[bytes]) -> ServerCertificate:
    names: list[str] = []
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        names += alternative.get_values_for_type(x509.DNSName)
        names += [str(address) for address in alternative.get_values_for_type(x509.IPAddress)]
    return ServerCertificate(
        pem=certificate.public_bytes(serialization.Encoding.PEM),
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        names=tuple(names),
        issuers_pem=tuple(
            x509.load_der_x509_certificate(issuer).public_bytes(serialization.Encoding.PEM) for issuer in issuers
        ),
    )
