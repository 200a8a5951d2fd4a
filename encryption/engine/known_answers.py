"""Known answers of the cipher module inside the `cryptography` package, for the tests that each process runs first.

Vectors of the standards themselves, checked once more against NIST's files by the test suite. `NEGATIVE` is what a
module in FIPS mode refuses; it means nothing without the provider. Not covered: key generation (its numbers cannot be
known), RSA (a signature with a fixed key would test the same code as ECDSA's and cost more than all of this).
"""

from collections.abc import Callable, Mapping
from typing import Final

from cryptography.exceptions import InternalError, InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, hmac, keywrap
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305  # noqa: TID251  to be refused
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from encryption.engine import drbg, xts


class WrongAnswer(Exception):
    """The module's answer is not the known one, or it takes what it has to refuse."""


# Test case 14 of the submission of GCM to NIST (McGrew and Viega): AES-256, 96-bit IV, one block of zeros.
_GCM_KEY = bytes(32)
_GCM_ANSWER = bytes.fromhex("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919")
# FIPS 197, C.3.
_AES_KEY = bytes(range(32))
_AES_PLAIN = bytes.fromhex("00112233445566778899aabbccddeeff")
_AES_ANSWER = bytes.fromhex("8ea2b7ca516745bfeafc49904b496089")
# RFC 3394, 4.6.
_KW_DATA = bytes.fromhex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f")
_KW_ANSWER = bytes.fromhex("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21")
# RFC 5649, 6.
_KWP_KEY = bytes.fromhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
_KWP_DATA = bytes.fromhex("c37b7e6492584340bed12207808941155068f738")
_KWP_ANSWER = bytes.fromhex("138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a")
# FIPS 180-4, examples: "abc".
SHA256_ABC: Final = bytes.fromhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
SHA384_ABC: Final = bytes.fromhex(
    "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7"
)
SHA512_ABC: Final = bytes.fromhex(
    "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
    "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
)
# RFC 4231, 4.2.
HMAC_KEY: Final = bytes([0x0B]) * 20
HMAC_DATA: Final = b"Hi There"
HMAC_SHA256_ANSWER: Final = bytes.fromhex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7")
HMAC_SHA384_ANSWER: Final = bytes.fromhex(
    "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6"
)
# RFC 6070's longest case with SHA-256 in place of SHA-1: its salt has 36 bytes, where the module demands 16.
PBKDF2_PASSWORD: Final = b"passwordPASSWORDpassword"
PBKDF2_SALT: Final = b"saltSALTsaltSALTsaltSALTsaltSALTsalt"
PBKDF2_ITERATIONS: Final = 4096
PBKDF2_ANSWER: Final = bytes.fromhex("348c89dbcbd32b2f32d814b8116e84cf2b17347ebc1800181c4e2a1fb8dd53e1c635518c7dac47e9")
# RFC 6979, A.2.5: P-256, SHA-256, message "sample".
_ECDSA_X = 0x60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6
_ECDSA_Y = 0x7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299
_ECDSA_R = 0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716
_ECDSA_S = 0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8


def _aes_ecb() -> None:
    cipher = Cipher(algorithms.AES(_AES_KEY), modes.ECB())  # noqa: S305 - the block cipher itself is what is tested
    _expect(cipher.encryptor().update(_AES_PLAIN), _AES_ANSWER)
    _expect(cipher.decryptor().update(_AES_ANSWER), _AES_PLAIN)


def _aes_gcm() -> None:
    cipher = AESGCM(_GCM_KEY)
    _expect(cipher.encrypt(bytes(12), bytes(16), None), _GCM_ANSWER)
    _expect(cipher.decrypt(bytes(12), _GCM_ANSWER, None), bytes(16))
    try:
        cipher.decrypt(bytes(12), _GCM_ANSWER[:-1] + b"\0", None)
    except InvalidTag:
        return
    raise WrongAnswer("a changed tag is taken")


def _aes_xts() -> None:
    try:
        xts.self_check()
    except xts.SelfCheckFailed as exc:
        raise WrongAnswer(str(exc)) from exc


