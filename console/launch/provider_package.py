"""The distribution's package with the OpenSSL FIPS provider: downloaded and unpacked, never installed.

apt does it in a private root: its own sources, lists and cache, none of the machine's are changed. Where to ask is
read from the machine's own sources (mirror and proxy stay theirs). What comes is checked by apt against the archive's
signatures with the machine's archive keyring; unsigned archives are refused whatever the machine's apt.conf allows.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from console.launch.steps import LaunchError, run_command

PACKAGE = "openssl-provider-fips"
FIRST_RELEASE = 13  # Debian 12 has no such package; that of 13 needs nothing newer than 12's C library
FIRST_CODENAME = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
OS_RELEASE = Path("/etc/os-release")
_SECONDS = 180
_MODULE = "usr/lib/*/ossl-modules/fips.so"


class ProviderUnavailable(LaunchError):
    """It cannot be had on this machine or not now; nothing is wrong with one that is there."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The provider inside a folder that goes away, and which package it came from."""

    module: Path
    package: str


@contextmanager
def unpacked() -> Iterator[Unpacked]:
    """Download and unpack it. Raises ProviderUnavailable where this machine cannot."""
    codename, suite = _suites()
    with tempfile.TemporaryDirectory(prefix="bartizan-provider-") as folder:
        root = Path(folder)
        for name in ("lists/partial", "archives/partial", "etc", "empty", "unpacked"):
            (root / name).mkdir(parents=True)
        (root / "etc" / "provider.sources").write_text(sources(_machine_sources(), codename, suite), encoding="utf-8")
        apt = ["apt-get", *_options(root)]
        # Its exit code counts nothing: where one of several mirrors lacks the suite, another may have it.
        _run([*apt, "update", "-qq"], cwd=root, what="asking the package servers", must=False)
        _run([*apt, "download", "-qq", PACKAGE], cwd=root, what=f"downloading {PACKAGE}")
        found = sorted(root.glob(f"{PACKAGE}_*.deb"))
        if len(found) != 1:
            raise ProviderUnavailable(f"the package servers have no {PACKAGE} for {suite}")
        version = run_command(["dpkg-deb", "--field", str(found[0]), "Version"], cwd=root, what="dpkg-deb").strip()
        run_command(["dpkg-deb", "--extract", str(found[0]), str(root / "unpacked")], cwd=root, what="dpkg-deb")
        modules = [path for path in (root / "unpacked").glob(_MODULE) if path.is_file()]
        if len(modules) != 1:
            raise ProviderUnavailable(f"{PACKAGE} {version} holds no {_MODULE}")
        yield Unpacked(modules[0], f"{PACKAGE} {version}")


def sources(machine: str, codename: str, suite: str) -> str:
    """apt's sources (deb822) for `suite`, from the lines "URI RELEASE COMPONENT" that the machine has for `codename`.

    Raises ProviderUnavailable where the machine has no source of its own release to take the server from.
    """
    wanted: dict[tuple[str, str], None] = {}
    own_suites = rf"(?:{re.escape(codename)}|stable|oldstable)(-security)?"
    for line in machine.splitlines():
        match line.split():
            case [uri, release, "main"] if (own := re.fullmatch(own_suites, release)) is not None:
                wanted[uri, suite + (own[1] or "")] = None
    if not any(each == suite for _, each in wanted):
        raise ProviderUnavailable(f"apt has no source for {codename} on this machine that could serve {suite}")
    signed = f"Signed-By: {KEYRING}\n" if KEYRING.exists() else ""
    return "\n".join(f"Types: deb\nURIs: {uri}\nSuites: {each}\nComponents: main\n{signed}" for uri, each in wanted)


def _suites() -> tuple[str, str]:
    """The machine's release, and the one that the package is taken from."""
    try:
        facts = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', OS_RELEASE.read_text(encoding="utf-8"), re.MULTILINE))
    except OSError:
        facts = {}
    codename, release = facts.get("VERSION_CODENAME", ""), facts.get("VERSION_ID", "")
    if facts.get("ID") != "debian" or not codename or not release.isdigit() or int(release) < FIRST_RELEASE - 1:
        raise ProviderUnavailable("this is not Debian 12 or newer")
    return codename, codename if int(release) >= FIRST_RELEASE else FIRST_CODENAME


def _machine_sources() -> str:
    return _run(
        # From the sources themselves: the lists may never have been fetched, or were cleared (containers).
        [
            "apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ],
        cwd=Path("/"), what="reading apt's sources",
    )  # fmt: skip


def _options(root: Path) -> list[str]:
    settings = {
        "Dir::State": root,
        "Dir::State::lists": root / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": root,
        "Dir::Etc::sourcelist": root / "etc" / "provider.sources",
        "Dir::Etc::sourceparts": root / "empty",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": root / "empty",
        "APT::Sandbox::User": "root",  # the folder is private; only root would change to another user at all
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "1",
        "Acquire::http::Timeout": "15",
        "Acquire::https::Timeout": "15",
    }
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def _run(command: list[str], *, cwd: Path, what: str, must: bool = True) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ProviderUnavailable(f"{what}: {command[0]} did not run ({type(exc).__name__})") from exc
    if must and done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise ProviderUnavailable(f"{what} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout
