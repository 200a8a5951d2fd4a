"""Gives each OpenSSL of this process its own copy of the FIPS provider, before anything computes with either.

A process of ours has two: the system's libcrypto (`ssl`, `hashlib`) and the one inside the `cryptography` wheel. The
provider keeps state for the whole process, so that one file loaded by both breaks the second: hence two copies
(console/launch/crypto.py makes them). Set-up puts this file, with a `.pth` line that imports it, into the venv's
site-packages: `site` runs it before manage.py, Celery, gunicorn or pytest begin. Standard library only, and nothing
of it that loads OpenSSL.

It acts where BARTIZAN_CRYPTO_MODULES names the folder of the copies. Python programs that are started from here find
that variable and do the same for themselves; OPENSSL_CONF is gone again, because other programs that inherited it
would load a provider that was made for another library.
"""

import os
import sys
from typing import NoReturn

FOLDER_VARIABLE = "BARTIZAN_CRYPTO_MODULES"
SYSTEM, WHEEL = "system", "wheel"
PROVIDER, CONFIGURATION = "fips.so", "openssl.cnf"
EXIT_CODE = 78  # EX_CONFIG of sysexits.h


def start() -> None:
    """Load both, or end the process: `site` would only print an exception and go on without the provider."""
    folder = os.environ.get(FOLDER_VARIABLE, "")  # noqa: TID251  before there are settings
    if not folder or os.environ.get("BARTIZAN_FIPS") == "off":  # noqa: TID251
        return
    inherited = os.environ.get("OPENSSL_CONF")  # noqa: TID251
    try:
        _load_system(f"{folder}/{SYSTEM}")
        _load_wheel(f"{folder}/{WHEEL}")
        _require_own_copies(folder)
    finally:
        os.environ.pop("CRYPTOGRAPHY_OPENSSL_NO_LEGACY", None)  # noqa: TID251
        if inherited is None:
            os.environ.pop("OPENSSL_CONF", None)  # noqa: TID251
        else:
            os.environ["OPENSSL_CONF"] = inherited  # noqa: TID251


def _load_system(folder: str) -> None:
    if "_hashlib" in sys.modules or "_ssl" in sys.modules:
        _end(folder, "the system's OpenSSL was in use before it could be configured")
    _configure(folder)
    try:
        import _hashlib  # OpenSSL reads its configuration once, when it is first asked for something

        # Not hashlib: that falls back to CPython's own code where OpenSSL refuses.
        digest = _hashlib.openssl_sha256(b"")
        enabled = _hashlib.get_fips_mode() == 1
    except (ImportError, ValueError) as exc:  # UnsupportedDigestmodError is a ValueError
        _end(folder, f"the system's OpenSSL does not take it: {exc}")
    if not enabled or digest.digest_size != 32:
        _end(folder, "the system's OpenSSL did not switch to it")


def _load_wheel(folder: str) -> None:
    if "cryptography" in sys.modules:
        _end(folder, "the cryptography package was in use before it could be configured")
    _configure(folder)
    os.environ["CRYPTOGRAPHY_OPENSSL_NO_LEGACY"] = "1"  # noqa: TID251
    try:
        import cryptography.hazmat.bindings._rust as rust
        from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    except ImportError as exc:
        _end(folder, f"the cryptography package does not take it: {exc}")
    try:
        from cryptography.hazmat.primitives import hashes

        hashes.Hash(hashes.SHA256()).finalize()
        enabled = rust.openssl.is_fips_enabled()
    except (InternalError, UnsupportedAlgorithm, AttributeError) as exc:
        _end(folder, f"the cryptography package does not take it: {type(exc).__name__}")
    if not enabled:
        _end(folder, "the cryptography package did not switch to it")


def _configure(folder: str) -> None:
    if not os.path.isfile(f"{folder}/{CONFIGURATION}"):
        _end(folder, "its configuration is missing")  # OpenSSL itself says nothing of that
    os.environ["OPENSSL_CONF"] = f"{folder}/{CONFIGURATION}"  # noqa: TID251


def _require_own_copies(folder: str) -> None:
    """Both libraries may name the same file, by a link or a wrong configuration: the kernel knows what is loaded."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        loaded = {parts[5].strip() for line in lines if len(parts := line.split(maxsplit=5)) == 6}
    wanted = {os.path.realpath(f"{folder}/{name}/{PROVIDER}") for name in (SYSTEM, WHEEL)}
    if len(wanted) != 2 or not wanted <= loaded:
        _end(folder, "the two OpenSSL libraries of this process have not each loaded their own copy")


def _end(folder: str, reason: str) -> NoReturn:
    text = (
        f"bartizan: the FIPS provider in {folder} cannot be used: {reason}\n"
        f"  a changed file looks like this; remove {os.path.dirname(folder)} and start again to have it prepared anew\n"
    )
    os.write(2, text.encode("utf-8", "surrogateescape"))
    os._exit(EXIT_CODE)


if __name__ == "bartizan_crypto_start":  # as set-up installs it; the launcher imports it for its names
    start()
