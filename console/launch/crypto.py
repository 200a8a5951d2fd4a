"""The FIPS provider of this installation: one copy for each OpenSSL that our processes hold (crypto_start.py).

The copies stand in `.venv/crypto`, beside the Python packages: made by whoever sets up, read by the service user and
not writable for it. The machine's own OpenSSL is not touched. Where the provider comes from: the file that
BARTIZAN_FIPS_PROVIDER names, else the machine's own provider, else the distribution's package.
"""

import fcntl
import hashlib
import json
import shutil
import sys
import sysconfig
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from console.env import env_str
from console.launch import crypto_start, provider_package
from console.launch.crypto_start import CONFIGURATION, FOLDER_VARIABLE, PROVIDER, SYSTEM, WHEEL
from console.launch.provider_package import ProviderUnavailable
from console.launch.steps import LaunchError, Steps, digest, run_command
from inventory.engine.crypto_policy import TLS_1_2_CIPHERS

STEP = "crypto modules"
RECORD = "modules.json"
START_MODULE = "bartizan_crypto_start"
_RECIPE = "2"  # changes when what is written below does
_ASK_AGAIN_SECONDS = 24 * 3600
# What OpenSSL 3.5's `fipsinstall -pedantic` would switch on, as far as TLS and KMIP go on working (3.0's program
# cannot, and an older provider ignores what it does not know).
_STRICT = (
    "tdes-encrypt-disabled", "rsa-pkcs15-pad-disabled", "rsa-sign-x931-pad-disabled", "signature-digest-check",
    "hmac-key-check", "no-short-mac", "tls1-prf-ems-check", "dsa-sign-disabled", "drbg-no-trunc-md", "kbkdf-key-check",
    "hkdf-key-check", "tls13-kdf-key-check", "tls1-prf-key-check", "sskdf-key-check", "x963kdf-key-check",
    "x942kdf-key-check", "ecdh-cofactor-check",
)  # fmt: skip

_CONFIGURATION = """\
config_diagnostics = 1
openssl_conf = init
.include {folder}/fipsmodule.cnf
[init]
providers = providers
alg_section = algorithms
[providers]
fips = fips_sect
base = base_sect
[base_sect]
activate = 1
[algorithms]
default_properties = fips=yes
"""
# Also for contexts that others make (gunicorn, Redis clients), as the machine's own openssl.cnf is not read any more.
_TLS_DEFAULTS = f"""\
[tls]
system_default = tls_defaults
[tls_defaults]
MinProtocol = TLSv1.2
CipherString = {TLS_1_2_CIPHERS}
Ciphersuites = TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256
"""


class Mode(StrEnum):
    """`BARTIZAN_FIPS`: the provider where it can be had, or else no start, or not at all."""

    AUTO = "auto"
    REQUIRED = "required"
    OFF = "off"


def mode() -> Mode:
    given = env_str("BARTIZAN_FIPS", Mode.AUTO)
    try:
        return Mode(given)
    except ValueError as exc:
        raise LaunchError(f"BARTIZAN_FIPS is {given!r}", hint=f"it can be {', '.join(Mode)}") from exc


def folder_of(root: Path) -> Path:
    return (root / ".venv").resolve() / "crypto"


def environment(root: Path) -> dict[str, str]:
    """The variable that makes a Python process of this venv use the copies; empty without them, and in mode `off`."""
    folder = folder_of(root)
    return {FOLDER_VARIABLE: str(folder)} if mode() != Mode.OFF and (folder / RECORD).exists() else {}


