"""What computes with keys in this process: found out from the process itself, never from its settings.

A process holds two OpenSSL libraries, the system's (`ssl`, `hashlib`, `hmac`) and the one inside the `cryptography`
package; the FIPS provider is loaded by each from a file of its own (console/launch/crypto_start.py). Everything else
that computes something cryptographic is listed too, as outside.
"""

import _hashlib
import ctypes
import hashlib
import hmac
import os
import platform
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

from cryptography.hazmat.bindings._rust import openssl as wheel_openssl

from encryption.engine import known_answers
from encryption.engine.known_answers import WrongAnswer
from inventory.adapters.tls import client_context

PROVIDER_FILE: Final = "fips.so"
WHEEL: Final = "cryptography package"
SYSTEM: Final = "system OpenSSL"
_MAPS: Final = Path("/proc/self/maps")
_KERNEL_MODE: Final = Path("/proc/sys/crypto/fips_enabled")


@dataclass(frozen=True, slots=True)
class Boundary:
    """One library or program that computes. `provider` and `sha256` are those of the FIPS provider it has loaded."""

    name: str
    library: str
    used_for: str
    is_tested: bool = False
    provider: str = ""
    provider_file: str = ""
    sha256: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """One test at one boundary. `detail` says what went wrong; it holds no value."""

    boundary: str
    name: str
    passed: bool
    detail: str = ""


def is_active() -> bool:
    """Whether both OpenSSL libraries of this process compute in a FIPS provider, each in its own copy."""
    return _hashlib.get_fips_mode() == 1 and wheel_openssl.is_fips_enabled() and len(_provider_files()) == 2


def run_self_tests() -> list[SelfTest]:
    """Known answers at both boundaries; with a provider, also that both refuse what is not approved."""
    negative = is_active()
    tests = [_run(WHEEL, name, test) for name, test in known_answers.POSITIVE.items()]
    tests += [_run(SYSTEM, name, test) for name, test in _SYSTEM_POSITIVE.items()]
    if negative:
        tests += [_refuses(WHEEL, name, test) for name, test in known_answers.NEGATIVE.items()]
        tests += [_refuses(SYSTEM, name, test) for name, test in _SYSTEM_NEGATIVE.items()]
    return tests


def boundaries(*, database: str, broker: str, directory: str = "") -> list[Boundary]:
    """Those of this process. `database`, `broker`, `directory` (of users; empty: there is none): the words for how they
    are reached."""
    files = _provider_files()
    return [
        _with_provider(
            Boundary(
                WHEEL,
                f"cryptography {metadata.version('cryptography')}, {wheel_openssl.openssl_version_text()}",
                "LUKS, key wrap, certificates, signatures, key generation",
                is_tested=True,
            ),
            files.get("wheel"),
            "FIPS provider" if wheel_openssl.is_fips_enabled() else "",
        ),
        _with_provider(
            Boundary(SYSTEM, ssl.OPENSSL_VERSION, "TLS to key servers, agents and browsers; digests", is_tested=True),
            files.get("system"),
            _provider_words() if _hashlib.get_fips_mode() == 1 else "",
        ),
        Boundary(
            "CPython's own code", f"CPython {platform.python_version()}", "nothing that protects something",
            note="hashlib falls back to it, without saying so, for what OpenSSL refuses (MD5, BLAKE2); the code of "
            "this product does not ask for those",
        ),
        Boundary(
            "Linux kernel", platform.release(), "session and token identifiers, nonces",
            note=f"crypto.fips_enabled = {_kernel_mode()}; keys come from the cryptography package's generator instead",
        ),
        Boundary("Database driver", database, "TLS to the database, where it is used", note=_driver_note()),
        Boundary("Redis", broker, "queues; identifiers only"),
        Boundary(
            "libvirt client", _loaded("libgnutls") or "GnuTLS", "TLS to hosts",
            note="GnuTLS's own module; the FIPS provider has no part in it",
        ),
        *([_directory(directory)] if directory else []),
        Boundary(
            "QEMU and swtpm", "as the hosts have them", "disks, vTPM state and migration of running machines",
            note="on the hosts, by their own libraries",
        ),
        Boundary("Key servers", "remote", "making and keeping of key-encryption keys", note="their own modules"),
    ]  # fmt: skip


def _directory(words: str) -> Boundary:
    return Boundary(
        "LDAP client", _loaded("libgnutls") or "libldap", f"TLS to the directory of users ({words}), with passwords",
        note="libldap does TLS with GnuTLS, held to 1.2 or newer and approved suites; the FIPS provider has no part "
        "in it",
    )  # fmt: skip


def _run(boundary: str, name: str, test: Callable[[], None]) -> SelfTest:
    try:
        test()
    except (WrongAnswer, ssl.SSLError, OSError, *known_answers.FAILURES) as exc:
        return SelfTest(boundary, name, False, str(exc) if isinstance(exc, WrongAnswer) else type(exc).__name__)
    return SelfTest(boundary, name, True)


def _refuses(boundary: str, name: str, test: Callable[[], None]) -> SelfTest:
    if _run(boundary, name, test).passed:
        return SelfTest(boundary, f"{name} refused", False, "it is taken")
    return SelfTest(boundary, f"{name} refused", True)


# `_hashlib` and not `hashlib`: the latter would give CPython's own answer where OpenSSL has none.
def _sha2() -> None:
    for function, answer in (
        (_hashlib.openssl_sha256, known_answers.SHA256_ABC),
        (_hashlib.openssl_sha384, known_answers.SHA384_ABC),
        (_hashlib.openssl_sha512, known_answers.SHA512_ABC),
    ):
        _expect(function(b"abc").digest(), answer)


