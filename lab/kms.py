"""The lab's key server: PyKMIP's engine and sessions behind our own listener. Never for production keys.

What a client may do: whoever holds a client certificate that the lab trusts reads, finds and uses every key; only
the client that created a key (by its certificate's common name) activates, revokes or destroys it. So two consoles with
this key server in common can open each other's VMs, and neither can take a key away from the other.

Keys lie in clear in `keys.sqlite`; the state folder is for one user alone. One folder can be served by several
processes at once, which then look like servers of one cluster that replicate.

    python -m lab.kms --state DIR [--port N] [--name NAME]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pwd
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from cryptography.utils import CryptographyDeprecationWarning
from typing_extensions import override

from lab.errors import LabError
from lab.pki import Authority, Issued
from lab.user import ensure_user

CA_NAME = "Bartizan Lab KMS CA"
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class KmsLayout:
    """The files of one lab key server, and where it listens unless told otherwise."""

    state: Path
    port: int

    @property
    def ca(self) -> Path:
        return self.state / "ca"

    @property
    def server_certificate(self) -> Path:
        return self.state / "server-cert.pem"

    @property
    def server_key(self) -> Path:
        return self.state / "server-key.pem"

    @property
    def clients(self) -> Path:
        """PEM files of what clients are trusted by: CAs, or single certificates."""
        return self.state / "clients"

    @property
    def database(self) -> Path:
        return self.state / "keys.sqlite"

    @property
    def settings(self) -> Path:
        return self.state / "kms.json"

    @classmethod
    def load(cls, state: Path) -> Self:
        """Read what `prepare` wrote. Raises FileNotFoundError for a folder that was not prepared."""
        return cls(state, json.loads(cls(state, 0).settings.read_text())["port"])


def prepare(state: Path, port: int, authority: Authority | None = None) -> KmsLayout:
    """Make what a key server needs in `state`; what is there is kept, but the port is set anew.

    `authority` issues the server's certificate and is trusted for clients; by default the key server has a CA of its
    own in `state/ca`. The folder then belongs to the lab's user, who must be able to reach it (see lab/layout.py);
    the CA stays with the caller. Raises LabError when there is no such user.
    """
    user = ensure_user()
    layout = KmsLayout(state, port)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    user.folder(state)
    user.folder(layout.clients)
    ca = authority or Authority.create(layout.ca, CA_NAME)
    if not layout.server_certificate.exists():
        issued = ca.issue("localhost", dns=["localhost"], ips=["127.0.0.1", "::1"], server=True)
        user.write(layout.server_key, issued.key_pem)
        user.write(layout.server_certificate, issued.certificate_pem, 0o644)
    trust_client(layout, "lab-ca", ca.certificate_pem)
    user.write(layout.settings, json.dumps({"port": port}))
    return layout


def trust_client(layout: KmsLayout, name: str, certificate_pem: bytes) -> None:
    """Let clients in that show this certificate or one issued by it; a running server takes it up at once."""
    ensure_user().write(layout.clients / f"{name}.pem", certificate_pem, 0o644)


def issue_client(layout: KmsLayout, common_name: str) -> Issued:
    """Issue a client certificate and key from the key server's own CA."""
    return _own_ca(layout).issue(common_name, client=True)


def sign_client_csr(layout: KmsLayout, csr_pem: bytes) -> bytes:
    """Sign a console's certificate request with the key server's own CA."""
    return _own_ca(layout).sign_csr(csr_pem)


def _own_ca(layout: KmsLayout) -> Authority:
    if not layout.ca.exists():
        raise LabError(f"{layout.state} has no CA of its own; use the authority that it was prepared with")
    return Authority.create(layout.ca, CA_NAME)


def command(layout: KmsLayout, *, port: int | None = None, name: str = "kms") -> list[str]:
    """The command that serves `layout` in the foreground until SIGTERM."""
    chosen = layout.port if port is None else port
    return [
        *[sys.executable, "-m", "lab.kms"],
        *["--state", str(layout.state), "--port", str(chosen), "--name", name],
    ]


class _OneLine(logging.Formatter):
    """PyKMIP logs a traceback for every handshake that fails; one line says it."""

    @override
    def formatException(self, ei: Any) -> str:
        return ""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).rstrip().replace("\n", " ")


def _give_up_root(state: Path) -> None:
    """Become the owner of `state` for good, so that a flaw in the key server costs the lab only.

    Done here and not by setpriv, because Python's packages may lie where that user cannot read them.
    """
    entry = pwd.getpwuid(state.stat().st_uid)
    if entry.pw_uid == 0:
        raise LabError(f"{state} belongs to root; prepare it first")
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.kms", description="serve the lab's key server")
    parser.add_argument("--state", type=Path, required=True, help="a folder made by lab.kms.prepare")
    parser.add_argument("--port", type=int, help="another port than the prepared one; 0 takes a free one")
    parser.add_argument("--name", default="kms", help="a word for the log, to tell two processes apart")
    options = parser.parse_args(arguments)

    os.umask(0o077)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"{options.name}: %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    # At DEBUG PyKMIP's sessions write whole messages, keys included, so nothing may lower this.
    logging.getLogger("kmip").setLevel(logging.ERROR)

    # PyKMIP names every cipher there is when it is imported; the lab's keys are AES.
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
    # Nor do its SQL types let SQLAlchemy cache statements; true, and no news to who runs a lab.
    warnings.filterwarnings("ignore", message=".*will not produce a cache key")
    # Imported here to spare those who only prepare a key server PyKMIP and SQLAlchemy, and before root is given up.
    from lab.kms_server import LabServer

    try:
        if os.geteuid() == 0:
            _give_up_root(options.state)
        layout = KmsLayout.load(options.state)
        server = LabServer(layout, HOST, layout.port if options.port is None else options.port)
    except (OSError, LabError) as exc:
        print(f"{options.name}: cannot serve {options.state}: {exc}", file=sys.stderr)
        return 1

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        server.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    print(f"{options.name}: listening on {HOST}:{server.port}", flush=True)
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
