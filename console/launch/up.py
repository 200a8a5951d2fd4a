"""`./bartizan up` and `down`: prepare what the processes need, run them, and leave none behind."""

import fcntl
import http.client
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from console.env import SettingsError, env_int, env_str
from console.launch import assets, lab_processes, supervisor
from console.launch.address import (
    DEFAULT_LISTEN,
    REGISTRAR_PORT,
    Listen,
    ensure_certificate,
    is_free,
    now,
    parse_listen,
    require_free,
)
from console.launch.processes import (
    Installation,
    Program,
    base_environment,
    console_programs,
    django_environment,
    redis_config,
    sign_on_environment,
)
from console.launch.state import ADMINISTRATOR, State, state_of, write_private
from console.launch.steps import NAME_WIDTH, LaunchError, Steps, digest, run_command
from inventory.adapters.tls import client_context
from lab import layout

START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    listen: Listen
    lab: bool
    detach: bool


class _Ended(BaseException):
    """A signal asks us to end. Not an Exception, so nothing on the way takes it for a failure of its own."""


def up(root: Path, options: UpOptions) -> int:
    """Set up what is missing, start everything, print how to log in, and stay until a signal (unless detached).

    Raises LaunchError; whatever had been started by then has been ended.
    """
    state = state_of(root)
    if supervisor.running_pid(state) is not None:
        print(f"already running at {_record(state).get('url', 'an unknown address')}; ./bartizan down stops it")
        return 0
    drawn = state.create()
    try:
        _on_signals(_raise_ended)
        with _alone(state):
            steps = Steps(state.stamps)
            if drawn:
                steps.say("secrets", f"drawn: {', '.join(drawn)}")
            require_free(options.listen)
            registrar = _registrar(state, options)
            require_free(registrar)
            installation = _installation(root, state, options.listen, registrar)
            if options.listen.https:
                installation = _with_certificate(steps, installation)
            password = _prepare_console(steps, installation)
            if options.lab:
                lab_processes.prepare(steps, installation)
            programs = console_programs(installation)
            if options.lab:
                programs += lab_processes.programs(installation)
            return _run(steps, installation, programs, options, password=password)
    except _Ended:
        print("ended before everything was up", flush=True)
        return 130


def _registrar(state: State, options: UpOptions) -> Listen:
    """Where agents register: as BARTIZAN_REGISTRAR_LISTEN says, else at the console's address with Keylime's port.

    With a lab, whose agents are told, another port does where that one is taken; it stays the same from then on.
    """
    if given := env_str("BARTIZAN_REGISTRAR_LISTEN", ""):
        return parse_listen(given, given_as="BARTIZAN_REGISTRAR_LISTEN")
    usual = Listen(options.listen.host, REGISTRAR_PORT)
    if not options.lab:
        return usual
    if (before := _record(state).get("registrar")) and is_free(found := parse_listen(str(before))):
        return found
    return usual if is_free(usual) else Listen(options.listen.host, layout.free_ports(1)[0])


def _installation(root: Path, state: State, listen: Listen, registrar: Listen) -> Installation:
    return Installation(
        root, state, listen, registrar,
        database_url_file=state.keep_url("DATABASE_URL", state.database_url),
        redis_url_file=state.keep_url("BARTIZAN_REDIS_URL", state.redis_url),
        crypto_workers=_crypto_workers(),
        extra_hosts=env_str("BARTIZAN_ALLOWED_HOSTS", ""),
    )  # fmt: skip


def _with_certificate(steps: Steps, installation: Installation) -> Installation:
    listen = installation.listen
    certificate, key, fingerprint = ensure_certificate(installation.state.tls, listen.names, now=now())
    steps.say("https", f"{listen.bind} is not loopback: HTTPS with a self-signed certificate")
    steps.say("", f"its SHA-256 fingerprint: {fingerprint}")
    return replace(installation, certificate=certificate, certificate_key=key)


def manage_environment(root: Path) -> dict[str, str]:
    """The environment for `manage.py` by hand: that of a worker, with the listen address of the last `up`."""
    state = state_of(root)
    listen = parse_listen(str(_record(state).get("listen", DEFAULT_LISTEN)))
    registrar = parse_listen(str(_record(state).get("registrar", Listen(listen.host, REGISTRAR_PORT).bind)))
    state.create()
    return django_environment(_installation(root, state, listen, registrar), console_key=True)


def down(root: Path) -> int:
    """Stop what runs and remove the lab. The console's own database, secrets and logs stay."""
    state = state_of(root)
    pid = supervisor.running_pid(state)
    if pid is None:
        print("not running")
    else:
        began = time.monotonic()
        supervisor.stop(pid)
        print(f"stopped ({time.monotonic() - began:.1f} s)")
    if state.lab.exists():
        run_command(
            [str(root / ".venv" / "bin" / "python"), "-m", "lab", "destroy", "--state", str(state.lab)],
            cwd=root, what="removing the lab",
        )  # fmt: skip
        shutil.rmtree(state.lab, ignore_errors=True)  # `destroy` has removed it where it was empty
        print("lab removed")
    if state.folder.exists():
        print(f"kept: the console's database, secrets and logs in {state.folder}")
    return 0


def status(root: Path) -> int:
    """Print what supervisord says of each process. 0 when all are up, 3 when not running, 1 otherwise."""
    state = state_of(root)
    if supervisor.running_pid(state) is None:
        print("not running")
        return 3
    found = supervisor.statuses(state, root=root)
    for each in found:
        print(f"{each.name:<28}{each.state:<10}{each.detail}")
    print(f"address: {_record(state).get('url')}")
    print(f"agents register at: {_record(state).get('registrar')}")
    return 0 if found and all(each.state == "RUNNING" for each in found) else 1


def _prepare_console(steps: Steps, installation: Installation) -> str:
    """Assets, database, static files, administrator. Returns the line about the password for the closing words."""
    root, state = installation.root, installation.state
    # What the web process will be told, so that what is wrong with it is said here.
    environment = {**base_environment(installation), **django_environment(installation), **sign_on_environment()}

    def manage(*arguments: str) -> str:
        return run_command(
            [str(installation.python), "manage.py", *arguments],
            cwd=root, environment=environment, what=f"manage.py {arguments[0]}",
        )  # fmt: skip

    assets.build(steps, root=root, target=state.assets, test_target=state.test_assets)
    requirements = root / "requirements.txt"
    static_files = [file for folder in (root / "static", state.assets) for file in folder.rglob("*") if file.is_file()]
    steps.run(
        "static files",
        "collecting, hashing and compressing",
        lambda: manage("collectstatic", "--no-input", "--clear").strip().splitlines()[-1],
        key=digest([*static_files, requirements]),
        result=state.static / "staticfiles.json",
    )
    # With a database server elsewhere nothing here says whether it has been migrated: ask it every time.
    local = installation.database_url_file is None
    migrations = [file for file in root.glob("*/migrations/*.py") if file.is_file()]
    steps.run(
        "database",
        "migrating",
        lambda: f"{manage('migrate', '--no-input').count(' OK')} migrations applied",
        key=digest([*migrations, requirements]) if local else None,
        result=state.database / "bartizan.sqlite3",
    )
    found = manage(
        "create_administrator", "--username", ADMINISTRATOR, "--password-file", str(state.administrator_password)
    ).strip()  # fmt: skip
    if found == "changed":
        return "as changed by its owner"
    password = state.administrator_password.read_text(encoding="utf-8").strip()
    return f"{password}   (also in {state.administrator_password})"


def _run(
    steps: Steps, installation: Installation, programs: list[Program], options: UpOptions, *, password: str
) -> int:
    state, root = installation.state, installation.root
    if installation.redis_url_file is None:
        write_private(state.run / "redis.conf", redis_config(installation))
    write_private(
        state.run / "console.json", json.dumps({
            "listen": options.listen.bind, "url": options.listen.url, "registrar": installation.registrar.bind,
        }) + "\n",
    )  # fmt: skip
    began = time.monotonic()
    steps.say("processes", f"starting {len(programs)}")
    process = supervisor.start(
        programs, state=state, root=root, environment=base_environment(installation), detach=options.detach
    )
    keep = False
    try:
        _wait_for_login(installation, process)
        supervisor.wait_until_running(
            state, root=root, expected=len(programs), process=process, seconds=START_SECONDS
        )  # fmt: skip
        steps.say("", f"up ({time.monotonic() - began:.1f} s)")
        if options.lab:
            _enter_lab(steps, installation)
        _print_login(options, password=password)
        if options.detach:
            keep = True
            return 0
        try:
            while process.poll() is None:
                time.sleep(0.5)  # not wait(): it would sleep through a signal that came just before
        except _Ended:
            return 0
        return 0 if process.returncode == 0 else 1
    finally:
        if not keep:
            _end(state, process, lab=options.lab)


