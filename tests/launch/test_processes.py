"""What each process is started with: the web server must not know the console key, nobody sees a secret in argv."""

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from supervisor.options import ServerOptions

from console.launch import main, processes, supervisor, up, user
from console.launch.address import Listen
from console.launch.processes import GROUPS, Installation, Program, console_programs
from console.launch.state import State
from console.launch.steps import LaunchError
from tests.launch.conftest import ROOT


def by_name(installation: Installation) -> dict[str, Program]:
    return {program.name: program for program in console_programs(installation)}


def read_back(text: str, path: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Command line and environment of every program, as supervisord itself reads the configuration."""
    path.write_text(text)
    options = ServerOptions()
    options.realize(args=["-c", str(path)])
    return {
        config.name: (shlex.split(config.command), dict(config.environment or {}))
        for group in options.process_group_configs
        for config in group.process_configs
    }


def test_every_queue_has_a_worker_and_nothing_is_missing(installation: Installation) -> None:
    assert by_name(installation).keys() == {
        *("redis", "web", "beat", "watch-hosts", "registrar", "forward-events"),
        *(f"worker-{queue}" for queue in ("control", "attestation", "crypto")),
    }


def test_only_workers_and_the_forwarder_get_the_console_key(installation: Installation) -> None:
    holders = {
        name for name, program in by_name(installation).items() if "BARTIZAN_CONSOLE_KEY_FILE" in program.environment
    }
    assert holders == {"worker-control", "worker-attestation", "worker-crypto", "forward-events"}


def test_only_the_web_process_learns_of_provider_and_directory(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of their secrets by their files alone."""
    names = {"BARTIZAN_OIDC_ISSUER", "BARTIZAN_OIDC_CLIENT_SECRET_FILE", "BARTIZAN_LDAP_BIND_PASSWORD_FILE"}
    for name in (*names, "BARTIZAN_OIDC_CLIENT_SECRET", "BARTIZAN_LDAP_BIND_PASSWORD"):
        monkeypatch.setenv(name, "x")
    told = {
        program.name: {name for name in program.environment if name.startswith(("BARTIZAN_OIDC_", "BARTIZAN_LDAP_"))}
        for program in console_programs(installation)
    }
    assert told.pop("web") == names
    assert not any(told.values())


def test_redis_gets_no_setting_at_all(installation: Installation) -> None:
    assert by_name(installation)["redis"].environment == {}


def test_redis_elsewhere_is_used_and_none_started(installation: Installation, state: State) -> None:
    elsewhere = by_name(replace(installation, redis_url_file=state.redis_url))
    assert by_name(installation).keys() - elsewhere.keys() == {"redis"}
    assert elsewhere["web"].environment["BARTIZAN_REDIS_URL_FILE"] == str(state.redis_url)
    told = {name for program in elsewhere.values() for name in program.environment}
    assert not told & {"BARTIZAN_REDIS_SOCKET", "BARTIZAN_REDIS_PASSWORD_FILE"}


def test_more_workers_for_long_jobs(installation: Installation) -> None:
    three = by_name(replace(installation, crypto_workers=3))
    assert three.keys() - by_name(installation).keys() == {"worker-crypto-2", "worker-crypto-3"}
    for name in ("crypto", "crypto-2", "crypto-3"):
        command = three[f"worker-{name}"].command
        assert command[command.index("-Q") + 1] == "crypto" and command[command.index("-n") + 1] == f"{name}@%h"


@pytest.mark.parametrize("value", ["0", "65", "two"])
def test_a_wrong_number_of_workers_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BARTIZAN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("BARTIZAN_CRYPTO_WORKERS", value)
    with pytest.raises(LaunchError, match="BARTIZAN_CRYPTO_WORKERS must be"):
        up.manage_environment(ROOT)


def test_no_secret_in_the_configuration(installation: Installation) -> None:
    state = installation.state
    installation = replace(installation, database_url_file=state.database_url)
    state.database_url.write_text("postgres://console:planted-password@db.example/bartizan")
    text = supervisor.config(console_programs(installation), state=state, root=ROOT)
    planted = [path.read_text().strip() for path in state.secrets.iterdir()]
    assert len(planted) == 5
    assert not [secret for secret in planted if secret in text]
    assert str(state.database_url) in text


def test_supervisord_reads_what_was_meant(installation: Installation, tmp_path: Path) -> None:
    odd = Program("console", "odd", ("/bin/echo", "50%", "two words", "%(here)s", "it's"), {"NAME": "a%b, c='d' e"})
    programs = [*console_programs(installation), odd]
    found = read_back(supervisor.config(programs, state=installation.state, root=ROOT), tmp_path / "c.conf")
    assert found == {
        program.name: ([*supervisor.UNTIL_DEATH, *program.command], dict(program.environment)) for program in programs
    }


@pytest.mark.parametrize("value", ['quote"', "'quoted'", "back\\slash", "two\nlines"])
def test_what_supervisord_could_misread_is_refused(installation: Installation, value: str) -> None:
    program = Program("console", "odd", ("/bin/true",), {"NAME": value})
    with pytest.raises(ValueError, match="cannot be written"):
        supervisor.config([program], state=installation.state, root=ROOT)


def test_guests_end_before_hosts_and_the_broker_last() -> None:
    assert sorted(GROUPS, key=lambda group: -GROUPS[group]) == ["guests", "console", "lab", "broker"]


def test_redis_is_private(installation: Installation) -> None:
    lines = processes.redis_config(installation).splitlines()
    password = installation.state.redis_password.read_text().strip()
    assert {"port 0", "unixsocketperm 700", f'requirepass "{password}"', "appendonly yes"} <= set(lines)


def test_off_loopback_the_web_server_speaks_tls(installation: Installation, tmp_path: Path) -> None:
    outside = replace(installation, listen=Listen("192.0.2.7", 8440))
    with pytest.raises(ValueError, match="needs a certificate"):
        console_programs(outside)
    outside = replace(outside, certificate=tmp_path / "c", certificate_key=tmp_path / "k")
    web = by_name(outside)["web"]
    assert ("--certfile", str(tmp_path / "c")) == web.command[web.command.index("--certfile") :][:2]
    assert web.environment["BARTIZAN_HTTPS"] == "1"
    assert "192.0.2.7" in web.environment["BARTIZAN_ALLOWED_HOSTS"].split(",")


def test_on_loopback_it_speaks_http_on_loopback_only(installation: Installation) -> None:
    web = by_name(installation)["web"]
    assert "--certfile" not in web.command
    assert web.command[web.command.index("--bind") + 1] == "127.0.0.1:8440"
    assert web.environment["BARTIZAN_HTTPS"] == "0"


def test_redis_under_its_other_name(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "redis-check-rdb").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(programs))
    command = by_name(installation)["redis"].command
    assert Path(command[0]).name == "redis-server"
    assert Path(command[0]).resolve() == programs / "redis-check-rdb"


def test_manage_gets_a_url_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its caller gives as a value is in a file by then, and the settings refuse both."""
    monkeypatch.setenv("BARTIZAN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example/bartizan")
    monkeypatch.setenv("BARTIZAN_REDIS_URL", "rediss://redis.example/0")
    monkeypatch.setattr(user, "is_root", lambda: False)
    started: list[str] = []
    monkeypatch.setattr(user, "replace_process", started.extend)
    main.main(["manage", "check"])
    environment = started[: started.index(sys.executable)]
    told = subprocess.run([*environment, "env"], check=True, capture_output=True, text=True).stdout.splitlines()
    names = {line.partition("=")[0] for line in told}
    assert names & {"DATABASE_URL", "DATABASE_URL_FILE"} == {"DATABASE_URL_FILE"}
    assert names & {"BARTIZAN_REDIS_URL", "BARTIZAN_REDIS_URL_FILE"} == {"BARTIZAN_REDIS_URL_FILE"}
    assert started[-1] == "check"
