"""The processes of an installation: their command lines, and the environment of each, which is all it gets to know."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from console.env import env_str
from console.launch import crypto
from console.launch.address import Listen
from console.launch.state import State
from console.launch.steps import LaunchError
from console.sign_on import configuration
from inventory.engine.crypto_policy import TLS_1_2_CIPHERS

HEARTBEAT_FOLDER = "/dev/shm"  # noqa: S108  gunicorn makes its files there by mkstemp; no disk to wait for
# Settings without secrets that the caller's environment may choose; see docs/install.md.
TUNING = (
    "BARTIZAN_EXCHANGE_DIR",
    "BARTIZAN_FIPS",
    "BARTIZAN_FIPS_VALIDATED",
    "BARTIZAN_HOST_WRITE_BACK",
    "BARTIZAN_HTTPS",
    "BARTIZAN_JOB_TIME_LIMIT",
    "BARTIZAN_KMIP_TIMEOUT",
    "BARTIZAN_COMPLIANCE_CHECK_SECONDS",
    "BARTIZAN_KMS_CHECK_SECONDS",
    "BARTIZAN_LIBVIRT_TEST_DRIVER",
    "BARTIZAN_LOG_LEVEL",
    "BARTIZAN_SECOND_FACTOR",
    "BARTIZAN_TRUSTED_ORIGINS",
)
QUEUES = {"control": 2, "attestation": 2, "crypto": 1}  # queue -> tasks at a time


@dataclass(frozen=True, slots=True)
class Program:
    """One supervised process. Groups start in the order of their priority and stop in the reverse one."""

    group: str
    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: int = 10  # then the whole process group is killed
    start_seconds: int = 1  # up for so long counts as started


GROUPS = {"broker": 10, "lab": 20, "console": 30, "guests": 40}


@dataclass(frozen=True, slots=True)
class Installation:
    """What the processes are made from: the checkout, its venv, the state folder, and where the console listens."""

    root: Path
    state: State
    listen: Listen
    registrar: Listen
    database_url_file: Path | None = None
    redis_url_file: Path | None = None  # without one: a private server on a socket
    crypto_workers: int = 1
    extra_hosts: str = ""
    certificate: Path | None = None
    certificate_key: Path | None = None

    @property
    def bin(self) -> Path:
        return self.root / ".venv" / "bin"

    @property
    def python(self) -> Path:
        return self.bin / "python"

    @property
    def redis_socket(self) -> Path:
        return self.state.socket_folder() / "redis.sock"


def base_environment(installation: Installation) -> dict[str, str]:
    """What every process gets, the supervisor too: no secret, nothing of the caller's own environment."""
    return {
        "PATH": f"{installation.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(installation.state.home),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(installation.root),
    }


def django_environment(installation: Installation, *, console_key: bool = False) -> dict[str, str]:
    """The settings' variables (console/settings.py). Secrets are named by their files.

    `console_key`: only what works with KMS credentials gets it, that is the workers and commands on their side.
    """
    state = installation.state
    hosts = installation.listen.allowed_hosts
    environment = {
        "DJANGO_SETTINGS_MODULE": "console.settings",
        "BARTIZAN_STATE_DIR": str(state.folder),
        "BARTIZAN_SECRET_KEY_FILE": str(state.secret_key),
        "BARTIZAN_ALLOWED_HOSTS": f"{hosts},{installation.extra_hosts}" if installation.extra_hosts else hosts,
        "BARTIZAN_HTTPS": "1" if installation.listen.https else "0",
        "BARTIZAN_REGISTRAR_LISTEN": installation.registrar.bind,
        "BARTIZAN_ASSETS_DIR": str(state.assets),
        "BARTIZAN_STATIC_ROOT": str(state.static),
    }
    environment |= {name: value for name in TUNING if (value := env_str(name, ""))}
    environment |= crypto.environment(installation.root)
    if installation.database_url_file is not None:
        environment["DATABASE_URL_FILE"] = str(installation.database_url_file)
    if installation.redis_url_file is not None:
        environment["BARTIZAN_REDIS_URL_FILE"] = str(installation.redis_url_file)
    else:
        environment["BARTIZAN_REDIS_SOCKET"] = str(installation.redis_socket)
        environment["BARTIZAN_REDIS_PASSWORD_FILE"] = str(state.redis_password)
    if console_key:
        environment["BARTIZAN_CONSOLE_KEY_FILE"] = str(state.console_key)
    return environment