def _end(state: State, process: subprocess.Popen[bytes], *, lab: bool) -> None:
    """End supervisord with all its processes, and what a killed supervisord would have left of the lab."""
    _on_signals(signal.SIG_IGN)  # once is enough; a second must not interrupt the cleaning up
    if process.poll() is None:
        print("stopping", flush=True)
        supervisor.stop(process.pid)
        process.wait()
    if lab:
        lab_processes.end_leftovers(state)
    print("stopped", flush=True)


def _wait_for_login(installation: Installation, process: subprocess.Popen[bytes]) -> None:
    """Wait for the login page. Raises LaunchError, with the web server's log, when it does not come."""
    deadline = time.monotonic() + START_SECONDS
    log = installation.state.log / "web.log"
    said = "no answer"
    while process.poll() is None and time.monotonic() < deadline:
        try:
            answer = _ask_login(installation)
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)
            continue
        if answer == 200:
            return
        said = f"HTTP {answer}"
        if answer != 503:
            break
    raise LaunchError(f"the login page does not come: {said}", details=supervisor.tail(log))


def _ask_login(installation: Installation) -> int:
    """GET /login/ and the status it gives."""
    listen = installation.listen
    connection: http.client.HTTPConnection
    if installation.certificate is not None:
        trust = client_context()
        trust.load_verify_locations(str(installation.certificate))
        connection = http.client.HTTPSConnection(listen.local_host, listen.port, timeout=10, context=trust)
    else:
        connection = http.client.HTTPConnection(listen.local_host, listen.port, timeout=10)
    try:
        connection.request("GET", "/login/")
        return connection.getresponse().status
    finally:
        connection.close()


def _enter_lab(steps: Steps, installation: Installation) -> None:
    """Add the lab to the inventory, once. The console is of use without it, so a failure is said and nothing more."""
    state = installation.state
    environment = {**base_environment(installation), **django_environment(installation, console_key=True)}

    def register() -> str:
        said = run_command(
            [str(installation.python), "manage.py", "lab_register"],
            cwd=installation.root, environment=environment, what="manage.py lab_register",
        )  # fmt: skip
        return said.strip().replace("\n", f"\n{'':<{NAME_WIDTH}}")

    try:
        steps.run(
            "lab inventory",
            "adding the hosts and the key server",
            register,
            key=lab_processes.identity(state) if installation.database_url_file is None else None,
            result=state.database / "bartizan.sqlite3",
        )
    except LaunchError as exc:
        print(exc.details, file=sys.stderr)
        steps.say("", f"{exc}; try again with ./bartizan manage lab_register")


def _print_login(options: UpOptions, *, password: str) -> None:
    print(f"\nBartizan   {options.listen.url}")
    print(f"name       {ADMINISTRATOR}")
    print(f"password   {password}")
    print(
        "\nruns in the background; ./bartizan down stops it" if options.detach else "\nCtrl-C stops everything",
        flush=True,
    )


def _crypto_workers() -> int:
    try:
        return env_int("BARTIZAN_CRYPTO_WORKERS", 1, minimum=1, maximum=64)
    except SettingsError as exc:
        raise LaunchError(str(exc)) from exc


def _record(state: State) -> dict[str, object]:
    """What the last `up` wrote about itself; empty when there was none."""
    try:
        found = json.loads((state.run / "console.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _alone(state: State) -> Iterator[None]:
    """Keep a second `up` of the same state folder out while this one prepares or runs."""
    with (state.folder / "launcher.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            url = _record(state).get("url", "")
            raise LaunchError(
                f"another ./bartizan up is at work here {f'({url})' if url else ''}".rstrip(),
                hint="./bartizan status shows it, ./bartizan down stops it",
            ) from exc
        yield


def _on_signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup it stays ignored
            signal.signal(number, handler)


def _raise_ended(_number: int, _frame: FrameType | None) -> NoReturn:
    _on_signals(signal.SIG_IGN)
    raise _Ended
