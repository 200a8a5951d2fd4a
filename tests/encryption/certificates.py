"""Certificates and keys that tests show, upload and trust: a CA, a server under it, and a CA of the same name."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC)
# RFC 7748, 6.1. A module in FIPS mode does not even know the algorithm, and says so in another way than by ValueError.
X25519_KEY = """\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEIHcHbQpzGKV9PBbBclGyZkXfTC+H68CZKrF3+6UduSwq
-----END PRIVATE KEY-----
"""


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    subject: str, issuer: str, key: Any, signer: Any, *, ca: bool = False, until: datetime | None = None
) -> str:
    built = (
        x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(NOW - timedelta(days=99))
        .not_valid_after(until or NOW + timedelta(days=99))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )  # fmt: skip
    return built.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def private(key: Any, password: bytes | None = None) -> str:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return str(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode())


LEAF_KEY, CA_KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
CA = certificate("KMS CA", "KMS CA", CA_KEY, CA_KEY, ca=True)
LEAF = certificate("kms", "KMS CA", LEAF_KEY, CA_KEY)
WRONG_CA = certificate("KMS CA", "KMS CA", OTHER_KEY, OTHER_KEY, ca=True)


def fingerprint(pem: str) -> str:
    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()
