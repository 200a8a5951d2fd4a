"""TPM2B_PUBLIC and TPMT_PUBLIC: the public area of a key, its attributes and its name.

TPM 2.0 Library, part 2, section 12.2 (public area), 8.3 (attributes); part 1, section 16 (names). RSA with 2048 and
3072 bits, ECC on NIST P-256 and P-384. NOT checked: that a TPM made the key. The attributes are a claim until the key's
name has been activated against an endorsement key (credential.py); from then on the name binds all of them.
"""

from dataclasses import dataclass, field
from enum import IntFlag
from functools import cached_property
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from attestation.engine.tpm.algorithms import (
    ALG_AES,
    ALG_CFB,
    ALG_ECC,
    ALG_NULL,
    ALG_RSA,
    Curve,
    HashAlg,
    SignatureScheme,
)
from attestation.engine.tpm.reader import MalformedTpmStructure, Reader
from inventory.engine.crypto_policy import UNSUPPORTED

MAX_PUBLIC_BYTES = 1024
RSA_BITS = (2048, 3072)
CURVES: dict[Curve, ec.EllipticCurve] = {Curve.NIST_P256: ec.SECP256R1(), Curve.NIST_P384: ec.SECP384R1()}
_DEFAULT_EXPONENT = 65537

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class MalformedKey(MalformedTpmStructure):
    """Not the public part of a key, or of one that is not supported."""

    what: ClassVar[str] = "public key"


class Attributes(IntFlag):
    """TPMA_OBJECT."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


_KNOWN_ATTRIBUTES = sum(Attributes)
# What Keylime's and tpm2-tools' attestation keys have. Windows and go-attestation add NO_DA, which changes nothing.
AK_ATTRIBUTES = (
    Attributes.FIXED_TPM
    | Attributes.FIXED_PARENT
    | Attributes.SENSITIVE_DATA_ORIGIN
    | Attributes.USER_WITH_AUTH
    | Attributes.RESTRICTED
    | Attributes.SIGN
)


@dataclass(frozen=True, slots=True)
class SymmetricCipher:
    """TPMT_SYM_DEF_OBJECT of a storage key: AES in CFB mode with that many bits."""

    key_bits: int


@dataclass(frozen=True)
class Public:
    """A checked public area. `raw` is the TPMT_PUBLIC as it came, which is what the name is made of.

    `scheme` and `scheme_hash` are None for a key that leaves them to each signature; `symmetric` is None for a key that
    is no parent. `unique` holds the modulus, or x and y. Not slotted, for the values that are computed once.
    """

    raw: bytes = field(repr=False)
    name_alg: HashAlg
    attributes: Attributes
    auth_policy: bytes
    symmetric: SymmetricCipher | None
    scheme: SignatureScheme | None
    scheme_hash: HashAlg | None
    unique: "RsaUnique | EccUnique"

    @cached_property
    def name(self) -> bytes:
        """The object's name: nameAlg, then H(TPMT_PUBLIC)."""
        return self.name_alg.to_bytes(2, "big") + self.name_alg.digest(self.raw)

    @cached_property
    def key(self) -> PublicKey:
        """The key for `cryptography`. Cached: loading takes as long as several verifications."""
        return self.unique.load()

    @cached_property
    def attestation_defects(self) -> tuple[str, ...]:
        """`ak_defects`. Cached, as it is asked again for each quote."""
        return ak_defects(self)


@dataclass(frozen=True, slots=True)
class RsaUnique:
    """An RSA key: `modulus` has exactly `bits` bits."""

    bits: int
    exponent: int
    modulus: int

    def load(self) -> rsa.RSAPublicKey:
        try:
            return rsa.RSAPublicNumbers(self.exponent, self.modulus).public_key()
        except ValueError:
            raise MalformedKey("a usable RSA key") from None


@dataclass(frozen=True, slots=True)
class EccUnique:
    """A point on a curve. The coordinates stay as they came: some TPMs leave out leading zero bytes."""

    curve: Curve
    x: bytes
    y: bytes

    def load(self) -> ec.EllipticCurvePublicKey:
        x, y = int.from_bytes(self.x, "big"), int.from_bytes(self.y, "big")
        try:
            return ec.EllipticCurvePublicNumbers(x, y, CURVES[self.curve]).public_key()
        except ValueError:
            raise MalformedKey("a point on the curve") from None


