"""The launcher's command line. POSIX sh (`./bartizan`) calls it when packages, .venv and Python packages are there."""

import argparse
import compileall
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from console.launch import assets, checks, crypto, receivers, up, user
from console.launch.address import DEFAULT_LISTEN, parse_listen
from console.launch.crypto_start import FOLDER_VARIABLE
from console.launch.state import state_of
from console.launch.steps import LaunchError, Steps

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("console", "inventory", "encryption", "attestation", "lab")
QUICK = "not lab and not browser and not slow"
# Groups: tests/conftest.py. Two processes, not one for each core: the lab's machines need the rest.
IN_PARALLEL = ("-n", "2", "--no-loadscope-reorder")

# What computes with keys, and what would go another way without the provider.
CRYPTOGRAPHY = (
    "tests/console/crypto", "tests/encryption/engine/test_luks.py", "tests/encryption/engine/test_xts.py",
    "tests/encryption/engine/test_keywrap.py", "tests/encryption/engine/test_transport.py",
    "tests/encryption/engine/test_known_answers.py", "tests/encryption/adapters/test_kmip_trust.py",
    "tests/attestation/engine/tpm/test_credential.py", "tests/attestation/engine/tpm/test_quote.py",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Errors go to the error stream with what to do about them."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(given)
    except LaunchError as exc:
        if exc.details:
            print(exc.details, file=sys.stderr)
        print(f"bartizan: {exc}", file=sys.stderr)
        if exc.hint:
            print(f"  {exc.hint}", file=sys.stderr)
        return 1


def _dispatch(given: list[str]) -> int:
    # What follows these is for Django and pytest alone: argparse would take options such as --help for itself.
    if given[:1] == ["manage"] and given[1:2] in (["disk"], ["appraise"], ["verify-inventory"]):
        return _manage_offline(given[1:])
    if given[:1] == ["manage"]:
        _drop_root(given)
        return _manage(given[1:])
    if given[:1] == ["test"]:
        return _test(given[1:])
    options = _parser().parse_args(given)
    if options.command == "check":
        return 0 if checks.run_checks(ROOT) else 1
    if options.command == "assets":
        if not options.installed:
            _install_packages()
            crypto.prepare(_setup_steps(), ROOT)
        if options.accept:
            found = assets.source_digests(ROOT / "node_modules")
            assets.SOURCES.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        _drop_root(["assets", "--installed"])
        _build_assets()
        return 0
    if options.command == "up":
        wanted = up.UpOptions(parse_listen(options.listen), lab=not options.no_lab, detach=options.detach)
        if not options.installed:
            _install_packages()
            crypto.prepare(_setup_steps(), ROOT)
        _drop_root([*given, "--installed"])
        if crypto.needs_start_over(ROOT):
            _start_over([*given, "--installed"])
        return up.up(ROOT, wanted)
    _drop_root(given)
    return up.down(ROOT) if options.command == "down" else up.status(ROOT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./bartizan", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help="set up and run everything")
    starting.add_argument("--no-lab", action="store_true", help="the console alone, for real hosts")
    starting.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT")
    starting.add_argument("--detach", action="store_true", help="leave it running in the background")
    commands.add_parser("down", help="stop it and remove the lab")
    commands.add_parser("status", help="what runs")
    commands.add_parser("check", help="format, lint, types, import rules, migrations, templates")
    building = commands.add_parser("assets", help="build the front-end assets")
    building.add_argument("--accept", action="store_true", help="write the SHA-256 list anew from what npm installed")
    for command in (starting, building):  # said by root to its successor: npm has run
        command.add_argument("--installed", action="store_true", help=argparse.SUPPRESS)
    return parser


def _install_packages() -> None:
    """npm runs as the caller: the caller's own npm configuration (a proxy, a mirror) counts."""
    assets.install_packages(_setup_steps(), root=ROOT, venv=ROOT / ".venv")


def _setup_steps() -> Steps:
    """Steps of the caller, whose checkout it is; those of the installation are in its state folder."""
    return Steps(ROOT / "node_modules" / ".stamps")


def _build_assets() -> None:
    state = state_of(ROOT)
    state.create()
    assets.build(Steps(state.stamps), root=ROOT, target=state.assets, test_target=state.test_assets)


def _drop_root(arguments: Sequence[str]) -> None:
    """When we are root, start over as the service user, unless it cannot run the console from here (`up` says so)."""
    if not user.is_root():
        return
    state = state_of(ROOT)
    account = user.ensure_service_user()
    # The service user cannot write beside the sources: leave it compiled ones.
    for package in PACKAGES:
        compileall.compile_dir(ROOT / package, quiet=2)
    obstacle = user.obstacle(root=ROOT, python=Path(sys.executable))
    if obstacle is not None:
        if arguments[:1] == ["up"]:
            print(f"{'user':<16}root, because {obstacle}; only the lab runs as {account.name}")
        user.keep(state.folder)
        return
    user.give(state.folder, account)
    user.replace_process(user.as_service_user(_own_command(arguments), home=state.home))


def _start_over(arguments: Sequence[str]) -> NoReturn:
    """A process gets its FIPS provider when it begins, and this one began before there was one."""
    user.replace_process(_own_command(arguments))


def _own_command(arguments: Sequence[str]) -> list[str]:
    settings = [f"{name}={value}" for name, value in crypto.environment(ROOT).items()]
    return ["env", *settings, sys.executable, "-P", "-m", "console.launch", *arguments]


def _manage(arguments: Sequence[str]) -> int:
    """Replace this process by Django's command line."""
    settings = [f"{name}={value}" for name, value in up.manage_environment(ROOT).items()]
    # These two are in files by now; to be given both ways is refused.
    given = ["-u", "DATABASE_URL", "-u", "BARTIZAN_REDIS_URL"]
    user.replace_process(["env", *given, *settings, sys.executable, str(ROOT / "manage.py"), *arguments])


def _manage_offline(arguments: Sequence[str]) -> int:
    """Recovery and verification: as the caller, whose files it works on, and without anything of the installation."""
    user.replace_process([
        "env", "DJANGO_SETTINGS_MODULE=console.recovery_settings",
        sys.executable, str(ROOT / "manage.py"), *arguments,
    ])  # fmt: skip


def _test(arguments: list[str]) -> int:
    """Build what the tests need, check, and replace this process by pytest: its closing line is the last.

    With the FIPS provider, all of them run in mode `required`, and before them some on what computes without it in
    mode `auto`. Where it cannot be had, that is said, and all run in mode `auto`.

    Tests run as the caller; the product's parts that they start give up root by themselves.
    """
    quick = arguments[:1] == ["quick"]
    _install_packages()
    built = subprocess.run([sys.executable, "-P", "-m", "console.launch", "assets", "--installed"], check=False)
    if built.returncode != 0:
        return built.returncode
    if not quick and not checks.run_checks(ROOT):
        return 1
    state = state_of(ROOT)
    if not quick:
        receivers.prepare(_setup_steps(), state.test_receivers)
    selection = ["-m", QUICK] if quick else []
    given = arguments[1:] if quick else arguments
    pytest = [
        # Importing the console package has set Django's switch to the product's own settings.
        "env", "DJANGO_SETTINGS_MODULE=tests.settings",
        f"BARTIZAN_ASSETS_DIR={state.assets}", f"BARTIZAN_TEST_ASSETS={state.test_assets}",
        f"BARTIZAN_TEST_RECEIVERS={state.test_receivers}",
    ]  # fmt: skip
    run = [sys.executable, "-m", "pytest", *IN_PARALLEL]
    if crypto.prepare(_setup_steps(), ROOT):
        if not arguments:
            print("test            cryptography without the FIPS provider (BARTIZAN_FIPS=auto)", flush=True)
            without = ["-u", FOLDER_VARIABLE, "BARTIZAN_FIPS=auto"]
            done = subprocess.run(
                [pytest[0], *without, *pytest[1:], *run, "-q", "-m", QUICK, *CRYPTOGRAPHY], check=False
            )
            if done.returncode != 0:
                return done.returncode
        print("test            with the FIPS provider (BARTIZAN_FIPS=required)", flush=True)
        pytest += [f"BARTIZAN_FIPS={crypto.Mode.REQUIRED}"]
        pytest += [f"{name}={value}" for name, value in crypto.environment(ROOT).items()]
    else:
        print("test            WITHOUT the FIPS provider (BARTIZAN_FIPS=auto): see above", flush=True)
    user.replace_process([*pytest, *run, *selection, *given])
