"""docs/production.md: its units as systemd reads them, for the same processes as the launcher's own."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from console.launch.processes import QUEUES, Installation, console_programs
from inventory.engine.crypto_policy import TLS_1_2_CIPHERS
from tests.launch.conftest import ROOT

TEXT: Final = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
INTERPRETER: Final = "/opt/bartizan/.venv/bin/python"


def web_unit() -> str:
    found = re.search(r"bartizan-web\.service`:\n\n```\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found.group(1)


def units() -> dict[str, str]:
    """Each unit's text by its name: the web unit, and what the table makes of it."""
    web = web_unit()
    command = next(line for line in web.splitlines() if line.startswith("ExecStart="))
    assert command.startswith(f"ExecStart={INTERPRETER} ")
    made = {"web": web}
    for name, arguments in re.findall(r"^\| ([a-z-]+(?:QUEUE)?)\b[^|]* \| `([^`]+)` \|", TEXT, re.MULTILINE):
        for queue, jobs in QUEUES.items() if "QUEUE" in name else [("", 0)]:
            told = arguments.replace("QUEUE", queue).replace(" N ", f" {jobs} ")
            made[name.replace("QUEUE", queue)] = web.replace(command, f"ExecStart={INTERPRETER} {told}")
    return made


def test_every_process_of_the_launcher_has_a_unit_with_the_same_program(installation: Installation) -> None:
    """But for Redis. Options that matter on one machine only, and the place of the schedule, may differ."""
    written = {name: text.partition("ExecStart=")[2].partition("\n")[0].split()[1:] for name, text in units().items()}
    launched = {program.name: program.command[1:] for program in console_programs(installation)}
    assert written.keys() == launched.keys() - {"redis"}
    for name, told in written.items():
        named = [word.replace("%%", "%") for word in told if not word.startswith("/")]
        assert named[:5] == list(launched[name])[:5] and set(named) <= {*launched[name], "127.0.0.1:8440"}, name


def test_systemd_takes_every_unit(tmp_path: Path) -> None:
    for name, text in units().items():
        (tmp_path / f"bartizan-{name}.service").write_text(text.replace(INTERPRETER, sys.executable))
    assert verified(*sorted(tmp_path.iterdir())) == ""


def test_systemd_takes_the_units_of_one_machine_and_of_the_agent(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    found = re.search(r"bartizan\.service`:\n\n```\n(.*?)```", text, re.DOTALL)
    assert found
    one = tmp_path / "bartizan.service"
    one.write_text(found.group(1).replace("/opt/bartizan/bartizan", str(ROOT / "bartizan")))
    agent = tmp_path / "bartizan-agent.service"
    agent.write_text((ROOT / "attestation" / "agent" / "bartizan-agent.service").read_text(encoding="utf-8"))
    assert verified(one, agent) == ""


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("NoNewPrivilege=yes", "Unknown key"), ("ExecStart=/nowhere/python", "not executable")],
)
def test_what_it_does_not_take_is_found(tmp_path: Path, line: str, complaint: str) -> None:
    unit = tmp_path / "bartizan-web.service"
    unit.write_text(re.sub(rf"^{line.partition('=')[0][:9]}.*$", line, web_unit(), count=1, flags=re.MULTILINE))
    assert complaint in verified(unit)


def verified(*files: Path) -> str:
    """What systemd says about them; nothing is started."""
    done = subprocess.run(["systemd-analyze", "verify", *map(str, files)], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_the_proxy_says_what_the_console_has_to_know_by_approved_suites() -> None:
    """nginx itself read this example by hand; the suite has no nginx."""
    found = re.search(r"nginx, with two web machines:\n\n```\n(.*?)```", TEXT, re.DOTALL)
    assert found and found.group(1).count("{") == found.group(1).count("}")
    assert f"ssl_ciphers {TLS_1_2_CIPHERS};" in found.group(1) and f"--ciphers {TLS_1_2_CIPHERS}" in TEXT
    wanted = {"Host $host", "X-Forwarded-Proto https", "X-Forwarded-For $remote_addr"}
    assert {told.strip() for told in re.findall(r"proxy_set_header ([^;]+);", found.group(1))} == wanted