def parse_tpm2b_public(data: bytes) -> Public:
    """Read a TPM2B_PUBLIC: two bytes of size, then a TPMT_PUBLIC, and nothing after it.

    Raises:
        MalformedKey: that, or what parse_tpmt_public raises.
    """
    size = int.from_bytes(data[:2], "big")
    if len(data) < 2 or size != len(data) - 2:
        raise MalformedKey("a size prefix that fits the public area", offset=0)
    return parse_tpmt_public(data[2:])


def parse_tpmt_public(data: bytes) -> Public:
    """Read a TPMT_PUBLIC, without a size prefix.

    The key is loaded here, so that a point beside the curve or an even modulus is found at once.

    Raises:
        MalformedKey: too short or long, another kind of key, unknown algorithms, or a key that cannot be loaded.
    """
    if len(data) > MAX_PUBLIC_BYTES:
        raise MalformedKey(f"a public area of at most {MAX_PUBLIC_BYTES} bytes", offset=0)
    try:
        public = _read_public(Reader(data), data)
    except MalformedKey:
        raise
    except MalformedTpmStructure as exc:
        raise MalformedKey(exc.expected, offset=exc.offset) from None
    _ = public.key
    return public


def _read_public(reader: Reader, data: bytes) -> Public:
    kind = reader.u16("a key type")
    if kind not in (ALG_RSA, ALG_ECC):
        raise MalformedKey("an RSA or ECC key", offset=0)
    name_alg = _hash(reader, "a name algorithm")
    start = reader.offset
    bits = reader.u32("attributes")
    if bits & ~_KNOWN_ATTRIBUTES:
        raise MalformedKey("no reserved attributes", offset=start)
    start = reader.offset
    auth_policy = reader.sized(64, "an authorization policy")
    if len(auth_policy) not in (0, name_alg.size):
        raise MalformedKey("an authorization policy of the name algorithm's size", offset=start)
    symmetric = _symmetric(reader)
    scheme, scheme_hash = _scheme(reader, kind)
    unique = _rsa_unique(reader) if kind == ALG_RSA else _ecc_unique(reader)
    reader.end("the public area")
    return Public(data, name_alg, Attributes(bits), auth_policy, symmetric, scheme, scheme_hash, unique)


def _hash(reader: Reader, what: str) -> HashAlg:
    start = reader.offset
    try:
        return HashAlg(reader.u16(what))
    except ValueError:
        raise MalformedKey(f"{what} that is known", offset=start) from None


def _symmetric(reader: Reader) -> SymmetricCipher | None:
    start = reader.offset
    algorithm = reader.u16("a symmetric algorithm")
    if algorithm == ALG_NULL:
        return None
    if algorithm != ALG_AES:
        raise MalformedKey("AES or no symmetric algorithm", offset=start)
    key_bits, mode = reader.u16("AES key bits"), reader.u16("an AES mode")
    if key_bits not in (128, 192, 256) or mode != ALG_CFB:
        raise MalformedKey("AES in CFB mode", offset=start)
    return SymmetricCipher(key_bits)


def _scheme(reader: Reader, kind: int) -> tuple[SignatureScheme | None, HashAlg | None]:
    start = reader.offset
    number = reader.u16("a scheme")
    if number == ALG_NULL:
        return None, None
    allowed = (SignatureScheme.RSASSA, SignatureScheme.RSAPSS) if kind == ALG_RSA else (SignatureScheme.ECDSA,)
    if number not in allowed:
        raise MalformedKey("no scheme, or a signature scheme that fits the key", offset=start)
    return SignatureScheme(number), _hash(reader, "a scheme's hash")


