"""What agents register, in both dialects, with keys of software. `Machine` stands for a host with its TPM."""

import base64
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.credential import ek_public_of, kdfa
from attestation.engine.tpm.public import parse_tpmt_public
from tests.attestation.emulator import sized, take_sized
from tests.attestation.signer import SoftwareTpm


def self_signed(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365))
        .sign(key, hashes.SHA256())
    )


def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@dataclass
class Machine:
    """A TPM in software that answers challenges as a real one does (tests/attestation/agent has the real one)."""

    agent_id: str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
    ek: rsa.RSAPrivateKey = field(default_factory=_rsa_key)
    signer: SoftwareTpm = field(default_factory=SoftwareTpm)
    tls: x509.Certificate = field(
        default_factory=lambda: self_signed(ec.generate_private_key(ec.SECP256R1()), "agent")
    )  # fmt: skip

    def restart(self) -> None:
        """As a Python agent does: another attestation key, the same TPM."""
        self.signer = SoftwareTpm()

    @property
    def ek_area(self) -> bytes:
        return ek_public_of(self.ek.public_key()).raw

    def python_offer(self, **changed: Any) -> dict[str, Any]:
        certificate = self_signed(self.ek, "TPM").public_bytes(Encoding.DER)
        return {
            "aik_tpm": base64.b64encode(sized(self.signer.ak_area)).decode(),
            "ekcert": base64.b64encode(certificate).decode(),
            "mtls_cert": self.tls.public_bytes(Encoding.PEM).decode(),
            "ip": "192.0.2.10",
            "port": "9002",
            **changed,
        }

    def rust_offer(self, **changed: Any) -> dict[str, Any]:
        authority = self_signed(ec.generate_private_key(ec.SECP256R1()), "CA").public_bytes(Encoding.PEM).decode()
        return {
            **self.python_offer(),
            "ek_tpm": base64.b64encode(sized(self.ek_area)).decode(),
            "ekcert": self_signed(self.ek, "TPM").public_bytes(Encoding.PEM).decode() + authority,
            "port": 9002,
            **changed,
        }

    def auth_tag(self, blob: str) -> str:
        """TPM2_ActivateCredential, and what an agent makes of its outcome."""
        identity, rest = take_sized(base64.b64decode(blob)[8:])
        encrypted_seed, _ = take_sized(rest)
        mask = padding.MGF1(hashes.SHA256())
        seed = self.ek.decrypt(encrypted_seed, padding.OAEP(mask, hashes.SHA256(), b"IDENTITY\0"))
        name = parse_tpmt_public(self.signer.ak_area).name
        mac, encrypted = take_sized(identity)
        key = kdfa(HashAlg.SHA256, seed, b"INTEGRITY", b"", b"", 256)
        assert hmac.digest(key, encrypted + name, "sha256") == mac
        storage = kdfa(HashAlg.SHA256, seed, b"STORAGE", name, b"", 128)
        decryptor = Cipher(algorithms.AES(storage), CFB(bytes(16))).decryptor()
        secret, _ = take_sized(decryptor.update(encrypted))
        return hmac.digest(base64.b64encode(secret), self.agent_id.encode(), "sha384").hex()


def body(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields).encode()