def console_programs(installation: Installation) -> list[Program]:
    """The console without a lab: Redis unless it is elsewhere, web, the queues' workers, beat, the libvirt event
    listener, the registrar, the forwarder of events."""
    python, django = str(installation.python), django_environment(installation)
    # Django's checks are for who changes the code: they would load every page into processes that show none.
    celery = (python, "-m", "celery", "-A", "console", "--skip-checks")
    schedule = installation.state.run / "celerybeat-schedule"
    return [
        *_broker(installation),
        Program("console", "web", _gunicorn(installation), {**django, **sign_on_environment()}),
        *(
            Program(
                "console",
                f"worker-{name}",
                (
                    *celery, "worker", "-Q", queue, "-P", "prefork", "-c", str(tasks), "-n", f"{name}@%h",
                    "-l", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat",
                ),
                django_environment(installation, console_key=True),
                # A job that runs longer is killed and resumes from its checkpoint at the next start.
                stop_seconds=15,
            )
            for name, queue, tasks in _workers(installation)
        ),
        Program("console", "beat", (*celery, "beat", "-l", "INFO", "--pidfile=", "-s", str(schedule)), django),
        Program("console", "watch-hosts", (python, "manage.py", "watch_hosts"), django),
        Program("console", "registrar", (python, "manage.py", "registrar"), django),
        Program(
            "console", "forward-events", (python, "manage.py", "forward_events"),
            django_environment(installation, console_key=True),  # it opens client keys
        ),
    ]  # fmt: skip


def sign_on_environment() -> dict[str, str]:
    """Of the caller's environment, for the one process in which people log in."""
    return {name: value for name in configuration.VARIABLES if (value := env_str(name, ""))}


def _broker(installation: Installation) -> Iterator[Program]:
    if installation.redis_url_file is None:
        folder = installation.state.run
        yield Program("broker", "redis", (redis_server(folder), str(folder / "redis.conf")))


def _workers(installation: Installation) -> Iterator[tuple[str, str, int]]:
    """Name, queue and tasks at a time of each worker."""
    for queue, tasks in QUEUES.items():
        yield queue, queue, tasks
    for number in range(2, installation.crypto_workers + 1):
        yield f"crypto-{number}", "crypto", QUEUES["crypto"]


def redis_config(installation: Installation) -> str:
    """A private Redis: no TCP port, a socket in a 0700 folder, a password, and an append-only file.

    Queued jobs survive an end of the processes, and a crash of the machine but for the last second (`everysec`).
    """
    password = installation.state.redis_password.read_text(encoding="utf-8").strip()
    return "\n".join((
        "port 0",
        f'unixsocket "{installation.redis_socket}"',
        "unixsocketperm 700",
        f'requirepass "{password}"',
        f'dir "{installation.state.redis}"',
        'save ""',
        "appendonly yes",
        "appendfsync everysec",
        "maxmemory-policy noeviction",
        "daemonize no",
        'logfile ""',
        "",
    ))  # fmt: skip


def _gunicorn(installation: Installation) -> tuple[str, ...]:
    tls: tuple[str, ...] = ()
    if installation.listen.https:
        if installation.certificate is None or installation.certificate_key is None:
            raise ValueError("an HTTPS installation needs a certificate and its key")
        tls = (
            "--certfile", str(installation.certificate), "--keyfile", str(installation.certificate_key),
            "--ciphers", TLS_1_2_CIPHERS,
        )  # fmt: skip
    return (
        str(installation.python), "-m", "gunicorn", "console.wsgi", "--bind", installation.listen.bind, *tls,
        "--preload", "--worker-class", "gthread", "--workers", "2", "--threads", "8", "--timeout", "60",
        "--graceful-timeout", "5",
        "--worker-tmp-dir", HEARTBEAT_FOLDER, "--no-control-socket", "--access-logfile", "-", "--error-logfile", "-",
    )  # fmt: skip


def redis_server(folder: Path) -> str:
    """The server's program. Debian's redis-tools holds it under another name, without a service that starts itself: a
    link in `folder` then gives it its own."""
    if found := shutil.which("redis-server"):
        return found
    program = shutil.which("redis-check-rdb")
    if program is None:
        raise LaunchError("there is no redis-server", hint="install the Debian package redis-tools")
    link = folder / "redis-server"
    link.unlink(missing_ok=True)
    link.symlink_to(program)
    return str(link)