def _rsa_unique(reader: Reader) -> RsaUnique:
    start = reader.offset
    bits, exponent = reader.u16("RSA key bits"), reader.u32("an RSA exponent") or _DEFAULT_EXPONENT
    if bits not in RSA_BITS:
        raise MalformedKey("2048 or 3072 RSA key bits", offset=start)
    if exponent < _DEFAULT_EXPONENT or exponent % 2 == 0:
        raise MalformedKey(f"an odd RSA exponent of at least {_DEFAULT_EXPONENT}", offset=start)
    start = reader.offset
    modulus = int.from_bytes(reader.sized(bits // 8, "an RSA modulus"), "big")
    if modulus.bit_length() != bits or modulus % 2 == 0:
        raise MalformedKey(f"an odd RSA modulus of {bits} bits", offset=start)
    return RsaUnique(bits, exponent, modulus)


def _ecc_unique(reader: Reader) -> EccUnique:
    start = reader.offset
    try:
        curve = Curve(reader.u16("a curve"))
    except ValueError:
        raise MalformedKey("NIST P-256 or P-384", offset=start) from None
    if curve not in CURVES:
        raise MalformedKey("NIST P-256 or P-384", offset=start)
    start = reader.offset
    if reader.u16("a key derivation scheme") != ALG_NULL:
        raise MalformedKey("no key derivation scheme", offset=start)
    return EccUnique(curve, reader.sized(curve.bytes, "x"), reader.sized(curve.bytes, "y"))


def parse_bare_key(data: bytes) -> PublicKey:
    """Read a SubjectPublicKeyInfo, DER or PEM: a key without attributes, of which nobody can say what it may sign.

    Raises:
        MalformedKey: neither form, or another kind of key than this package supports.
    """
    if len(data) > 16 * MAX_PUBLIC_BYTES:
        raise MalformedKey("a public key of a few hundred bytes", offset=0)
    try:
        key = load_pem_public_key(data) if data.lstrip().startswith(b"-----BEGIN") else load_der_public_key(data)
    except (ValueError, TypeError, *UNSUPPORTED):
        raise MalformedKey("a TPM2B_PUBLIC, a TPMT_PUBLIC or a SubjectPublicKeyInfo") from None
    return supported(key)


def parse_key(data: bytes) -> Public | PublicKey:
    """Read a key in any form that tools write: TPM2B_PUBLIC, TPMT_PUBLIC, SubjectPublicKeyInfo in DER or PEM.

    Raises:
        MalformedKey: none of them.
    """
    if len(data) > 2 and int.from_bytes(data[:2], "big") == len(data) - 2:
        return parse_tpm2b_public(data)
    if int.from_bytes(data[:2], "big") in (ALG_RSA, ALG_ECC):
        return parse_tpmt_public(data)
    return parse_bare_key(data)


def supported(key: object) -> PublicKey:
    """The same key, if it is one that a TPM of today may have.

    Raises:
        MalformedKey: another algorithm, size or curve.
    """
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in (*RSA_BITS, 4096):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in {curve.name for curve in CURVES.values()}:
        return key
    raise MalformedKey("RSA with 2048 bits or more, or ECC on NIST P-256 or P-384")


def ak_defects(public: Public) -> tuple[str, ...]:
    """Why a key is no attestation key, in words; empty when it is one.

    A TPM signs with a restricted key only what it made itself, or hashed itself and found not to look like its own. A
    signature of an unrestricted one over a TPMS_ATTEST proves nothing: anybody who may use the key can make it. A key
    that is not fixed, or that came from outside, need not be in a TPM at all.
    """
    defects = [
        text
        for attribute, text in (
            (Attributes.RESTRICTED, "is not restricted: it signs whatever it is given"),
            (Attributes.SIGN, "is no signing key"),
            (Attributes.FIXED_TPM, "may be moved to another TPM"),
            (Attributes.FIXED_PARENT, "may be moved under another parent"),
            (Attributes.SENSITIVE_DATA_ORIGIN, "was not made by the TPM"),
        )
        if not public.attributes & attribute
    ]
    if public.attributes & Attributes.DECRYPT:
        defects.append("also decrypts")
    if not defects and public.attributes & ~Attributes.NO_DA != AK_ATTRIBUTES:
        defects.append("has attributes that no attestation key has")
    if public.scheme is None or public.scheme_hash is None:
        defects.append("has no signature scheme of its own")
    if public.symmetric is not None:
        defects.append("is a storage key")
    return tuple(defects)


def weak_hashes(public: Public) -> tuple[str, ...]:
    """Which hashes of a key are too weak to enrol it, in words; empty when none is."""
    weak = []
    if public.scheme_hash is not None and public.scheme_hash.is_weak:
        weak.append(f"signs with {public.scheme_hash.label}")
    if public.name_alg.is_weak:
        weak.append(f"has a name by {public.name_alg.label}")
    return tuple(weak)


def ek_defects(public: Public) -> tuple[str, ...]:
    """Why a key is no endorsement key (a restricted decryption key that stays in its TPM); empty when it is one."""
    wanted = Attributes.FIXED_TPM | Attributes.FIXED_PARENT | Attributes.SENSITIVE_DATA_ORIGIN
    wanted |= Attributes.RESTRICTED | Attributes.DECRYPT
    defects = []
    if public.attributes & wanted != wanted or public.attributes & Attributes.SIGN:
        defects.append("has attributes that no endorsement key has")
    if public.symmetric is None or public.scheme is not None:
        defects.append("is no storage key")
    return tuple(defects)
