"""Real log collectors as processes: rsyslog and syslog-ng, unpacked by the launcher beside each other.

Debian's packages of the two exclude each other, and a test is to change nobody's log daemon: `./bartizan test` unpacks
both below the state folder (console/launch/receivers.py) and says where in BARTIZAN_TEST_RECEIVERS.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from console.launch import receivers
from lab.pki import Authority, Issued
from tests.console.appliance.collector import until


@dataclass(slots=True)
class Receiver:
    """One process with one input. `written`: what it has written down, a line for each message as it came."""

    protocol: str
    port: int
    command: tuple[str, ...]
    environment: dict[str, str]
    output: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    earlier: list[bytes] = field(default_factory=list)

    @property
    def written(self) -> list[bytes]:
        """Whole lines only: one that is killed may leave half of one."""
        now = self.output.read_bytes().split(b"\n")[:-1] if self.output.exists() else []
        return [*self.earlier, *now]

    def start(self) -> None:
        """Until it listens."""
        self.earlier = self.written
        self.output.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **self.environment},
            )  # fmt: skip
        until(self._listens)

    def kill(self) -> None:
        """As a crash is: nothing is written down any more, and what it has not read is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=20)
            self.process = None

    def _listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        if self.protocol == "udp":
            return f":{self.port:04X} " in Path("/proc/net/udp").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


def folder() -> Path:
    """Where the launcher has unpacked them."""
    given = os.environ.get("BARTIZAN_TEST_RECEIVERS", "")  # noqa: TID251  a switch of the tests
    found = Path(given)
    if not given or not receivers.are_in(found):
        pytest.fail(
            "rsyslog, syslog-ng and slapd are not unpacked: run the tests by ./bartizan test, or see its step receivers"
        )
    return found


def free_port(protocol: str) -> int:
    """Free a moment ago; a receiver that finds it taken ends, and the test says so."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def rsyslog(state: Path, protocol: str, identity: Issued, authority: Authority, port: int = 0) -> Receiver:
    """`protocol` tls: it shows `identity`, and asks for no certificate."""
    root, port = folder(), port or free_port(protocol)
    _credentials(state, identity, authority)
    driver = 'StreamDriver.Name="ossl" StreamDriver.Mode="1" StreamDriver.AuthMode="anon"' if protocol == "tls" else ""
    module = "imudp" if protocol == "udp" else "imtcp"
    config = state / "rsyslog.conf"
    config.write_text(
        f'global(workDirectory="{state}" maxMessageSize="8k" parser.escapeControlCharactersOnReceive="off"\n'
        f'  defaultNetstreamDriverCAFile="{state}/ca.pem" defaultNetstreamDriverCertFile="{state}/cert.pem"\n'
        f'  defaultNetstreamDriverKeyFile="{state}/key.pem")\n'
        f'module(load="{module}" {driver})\n'
        'template(name="raw" type="string" string="%rawmsg%\\n")\n'
        f'ruleset(name="all") {{ action(type="omfile" file="{state}/received" template="raw") }}\n'
        f'input(type="{module}" address="127.0.0.1" port="{port}" ruleset="all")\n'
    )
    modules = next(iter((root / "usr/lib").glob("*/rsyslog")))
    command = (
        str(root / "usr/sbin/rsyslogd"), "-n", "-f", str(config), "-i", str(state / "pid"), "-M", str(modules),
    )  # fmt: skip
    return Receiver(protocol, port, command, {}, state / "received", state / "log")


def syslog_ng(state: Path, protocol: str, identity: Issued, authority: Authority, port: int = 0) -> Receiver:
    root, port = folder(), port or free_port(protocol)
    _credentials(state, identity, authority)
    tls = (
        f'tls(key-file("{state}/key.pem") cert-file("{state}/cert.pem") peer-verify(optional-untrusted))'
        if protocol == "tls" else ""
    )  # fmt: skip
    config = state / "syslog-ng.conf"
    config.write_text(
        "@version: 3.38\noptions { use-dns(no); dns-cache(no); stats-freq(0); };\n"
        f'source s {{ syslog(ip("127.0.0.1") port({port}) transport("{protocol}") flags(no-parse) {tls}); }};\n'
        f'destination d {{ file("{state}/received" template("$MSG\\n")); }};\n'
        "log { source(s); destination(d); flags(flow-control); };\n"
    )
    modules = next(iter((root / "usr/lib/syslog-ng").glob("[0-9]*")))
    command = (
        str(root / "usr/sbin/syslog-ng"), "-F", "-f", str(config), "--module-path", str(modules), "--no-caps",
        "-p", str(state / "pid"), "-c", str(state / "control"), "-R", str(state / "persist"),
    )  # fmt: skip
    libraries = {"LD_LIBRARY_PATH": str(modules.parent)}
    return Receiver(protocol, port, command, libraries, state / "received", state / "log")


def _credentials(state: Path, identity: Issued, authority: Authority) -> None:
    state.mkdir(exist_ok=True)
    for name, content in _files(identity, authority):
        (state / name).write_bytes(content)


def _files(identity: Issued, authority: Authority) -> Sequence[tuple[str, bytes]]:
    return (
        ("ca.pem", authority.certificate_pem), ("cert.pem", identity.certificate_pem), ("key.pem", identity.key_pem),
    )  # fmt: skip
