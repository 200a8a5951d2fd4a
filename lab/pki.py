"""A small certificate authority for the lab.

One profile serves every consumer in the lab: P-256, ECDSA with SHA-256 (FIPS 186-5), X.509 v3 (RFC 5280).
Leaves carry digitalSignature *and* keyEncipherment: libvirt's RPC refuses a certificate without the latter,
although an ECDSA key never enciphers one (RFC 8813 section 3 rules it out: this profile is for the lab only).

Not done: revocation, renewal, name constraints, and protection of the CA key beyond file mode 0600.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.errors import LabError

CA_DAYS = 3650
LEAF_DAYS = 825
# Guests and containers may lag behind the clock of the machine that issues.
BACKDATE = timedelta(hours=1)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class PkiError(LabError):
    """The lab's CA folder or a certificate request cannot be used."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A leaf certificate and its key, both PEM; the key is unencrypted PKCS #8."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authority:
    """A root CA kept as `ca-cert.pem` and `ca-key.pem` in one folder."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)

    @classmethod
    def create(cls, folder: Path, common_name: str) -> Self:
        """Load the CA kept in `folder`, or make one there when the folder has none.

        Raises PkiError when the folder holds only half of a CA, or a CA with another name.
        """
        certificate_path, key_path = folder / "ca-cert.pem", folder / "ca-key.pem"
        if certificate_path.exists():
            return cls._load(certificate_path, key_path, common_name)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(common_name)
        certificate = (
            _builder(subject=name, issuer=name, public_key=key.public_key(), days=CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        # The certificate is written last: its presence means that the pair is complete.
        write_private(key_path, _key_pem(key))
        write_public(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
        return cls(certificate, key)

    @classmethod
    def _load(cls, certificate_path: Path, key_path: Path, common_name: str) -> Self:
        try:
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
            key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        except (OSError, ValueError) as exc:
            raise PkiError(f"the CA in {certificate_path.parent} cannot be read: {exc}") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise PkiError(f"the CA key in {key_path.parent} is neither ECDSA nor RSA")
        if key.public_key() != certificate.public_key():
            raise PkiError(f"certificate and key in {key_path.parent} do not belong together")
        if certificate.subject != _name(common_name):
            raise PkiError(f"the CA in {certificate_path.parent} is not named {common_name!r}")
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        common_name: str,
        *,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        server: bool = False,
        client: bool = False,
        days: int = LEAF_DAYS,
        key: PrivateKey | None = None,
    ) -> Issued:
        """Issue a leaf for the given names, valid `days` from now; a new key is drawn unless `key` is given.

        A server needs its names in `dns` and `ips`: clients do not read the common name (RFC 9525 section 2).
        """
        leaf_key = key or ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(
            _name(common_name),
            leaf_key.public_key(),
            dns=dns,
            ips=ips,
            server=server,
            client=client,
            days=days,
        )
        return Issued(certificate, _key_pem(leaf_key))

    def sign_csr(self, csr_pem: bytes, *, client: bool = True, days: int = LEAF_DAYS) -> bytes:
        """Sign a PKCS #10 request and return the certificate as PEM; for a server when `client` is false.

        Subject and key are taken from the request once its proof of possession was checked. Of its extensions
        only the subject alternative names of a server request are; purposes and CA rights are decided here.
        """
        try:
            request = x509.load_pem_x509_csr(csr_pem)
            valid = request.is_signature_valid
        except (ValueError, InvalidSignature) as exc:
            raise PkiError("the certificate request cannot be parsed") from exc
        if not valid:
            raise PkiError("the certificate request is not signed by its own key")
        public_key = request.public_key()
        if not isinstance(public_key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise PkiError("the certificate request has a key that is neither ECDSA nor RSA")
        dns: Sequence[str] = ()
        ips: Sequence[str] = ()
        if not client:
            try:
                names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            except x509.ExtensionNotFound:
                raise PkiError("the certificate request for a server names no host") from None
            dns = names.get_values_for_type(x509.DNSName)
            ips = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
        return self._sign(request.subject, public_key, dns=dns, ips=ips, server=not client, client=client, days=days)

    def _sign(
        self,
        subject: x509.Name,
        public_key: PublicKey,
        *,
        dns: Sequence[str],
        ips: Sequence[str],
        server: bool,
        client: bool,
        days: int,
    ) -> bytes:
        if not (server or client):
            raise PkiError("a leaf certificate needs a purpose: server, client or both")
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
        builder = (
            _builder(subject=subject, issuer=self.certificate.subject, public_key=public_key, days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ip_address(address)) for address in ips]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def write_private(path: Path, content: bytes) -> None:
    """Write a key file with mode 0600 from its first byte on; an existing file is replaced."""
    write_with_mode(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """Write a certificate file with mode 0644; an existing file is replaced."""
    write_with_mode(path, content, 0o644)


def write_with_mode(path: Path, content: bytes, mode: int) -> None:
    """Write a file with this mode from its first byte on; readers see the whole old or the whole new content."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    temporary.chmod(mode)
    temporary.replace(path)


def _builder(*, subject: x509.Name, issuer: x509.Name, public_key: PublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Bartizan lab"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=not ca,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