def prepare(steps: Steps, root: Path) -> bool:
    """Make what is missing of the copies. Whether they are there.

    Raises LaunchError in mode `required` where they cannot be had, and in any mode where a provider that was named
    or found does not pass its self-tests. In mode `auto` a provider that cannot be downloaded is said, and asked for
    again after a day.
    """
    chosen = mode()
    if chosen == Mode.OFF:
        steps.say(STEP, "BARTIZAN_FIPS=off: no FIPS provider, by choice")
        return False
    folder = folder_of(root)
    own = _own_provider()
    unavailable = folder.with_name("crypto.unavailable")
    with folder.with_name("crypto.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if chosen == Mode.AUTO and own is None and not (folder / RECORD).exists() and _is_recent(unavailable):
            steps.say(STEP, f"no FIPS provider: {unavailable.read_text(encoding='utf-8').strip()}")
            return False
        try:
            steps.run(
                STEP,
                f"FIPS provider from {own or f'the package {provider_package.PACKAGE}'}",
                lambda: _make(root, folder, own),
                key=digest([own] if own is not None else [], _RECIPE, str(folder)),
                result=folder / RECORD,
            )
        except ProviderUnavailable as exc:
            if chosen == Mode.REQUIRED:
                raise LaunchError(
                    f"BARTIZAN_FIPS=required, and there is no FIPS provider: {exc}",
                    hint="name one in BARTIZAN_FIPS_PROVIDER, or choose BARTIZAN_FIPS=auto (docs/install.md)",
                ) from exc
            unavailable.write_text(f"{exc}\n", encoding="utf-8")
            steps.say("", f"no FIPS provider: {exc}; approved algorithms of the libraries' own")
            return False
        unavailable.unlink(missing_ok=True)
        _install_start()
    return True


def needs_start_over(root: Path) -> bool:
    """Whether this process runs without the copies that are there for it."""
    return any(env_str(name, "") != value for name, value in environment(root).items())


def _own_provider() -> Path | None:
    """The operator's, or the machine's own; None where the package is to be asked for."""
    if given := env_str("BARTIZAN_FIPS_PROVIDER", ""):
        path = Path(given)
        if not path.is_absolute() or not path.is_file():
            raise LaunchError(
                f"BARTIZAN_FIPS_PROVIDER: there is no file {given}", hint="give the whole path of fips.so"
            )
        return path
    try:
        said = run_command(["openssl", "version", "-m"], cwd=Path("/"), what="openssl version")
    except LaunchError:
        return None
    found = Path(said.partition('"')[2].rstrip('"\n '), PROVIDER)
    return found if found.is_absolute() and found.is_file() else None


def _make(root: Path, folder: Path, own: Path | None) -> str:
    if own is not None:
        return _install(root, folder, own, str(own))
    with provider_package.unpacked() as found:
        return _install(root, folder, found.module, found.package)


def _install(root: Path, folder: Path, module: Path, origin: str) -> str:
    """Two copies with their configurations, tried by a process of each library before anything may use them."""
    aside = folder.with_name("crypto.new")
    shutil.rmtree(aside, ignore_errors=True)
    for name in (SYSTEM, WHEEL):
        copy = aside / name / PROVIDER
        copy.parent.mkdir(mode=0o755, parents=True)
        shutil.copyfile(module, copy)
        # Runs the module's self-tests; without -self_test_onload they would not be run again in each process.
        said = run_command(
            ["openssl", "fipsinstall", "-self_test_onload", "-quiet", "-module", str(copy), "-out", "/dev/stdout"],
            cwd=aside, what="openssl fipsinstall",
        )  # fmt: skip
        target = folder / name
        (aside / name / "fipsmodule.cnf").write_text(_module_section(said, target / PROVIDER), encoding="utf-8")
        configuration = _CONFIGURATION.format(folder=target)
        if name == SYSTEM:
            configuration = configuration.replace("[init]\n", "[init]\nssl_conf = tls\n") + _TLS_DEFAULTS
        (aside / name / CONFIGURATION).write_text(configuration, encoding="utf-8")
    sha256 = hashlib.sha256(module.read_bytes()).hexdigest()
    record = {"origin": origin, "sha256": sha256, "prepared_at": datetime.now(UTC).isoformat(timespec="seconds")}
    (aside / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for path in (aside, *aside.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    replaced = folder.with_name("crypto.old")  # for a moment only: processes may be starting just now
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    aside.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    _install_start()
    try:
        run_command(
            ["env", f"{FOLDER_VARIABLE}={folder}", sys.executable, "-P", "-c", "import hashlib, ssl, cryptography"],
            cwd=root, what="a process with the FIPS provider",
        )  # fmt: skip
    except LaunchError:
        shutil.rmtree(folder)
        raise
    return f"{origin}, a copy for each OpenSSL, in {folder}"


def _module_section(said: str, module: Path) -> str:
    """`fipsinstall`'s section with the module's own path, so that no search path has a say, and the strict switches."""
    head = "[fips_sect]\n"
    if head not in said or "module-mac" not in said:
        raise LaunchError("openssl fipsinstall wrote no configuration", details=said[-2000:])
    added = f"module = {module}\n" + "".join(f"{name} = 1\n" for name in _STRICT)
    return head + added + said.partition(head)[2]


def _install_start() -> None:
    """What makes every Python of this venv look for the copies before anything else (crypto_start.py)."""
    packages = Path(sysconfig.get_paths()["purelib"])
    for name, text in (
        (f"{START_MODULE}.py", Path(crypto_start.__file__).read_text(encoding="utf-8")),
        (f"{START_MODULE}.pth", f"import {START_MODULE}\n"),
    ):
        path = packages / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            path.chmod(0o644)


def _is_recent(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _ASK_AGAIN_SECONDS
    except FileNotFoundError:
        return False
