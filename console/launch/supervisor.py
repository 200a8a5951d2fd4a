"""supervisord: its configuration, and the calls that start, ask and stop it.

Each program is started through `setpriv --pdeathsig TERM`, so that it ends when supervisord does, even by SIGKILL, and
supervisord itself (unless detached) in the same way when the launcher does: no way of ending leaves a process.
"""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from console.launch.processes import GROUPS, Program
from console.launch.state import State, write_private
from console.launch.steps import LaunchError

UNTIL_DEATH = ("setpriv", "--pdeathsig", "TERM", "--")
STOP_SECONDS = 90  # for everything together; the programs' own limits are far below
_SETTLED = {"RUNNING", "EXITED"}
_FAILED = {"FATAL", "UNKNOWN"}


@dataclass(frozen=True, slots=True)
class Status:
    """A program's state in supervisord's words, and its detail (pid and uptime, or the reason)."""

    name: str
    state: str
    detail: str


def config(programs: Sequence[Program], *, state: State, root: Path) -> str:
    """supervisord.conf for `programs`. It names the files of secrets and holds none."""
    sockets = state.socket_folder()
    sections = [
        _section(
            "unix_http_server",
            # No password: the folder is 0700, and whoever may open it could signal the processes anyway.
            {"file": str(sockets / "supervisor.sock"), "chmod": "0700"},
        ),
        _section(
            "supervisord",
            {
                "logfile": str(state.log / "supervisord.log"),
                "logfile_maxbytes": "5MB",
                "logfile_backups": "2",
                "pidfile": str(_pid_file(state)),
                "childlogdir": str(state.log),
                "directory": str(root),
                "nodaemon": "true",
                "silent": "true",
                "identifier": "bartizan",
            },
        ),
        _section(
            "rpcinterface:supervisor",
            {"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"},
        ),
        _section("supervisorctl", {"serverurl": f"unix://{sockets / 'supervisor.sock'}"}),
    ]
    for group, priority in GROUPS.items():
        members = [program for program in programs if program.group == group]
        if members:
            names = ",".join(program.name for program in members)
            sections.append(_section(f"group:{group}", {"programs": names, "priority": str(priority)}))
            sections.extend(_program(program, state=state, root=root) for program in members)
    return "\n".join(sections)


def _program(program: Program, *, state: State, root: Path) -> str:
    environment = ",".join(f'{name}="{_environment_value(value)}"' for name, value in program.environment.items())
    return _section(
        f"program:{program.name}",
        {
            "command": shlex.join([*UNTIL_DEATH, *program.command]),
            "directory": str(root),
            **({"environment": environment} if environment else {}),
            "umask": "077",
            "autostart": "true",
            "autorestart": "true",
            "startsecs": str(program.start_seconds),
            "startretries": "3",
            "stopsignal": "TERM",
            "stopwaitsecs": str(program.stop_seconds),
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": str(state.log / f"{program.name}.log"),
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": "3",
        },
    )


def _section(name: str, values: Mapping[str, str]) -> str:
    """One section. supervisord expands `%(name)s` in values, so a percent sign is doubled; ` ;` opens a comment."""
    for key, value in values.items():
        if "\n" in value or " ;" in value:
            raise ValueError(f"{name}: {key} cannot be written to supervisord's configuration")
    lines = [f"{key} = {value.replace('%', '%%')}" for key, value in values.items()]
    return f"[{name}]\n" + "\n".join(lines) + "\n"


def _environment_value(value: str) -> str:
    # supervisord takes quotes off both ends of a value, whatever stands between them.
    if '"' in value or "\\" in value or value != value.strip("'"):
        raise ValueError("a value with such quotes or backslashes cannot be written to supervisord's environment")
    return value


def config_file(state: State) -> Path:
    return state.run / "supervisord.conf"


def _pid_file(state: State) -> Path:
    return state.run / "supervisord.pid"


def start(
    programs: Sequence[Program], *, state: State, root: Path, environment: Mapping[str, str], detach: bool
) -> subprocess.Popen[bytes]:
    """Write the configuration and start supervisord in a session of its own (Ctrl-C reaches only the launcher)."""
    write_private(config_file(state), config(programs, state=state, root=root))
    command = [
        str(root / ".venv" / "bin" / "python"), "-m", "supervisor.supervisord", "-n", "-c", str(config_file(state)),
    ]  # fmt: skip
    return subprocess.Popen(
        command if detach else [*UNTIL_DEATH, *command],
        cwd=root,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(state.log / "supervisord.err").open("wb"),
        start_new_session=True,
    )


def running_pid(state: State) -> int | None:
    """The pid of this state folder's supervisord, None when it does not run.

    The pid file alone proves nothing after a crash: the process must have our configuration file on its command line.
    """
    try:
        pid = int(_pid_file(state).read_text())
        arguments = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if str(config_file(state)).encode() in arguments else None


def statuses(state: State, *, root: Path) -> list[Status]:
    """What supervisord says of each program; empty while it cannot be asked."""
    done = _control(state, root, "status")
    found = (re.fullmatch(r"(\S+)\s+([A-Z]+)\s*(.*)", line) for line in done.stdout.splitlines())
    return [Status(match[1], match[2], match[3]) for match in found if match is not None]


def wait_until_running(
    state: State, *, root: Path, expected: int, process: subprocess.Popen[bytes], seconds: float
) -> None:
    """Wait for `expected` programs to be up. Raises LaunchError, with the log's end, when one has given up."""
    deadline = time.monotonic() + seconds
    while True:
        if process.poll() is not None:
            raise LaunchError(
                "supervisord ended", details=tail(state.log / "supervisord.err") or tail(state.log / "supervisord.log")
            )
        found = statuses(state, root=root)
        for status in found:
            if status.state in _FAILED:
                raise LaunchError(
                    f"{status.name} does not start ({status.state.lower()}: {status.detail})",
                    details=_log_tail(state, status.name),
                )
        waiting = [status.name for status in found if status.state not in _SETTLED]
        if len(found) == expected and not waiting:
            return
        if time.monotonic() > deadline:
            raise LaunchError(
                f"not up after {seconds:.0f} s: {', '.join(waiting) or 'supervisord does not answer'}",
                hint=f"see the logs in {state.log}",
                details=_log_tail(state, waiting[0]) if waiting else "",
            )
        time.sleep(0.3)


def stop(pid: int) -> None:
    """End supervisord and wait until it is gone with everything it runs.

    Raises LaunchError when it takes longer than STOP_SECONDS; nothing is killed then, so that it can be looked at.
    """
    deadline = time.monotonic() + STOP_SECONDS
    try:
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            if not _alive(pid):
                return
            time.sleep(0.1)
    except ProcessLookupError:
        return
    raise LaunchError(f"process {pid} (supervisord) has not ended after {STOP_SECONDS} s")


def _alive(pid: int) -> bool:
    """False for a zombie too: it has ended, and its parent has not asked yet."""
    try:
        state_letter = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state_letter != "Z"


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _log_tail(state: State, name: str) -> str:
    """The end of the log of a program as supervisord names it: `group:name`, or `name` where the two are the same."""
    return tail(state.log / f"{name.rpartition(':')[2]}.log")


def _control(state: State, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(root / ".venv" / "bin" / "python"), "-m", "supervisor.supervisorctl",
            "-c", str(config_file(state)), *arguments,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True, cwd=root,
    )  # fmt: skip
