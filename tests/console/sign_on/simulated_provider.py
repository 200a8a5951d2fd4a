"""A SIMULATED OpenID provider: it answers whatever a test tells it to, also what no real one would. The real one is in
real_provider.py."""

import base64
import hashlib
import json
import ssl
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry
from typing_extensions import override

from console.sign_on.configuration import Oidc
from lab.pki import Issued

CLIENT_ID: Final = "bartizan"
SECRET: Final = "planted-client-secret"
KEYS: Final[Mapping[str, PrivateKeyTypes]] = {
    "rsa": rsa.generate_private_key(65537, 2048),
    "other": rsa.generate_private_key(65537, 2048),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
}


def key_of(name: str) -> RSAKey | ECKey:
    key = KEYS[name]
    if isinstance(key, rsa.RSAPrivateKey):
        return RSAKey.import_key(key, {"kid": name, "use": "sig"})
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return ECKey.import_key(key, {"kid": name, "use": "sig"})


def encoded(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned(claims: Mapping[str, Any]) -> str:
    return f"{encoded({'alg': 'none'})}.{encoded(claims)}."


@dataclass
class SimulatedProvider:
    """What it answers stands in these fields. `asked` holds what the token endpoint got, for each request."""

    scheme: str = "http"
    port: int = 0
    document: dict[str, Any] = field(default_factory=dict)  # over the usual one
    keys: list[str] = field(default_factory=lambda: ["rsa"])
    published: list[dict[str, Any]] = field(default_factory=list)  # besides those
    claims: dict[str, Any] = field(default_factory=dict)  # over the usual ones; None: left out
    algorithm: str = "RS256"
    signed_with: str = "rsa"
    token: str | None = None  # in place of a signed one
    status: int = 200
    answer: dict[str, Any] | None = None  # in place of tokens
    asked: list[dict[str, str]] = field(default_factory=list)
    nonce: str = ""

    @property
    def issuer(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/realms/lab"

    def settings(self, **changes: Any) -> Oidc:
        values: dict[str, Any] = {
            "name": "Lab", "issuer": self.issuer, "client_id": CLIENT_ID, "client_secret": SECRET,
            "scopes": "openid profile", "username_claim": "preferred_username", "groups_claim": "groups",
            "ca_file": None,
        }  # fmt: skip
        return Oidc(**(values | changes))

    def give(self, path: str) -> tuple[int, object]:
        if path.endswith("/.well-known/openid-configuration"):
            return 200, {
                "issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/auth",
                "token_endpoint": f"{self.issuer}/token", "jwks_uri": f"{self.issuer}/keys",
            } | self.document  # fmt: skip
        if path.endswith("/keys"):
            return 200, {"keys": [*(key_of(name).as_dict(private=False) for name in self.keys), *self.published]}
        return 404, {}

    def exchange(self, form: dict[str, str], headers: Mapping[str, str]) -> tuple[int, object]:
        self.asked.append(form | {"authorization": headers.get("Authorization", "")})
        if self.answer is not None or self.status != 200:
            return self.status, self.answer or {}
        return 200, {"access_token": "planted-access-token", "token_type": "Bearer", "id_token": self.id_token()}

    def id_token(self) -> str:
        now = int(time.time())
        usual = {
            "iss": self.issuer, "aud": CLIENT_ID, "sub": "0f3a", "exp": now + 300, "iat": now, "nonce": self.nonce,
            "preferred_username": "bob", "groups": [],
        }  # fmt: skip
        claims = {name: value for name, value in (usual | self.claims).items() if value is not None}
        if self.token is not None:
            return self.token
        if self.algorithm == "none":
            return unsigned(claims)
        header = {"alg": self.algorithm, "kid": self.signed_with}
        registry = JWSRegistry(algorithms=[self.algorithm])
        return jwt.encode(header, claims, key_of(self.signed_with), registry=registry)

    def went(self, url: str) -> dict[str, str]:
        """As a browser that logs in there without a question: the parameters with which it is sent back."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        self.nonce, self.challenge = query["nonce"], query["code_challenge"]
        assert query["code_challenge_method"] == "S256" and query["response_type"] == "code"
        return {"state": query["state"], "code": "planted-code"}

    @cached_property
    def server(self) -> ThreadingHTTPServer:
        simulated = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                if parts.path.endswith("/auth"):  # the person is known there, and has nothing to type
                    (back,) = parse_qs(parts.query)["redirect_uri"]
                    self._send(302, {}, f"{back}?{urlencode(simulated.went(self.path))}")
                else:
                    self._send(*simulated.give(parts.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._send(*simulated.exchange(dict(parse_qsl(body)), dict(self.headers)))

            def _send(self, status: int, found: object, location: str = "http://192.0.2.1/elsewhere") -> None:
                body = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                if status in (301, 302, 307):
                    self.send_header("Location", location)
                self.end_headers()
                self.wfile.write(body)

            @override
            def log_message(self, *_: Any) -> None:
                pass

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def start(self, identity: Issued | None = None) -> None:
        if identity is not None:
            self.scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            with tempfile.NamedTemporaryFile() as file:
                file.write(identity.certificate_pem + identity.key_pem)
                file.flush()
                context.load_cert_chain(file.name)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def challenge_of(verifier: str) -> str:
    return encoded(hashlib.sha256(verifier.encode()).digest())