def _key_wrap() -> None:
    _expect(keywrap.aes_key_wrap(_AES_KEY, _KW_DATA), _KW_ANSWER)
    _expect(keywrap.aes_key_unwrap(_AES_KEY, _KW_ANSWER), _KW_DATA)


def _key_wrap_padded() -> None:
    _expect(keywrap.aes_key_wrap_with_padding(_KWP_KEY, _KWP_DATA), _KWP_ANSWER)
    _expect(keywrap.aes_key_unwrap_with_padding(_KWP_KEY, _KWP_ANSWER), _KWP_DATA)
    try:
        keywrap.aes_key_unwrap_with_padding(_KWP_KEY, _KWP_ANSWER[:-1] + b"\0")
    except keywrap.InvalidUnwrap:
        return
    raise WrongAnswer("a changed blob is unwrapped")


def _sha2() -> None:
    for algorithm, answer in (
        (hashes.SHA256(), SHA256_ABC),
        (hashes.SHA384(), SHA384_ABC),
        (hashes.SHA512(), SHA512_ABC),
    ):
        digest = hashes.Hash(algorithm)
        digest.update(b"abc")
        _expect(digest.finalize(), answer)


def _hmac() -> None:
    for algorithm, answer in ((hashes.SHA256(), HMAC_SHA256_ANSWER), (hashes.SHA384(), HMAC_SHA384_ANSWER)):
        mac = hmac.HMAC(HMAC_KEY, algorithm)
        mac.update(HMAC_DATA)
        _expect(mac.finalize(), answer)


def _pbkdf2() -> None:
    derived = PBKDF2HMAC(hashes.SHA256(), len(PBKDF2_ANSWER), PBKDF2_SALT, PBKDF2_ITERATIONS).derive(PBKDF2_PASSWORD)
    _expect(derived, PBKDF2_ANSWER)


def _ecdsa() -> None:
    key = ec.EllipticCurvePublicNumbers(_ECDSA_X, _ECDSA_Y, ec.SECP256R1()).public_key()
    algorithm = ec.ECDSA(hashes.SHA256())
    key.verify(encode_dss_signature(_ECDSA_R, _ECDSA_S), b"sample", algorithm)
    try:
        key.verify(encode_dss_signature(_ECDSA_R, _ECDSA_S), b"samples", algorithm)
    except InvalidSignature:
        return
    raise WrongAnswer("a signature of another message is taken")


def _drbg() -> None:
    """Not a statistical test: that the generator gives something, and not the same again."""
    drawn = {drbg.draw(32) for _ in range(4)}
    if len(drawn) != 4 or bytes(32) in drawn:
        raise WrongAnswer("the generator repeats itself")


def _expect(found: bytes, known: bytes) -> None:
    if found != known:
        raise WrongAnswer("another answer than the known one")


def _md5() -> None:
    hashes.Hash(hashes.MD5())  # noqa: S303, TID251  to be refused


def _chacha20() -> None:
    ChaCha20Poly1305(bytes(32)).encrypt(bytes(12), b"", None)


POSITIVE: Final[Mapping[str, Callable[[], None]]] = {
    "AES-256-ECB": _aes_ecb,
    "AES-256-GCM": _aes_gcm,
    "AES-256-XTS": _aes_xts,
    "AES-KW": _key_wrap,
    "AES-KWP": _key_wrap_padded,
    "SHA-2": _sha2,
    "HMAC-SHA-2": _hmac,
    "PBKDF2-HMAC-SHA-256": _pbkdf2,
    "ECDSA P-256": _ecdsa,
    "DRBG": _drbg,
}
NEGATIVE: Final[Mapping[str, Callable[[], None]]] = {"MD5": _md5, "ChaCha20-Poly1305": _chacha20}
# What the package raises, beside WrongAnswer: of what the module does not know, and of what went wrong inside it.
FAILURES: Final = (UnsupportedAlgorithm, InternalError, InvalidTag, InvalidSignature, keywrap.InvalidUnwrap, ValueError)
