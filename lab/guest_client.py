"""Ask a running lab guest something over its command channel (lab/guest/init answers)."""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

ANSWER_MAX = 1 << 20


class GuestError(LabError):
    """The guest answered with an error, or not at all."""


@dataclass(frozen=True, slots=True)
class GuestClient:
    """One guest's channel. Every question opens the socket anew: QEMU serves one connection at a time.

    `socket_path` comes from the live XML (`lab.domains.channel_path`) and changes with every start of the guest.
    """

    socket_path: Path

    def ask(self, command: str, *, timeout: float = 30.0) -> str:
        """Send one command line and return the text of the answer.

        Raises GuestError when the guest reports an error or does not answer within `timeout` seconds.
        """
        if "\n" in command or not command.strip():
            raise ValueError("a command is one line")
        # The tag tells this answer from a late one to somebody who gave up waiting.
        tag = secrets.token_hex(4)
        deadline = time.monotonic() + timeout
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
                channel.settimeout(timeout)
                channel.connect(str(self.socket_path))
                channel.sendall(f"{tag} {command}\n".encode())
                return self._answer(channel, tag, command, deadline)
        except OSError as exc:
            raise GuestError(f"the guest behind {self.socket_path.parent.name} is silent: {exc}") from exc

    def _answer(self, channel: socket.socket, tag: str, command: str, deadline: float) -> str:
        received = b""
        while len(received) <= ANSWER_MAX:
            channel.settimeout(max(0.01, deadline - time.monotonic()))
            part = channel.recv(65536)
            if not part:
                raise GuestError(f"the guest went away during {command.split()[0]!r}")
            received += part
            while b"\n" in received:
                line, _, received = received.partition(b"\n")
                words = line.decode(errors="replace").split(" ", 2)
                if words[0] != tag:
                    continue
                text = words[2] if len(words) > 2 else ""
                if words[1:2] == ["ok"]:
                    return text
                raise GuestError(f"the guest refused {command.split()[0]!r}: {text}")
        raise GuestError(f"the answer to {command.split()[0]!r} is longer than {ANSWER_MAX} bytes")

    def read(self, disk: str, sector: int, count: int) -> bytes:
        """Sectors of 512 bytes as the guest reads them from `disk` (serial number or device name); at most 128."""
        return bytes.fromhex(self.ask(f"read {disk} {sector} {count}"))

    def wait(self, *, timeout: float = 120.0) -> None:
        """Wait until the guest answers at all. Raises GuestError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.ask("ping", timeout=5.0)
                return
            except GuestError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
