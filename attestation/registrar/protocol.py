"""The registrar's four operations, as stock Keylime agents of API 2.x call them. Blocking: it reads and writes rows.

    GET  /version                               which versions there are
    POST /v2.x/agents/{id}                      register: answered with a challenge to the TPM
    PUT  /v2.x/agents/{id}[/activate]           the TPM's answer; Python agents write /activate, Rust agents do not

Success is HTTP 200 exactly, bodies are `{"code", "status", "results"}`. There is no way to read or delete anything.
"""

import json
import re
from dataclasses import dataclass, field

from attestation.engine.errors import Malformed
from attestation.engine.registration import MAX_BODY_BYTES, is_agent_id, parse_auth_tag, parse_offer
from attestation.services import registration
from inventory.errors import ServiceError

CURRENT_VERSION = "2.1"
VERSIONS = ("2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6")
_AGENT = re.compile(r"/v(?P<version>[0-9]{1,2}\.[0-9]{1,2})/agents/(?P<id>[^/]{1,200})(?P<activate>/activate)?/?")

__all__ = ["MAX_BODY_BYTES", "Answer", "Request", "answer"]


@dataclass(frozen=True, slots=True)
class Request:
    """`path` without a query; `source` is the address that the connection came from."""

    method: str
    path: str
    body: bytes = field(repr=False)
    source: str


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    text: str
    results: dict[str, object] = field(default_factory=dict, repr=False)

    def body(self) -> bytes:
        return json.dumps({"code": self.status, "status": self.text, "results": self.results}).encode()


def answer(request: Request) -> Answer:
    """What an agent gets. Raises nothing of its own; a database that is away is left to the caller."""
    if request.path.rstrip("/") == "/version":
        if request.method != "GET":
            return Answer(405, "only GET")
        return Answer(200, "Success", {"current_version": CURRENT_VERSION, "supported_versions": list(VERSIONS)})
    match = _AGENT.fullmatch(request.path)
    if match is None:
        return Answer(404, "no such path")
    if match["version"] not in VERSIONS:
        return Answer(400, f"API versions {VERSIONS[0]} to {VERSIONS[-1]} are understood")
    if not is_agent_id(match["id"]):
        return Answer(400, "an agent's id is letters, digits, _ . and -, at most 128")
    try:
        if request.method == "POST" and not match["activate"]:
            return _register(match["id"], request)
        if request.method == "PUT":
            return _activate(match["id"], request)
    except Malformed as exc:
        return Answer(400, str(exc))
    except ServiceError as exc:
        # 403 tells Rust agents that the id belongs to another TPM, and not to try another version.
        return Answer(exc.http_status if exc.http_status in (403, 429, 503) else 400, str(exc))
    return Answer(405, "only POST to register and PUT to activate")


def _register(agent_id: str, request: Request) -> Answer:
    blob = registration.register(
        agent_id=agent_id, offer=parse_offer(request.body), source_address=request.source
    )  # fmt: skip
    return Answer(200, "Success", {"blob": blob})


def _activate(agent_id: str, request: Request) -> Answer:
    registration.activate(agent_id=agent_id, auth_tag=parse_auth_tag(request.body))
    return Answer(200, "Success")
