"""TPMT_SIGNATURE (TPM 2.0 Library, part 2, section 11.3.4) and its verification."""

from dataclasses import dataclass, field
from typing import ClassVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.engine.tpm.algorithms import HashAlg, SignatureScheme
from attestation.engine.tpm.public import PublicKey
from attestation.engine.tpm.reader import MalformedTpmStructure, Reader
from inventory.engine.crypto_policy import UNSUPPORTED

MAX_SIGNATURE_BYTES = 1024
_MAX_RSA_BYTES = 512
_MAX_SCALAR_BYTES = 66
_PKCS1 = padding.PKCS1v15()
_ECDSA = {alg: ec.ECDSA(alg.primitive) for alg in HashAlg}
# TPMs take the longest salt that fits; FIPS 186-5 allows one as long as the hash at most, and some firmware obeys.
_PSS = {alg: padding.PSS(padding.MGF1(alg.primitive), padding.PSS.AUTO) for alg in HashAlg}


class MalformedSignature(MalformedTpmStructure):
    """No TPMT_SIGNATURE of a scheme that attestation keys use."""

    what: ClassVar[str] = "signature"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as it came. `value` is in the form that `cryptography` takes: bytes for RSA, DER for ECDSA."""

    scheme: SignatureScheme
    hash_alg: HashAlg
    value: bytes = field(repr=False)

    def is_by(self, key: PublicKey, message: bytes) -> bool:
        """True when `key` made this signature over `message`. False also for a key of another kind.

        Does not judge the hash: SHA-1 verifies where the crypto module still allows it, and the caller tells that it is
        weak.
        """
        try:
            if isinstance(key, rsa.RSAPublicKey):
                if self.scheme is SignatureScheme.ECDSA:
                    return False
                scheme = _PKCS1 if self.scheme is SignatureScheme.RSASSA else _PSS[self.hash_alg]
                key.verify(self.value, message, scheme, self.hash_alg.primitive)
            else:
                if self.scheme is not SignatureScheme.ECDSA:
                    return False
                key.verify(self.value, message, _ECDSA[self.hash_alg])
        except (InvalidSignature, *UNSUPPORTED):
            return False
        return True


def parse_signature(data: bytes) -> Signature:
    """Read a TPMT_SIGNATURE: u16 scheme, u16 hash, then for RSA a TPM2B, for ECDSA a TPM2B each for r and s.

    Raises:
        MalformedSignature: anything else, another scheme, an unknown hash, or bytes after it.
    """
    if len(data) > MAX_SIGNATURE_BYTES:
        raise MalformedSignature(f"at most {MAX_SIGNATURE_BYTES} bytes", offset=0)
    reader = Reader(data)
    try:
        scheme = SignatureScheme(reader.u16("a signature scheme"))
        hash_alg = HashAlg(reader.u16("a hash algorithm"))
        if scheme is SignatureScheme.ECDSA:
            r, s = (int.from_bytes(reader.sized(_MAX_SCALAR_BYTES, name), "big") for name in ("r", "s"))
            value = encode_dss_signature(r, s)
        else:
            value = reader.sized(_MAX_RSA_BYTES, "an RSA signature")
        reader.end("the signature")
    except MalformedTpmStructure as exc:
        raise MalformedSignature(exc.expected, offset=exc.offset) from None
    except ValueError:
        raise MalformedSignature("RSASSA, RSAPSS or ECDSA, with a SHA hash", offset=0) from None
    return Signature(scheme, hash_alg, value)
