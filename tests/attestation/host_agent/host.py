"""A host for the agent: a real TPM (swtpm) with a certified EK, into which a recorded boot was measured."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from django.db import connections

from attestation.adapters.agent_client import AgentAddress, ClientCredentials
from attestation.agent import bartizan_agent
from attestation.models import PendingRegistration, TpmIdentity
from attestation.registrar import protocol
from attestation.registrar.protocol import Answer, Request
from attestation.registrar.server import Registrar
from attestation.services.questions import address_of
from lab.boots import Situation, measured_log
from lab.machine import measure, measure_aggregate
from lab.pki import Authority
from lab.tpm import PoweredTpm, TpmAuthority
from lab.user import LabUser

AGENT_ID = "0da3ac29-1746-4b02-8569-48c3f85129c2"
SECONDS = 30.0


@dataclass
class RunningAgent:
    """The agent as a host runs it: a process of its own, with the file alone."""

    process: subprocess.Popen[str]
    port: int
    lines: list[str] = field(default_factory=list)

    def said(self, text: str) -> bool:
        """Whether its log holds this by now, or within a while."""
        deadline = time.monotonic() + SECONDS
        while not any(text in line for line in self.lines):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


@dataclass(frozen=True)
class TestHost:
    """Folders, the maker's CA, and the console's CA toward agents."""

    __test__ = False
    folder: Path
    authority: TpmAuthority
    console: Authority

    @property
    def credentials(self) -> ClientCredentials:
        issued = self.console.issue("verifier", client=True)
        return ClientCredentials(issued.certificate_pem, issued.key_pem)

    @contextmanager
    def booted(self, situation: Situation = Situation.NORMAL, *, tpm: str = "tpm") -> Iterator[None]:
        """The TPM `tpm` of this host, made at its first boot."""
        state = self.folder / tpm
        self.authority.manufacture(state, tpm)
        with PoweredTpm(state, self.folder / "tpm.sock", LabUser.current()) as opened:
            measure(opened, measured_log(situation))
            (self.folder / "ima").write_text(measure_aggregate(opened))
            opened.close()
            (self.folder / "log").write_bytes(measured_log(situation))
            yield

    @contextmanager
    def agent(self, registrar: str, *, agent_id: str = AGENT_ID) -> Iterator[RunningAgent]:
        ca = self.folder / "ca.pem"
        ca.write_bytes(self.console.certificate_pem)
        with running_agent(
            self.folder, registrar, ca=ca, agent_id=agent_id, tpm=self.folder / "tpm.sock",
            event_log=self.folder / "log", ima_log=self.folder / "ima",
        ) as running:  # fmt: skip
            yield running


@contextmanager
def running_agent(
    folder: Path, registrar: str, *, ca: Path, agent_id: str, tpm: Path, event_log: Path, ima_log: Path
) -> Iterator[RunningAgent]:
    """The agent, with its settings and its state in `folder`."""
    settings = folder / "agent.conf"
    settings.write_text(
        f"[agent]\nid = {agent_id}\nregistrar = {registrar}\ntrusted_client_ca = {ca}\nlisten = 127.0.0.1:0\n"
        f"state = {folder}\ntpm = {tpm}\nevent_log = {event_log}\nima_log = {ima_log}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-I", bartizan_agent.__file__, "--settings", str(settings)],
        cwd="/", env={}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "listens on 127.0.0.1:" in first, first + process.stderr.read()
        running = RunningAgent(process, int(first.rpartition(":")[2]))
        reader = threading.Thread(target=lambda: running.lines.extend(iter(process.stderr.readline, "")))  # type: ignore[union-attr]
        reader.start()
        yield running
    finally:
        process.terminate()
        process.wait(10)
    reader.join(10)


def make_host(folder: Path) -> TestHost:
    user = LabUser.current()
    return TestHost(folder, TpmAuthority(folder / "tpm-ca", user), Authority.create(folder / "ca", "console CA"))


@contextmanager
def running_registrar() -> Iterator[str]:
    """The registrar on a port of its own, its rows in the test's database. Yields HOST:PORT."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(Registrar(_answer).listen("127.0.0.1", 0), loop).result(SECONDS)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result(SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SECONDS)
        loop.close()


def _answer(request: Request) -> Answer:
    try:
        return protocol.answer(request)
    finally:
        connections.close_all()


def address_in(offer: PendingRegistration | TpmIdentity) -> AgentAddress:
    """Where and with which certificate the agent that registered is asked."""
    identity = TpmIdentity(
        contact_host=offer.contact_host, contact_port=offer.contact_port,
        mtls_certificate_pem=offer.mtls_certificate_pem,
    )  # fmt: skip
    return address_of(identity)