def _hmac() -> None:
    for name, answer in (
        ("sha256", known_answers.HMAC_SHA256_ANSWER),
        ("sha384", known_answers.HMAC_SHA384_ANSWER),
    ):
        _expect(hmac.digest(known_answers.HMAC_KEY, known_answers.HMAC_DATA, name), answer)


def _pbkdf2() -> None:
    found = _hashlib.pbkdf2_hmac(
        "sha256", known_answers.PBKDF2_PASSWORD, known_answers.PBKDF2_SALT, known_answers.PBKDF2_ITERATIONS,
        len(known_answers.PBKDF2_ANSWER),
    )  # fmt: skip
    _expect(found, known_answers.PBKDF2_ANSWER)


def _drbg() -> None:
    drawn = {ssl.RAND_bytes(32) for _ in range(4)}
    if len(drawn) != 4 or bytes(32) in drawn:
        raise WrongAnswer("the generator repeats itself")


def _tls() -> None:
    """That approved suites are there; no connection is made."""
    if not any("AES256-GCM" in suite["name"] for suite in client_context().get_ciphers()):
        raise WrongAnswer("there is no TLS suite with AES-256-GCM")


def _expect(found: bytes, known: bytes) -> None:
    if found != known:
        raise WrongAnswer("another answer than the known one")


def _md5() -> None:
    _hashlib.openssl_md5(b"")


def _chacha20() -> None:
    library = _system_library()
    fetched = library.EVP_CIPHER_fetch(None, b"ChaCha20-Poly1305", None)
    if not fetched:
        library.ERR_clear_error()
        raise ValueError("unsupported")
    library.EVP_CIPHER_free(ctypes.c_void_p(fetched))


def _chacha20_suites() -> None:
    if not any("CHACHA20" in suite["name"] for suite in client_context().get_ciphers()):
        raise ValueError("unsupported")


_SYSTEM_POSITIVE: Final[Mapping[str, Callable[[], None]]] = {
    "SHA-2": _sha2,
    "HMAC-SHA-2": _hmac,
    "PBKDF2-HMAC-SHA-256": _pbkdf2,
    "DRBG": _drbg,
    "TLS suites": _tls,
}
_SYSTEM_NEGATIVE: Final[Mapping[str, Callable[[], None]]] = {
    "MD5": _md5,
    "ChaCha20-Poly1305": _chacha20,
    "TLS with ChaCha20": _chacha20_suites,
}


def _with_provider(boundary: Boundary, file: str | None, words: str) -> Boundary:
    if file is None or not words:
        return boundary
    return replace(boundary, provider=words, provider_file=file, sha256=_sha256(file))


def _mapped() -> set[str]:
    """The files that the kernel has mapped into this process."""
    lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return {parts[5].strip() for line in lines if len(parts := line.split(maxsplit=5)) == 6}


def _provider_files() -> dict[str, str]:
    """The provider's copies that are loaded, by their folder's name: "system", "wheel"."""
    return {os.path.basename(os.path.dirname(path)): path for path in _mapped() if path.endswith(f"/{PROVIDER_FILE}")}


def _loaded(library: str) -> str:
    """The file name of a library that is loaded, such as libgnutls.so.30.34.3; empty when it is not."""
    return next((os.path.basename(path) for path in sorted(_mapped()) if f"/{library}" in path), "")


@cache
def _sha256(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _kernel_mode() -> str:
    try:
        return _KERNEL_MODE.read_text(encoding="ascii").strip()
    except OSError:
        return "0"  # a kernel without that mode


def _driver_note() -> str:
    own = [os.path.basename(path) for path in sorted(_mapped()) if "psycopg" in path and "/libssl" in path]
    return f"it brings its own OpenSSL ({', '.join(own)}), outside of the provider" if own else ""


class _Param(ctypes.Structure):
    """OSSL_PARAM (openssl/core.h)."""

    _fields_ = [
        ("key", ctypes.c_char_p),
        ("data_type", ctypes.c_uint),
        ("data", ctypes.c_void_p),
        ("data_size", ctypes.c_size_t),
        ("return_size", ctypes.c_size_t),
    ]


_UTF8_POINTER: Final = 6  # OSSL_PARAM_UTF8_PTR


@cache
def _system_library() -> ctypes.CDLL:
    """The libcrypto that `ssl` and `hashlib` use: the one that is loaded, by its very path."""
    library = ctypes.CDLL(next(path for path in sorted(_mapped()) if "/libcrypto.so" in path))
    library.EVP_CIPHER_fetch.restype = ctypes.c_void_p
    library.EVP_CIPHER_fetch.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    library.OSSL_PROVIDER_load.restype = ctypes.c_void_p
    library.OSSL_PROVIDER_load.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


def _provider_words() -> str:
    """Name and version as the provider itself tells them to the system's OpenSSL. The wheel's cannot be asked; its
    copy has the same digest."""
    library = _system_library()
    provider = library.OSSL_PROVIDER_load(None, b"fips")
    if not provider:
        library.ERR_clear_error()
        return "FIPS provider"
    name, version = ctypes.c_char_p(), ctypes.c_char_p()
    wanted = (_Param * 3)(
        _Param(b"name", _UTF8_POINTER, ctypes.addressof(name), 0, 0),
        _Param(b"version", _UTF8_POINTER, ctypes.addressof(version), 0, 0),
    )
    try:
        if not library.OSSL_PROVIDER_get_params(ctypes.c_void_p(provider), wanted):
            return "FIPS provider"
        return f"{(name.value or b'').decode()} {(version.value or b'').decode()}"
    finally:
        library.OSSL_PROVIDER_unload(ctypes.c_void_p(provider))
