"""OpenID Connect, the authorization code flow with PKCE: where to send a browser, and who came back.

Authlib does the flow and the claims, joserfc the signature. What is checked of an answer, in this order:

1. `state` is that of this browser's own pending login, and `iss`, where given, is the provider (RFC 9207);
2. the code is exchanged at the provider's token endpoint over TLS, with the client's secret and the PKCE verifier;
3. the ID token is signed by RS256, PS256 or ES256 with a key of the provider's present key set, at least RSA-2048 or
   on P-256, which is for signatures;
4. `iss` is the provider; `aud` holds this client, and where it holds others, `azp` is this client; `nonce` is the
   pending login's; `exp` is to come, `iat` and `nbf` are not (a minute of difference is allowed); `sub` is there;
   `at_hash`, where given, fits the access token.

The code comes in an address, so it can stand in access logs: it serves once, and only with secret and verifier.
NOT checked: how the person proved who they are (`acr`, `amr`), and whether the session at the provider still lasts.
The access token is thrown away; claims come from the ID token alone.
"""

import re
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oidc.core import CodeIDToken
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.utils.crypto import constant_time_compare
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, KeySet, RSAKey
from joserfc.jws import JWSRegistry
from requests.adapters import HTTPAdapter
from typing_extensions import override

from console.models import ExternalIdentity
from console.sign_on.configuration import Oidc, is_protected
from console.sign_on.identities import Proven
from inventory.adapters.tls import client_context
from inventory.errors import Unavailable, Untrusted

ALGORITHMS: Final = ("RS256", "PS256", "ES256")
MIN_RSA_BITS: Final = 2048  # SP 800-131A rev. 2, for verifying what others signed
LEEWAY_SECONDS: Final = 60
TIMEOUT: Final = (5, 10)  # connecting, and each wait for bytes
MOST_KEYS: Final = 100


@dataclass(frozen=True, slots=True)
class Pending:
    """A login that has begun, kept in the browser that began it. None of it is of use without that browser's code."""

    state: str
    nonce: str
    verifier: str
    next: str


@dataclass(frozen=True, slots=True)
class Provider:
    """What the provider's discovery document says."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    authenticates_in_body: bool
    names_itself: bool


def begin(oidc: Oidc, *, redirect_uri: str, next_page: str) -> tuple[str, Pending]:
    """Where to send the browser, and what it has to come back with. Raises Unavailable, Untrusted."""
    pending = Pending(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48), next_page)
    with _session(oidc) as session:
        provider = _discover(session, oidc)
        url, _ = session.create_authorization_url(
            provider.authorization_endpoint, state=pending.state, nonce=pending.nonce, redirect_uri=redirect_uri,
            code_verifier=pending.verifier,
        )  # fmt: skip
    return url, pending


def finish(oidc: Oidc, *, pending: Pending | None, redirect_uri: str, answer: Mapping[str, str]) -> Proven:
    """Who has logged in there. `answer`: the parameters with which the browser came back.

    Raises Untrusted (`oidc_state_wrong`, `oidc_refused`, `oidc_answer_refused`, `oidc_token_refused`), Unavailable.
    """
    if pending is None or not constant_time_compare(pending.state, answer.get("state", "")):
        raise Untrusted(
            "oidc_state_wrong", "this login was not begun in this browser, or is over", hint="begin again at the login"
        )
    if error := answer.get("error"):
        raise _refused_by_provider(error)
    with _session(oidc) as session:
        provider = _discover(session, oidc)
        if answer.get("iss", "" if provider.names_itself else oidc.issuer) != oidc.issuer:
            raise _not_trusted("the answer is not of this provider (iss)", code="oidc_answer_refused")
        token = _exchange(session, provider, pending, redirect_uri, answer.get("code", ""))
        keys = _keys(session, provider)
    return _proven(oidc, _verified(oidc, token, keys, pending.nonce))


class _ApprovedTls(HTTPAdapter):
    """Requests over the product's own TLS context."""

    @override
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=client_context())


def _session(oidc: Oidc) -> Any:
    """One client for one login. Nothing of the environment counts: no proxy, no .netrc, no other certificates."""
    system = ssl.get_default_verify_paths()
    session = OAuth2Session(
        oidc.client_id, oidc.client_secret, scope=oidc.scopes, code_challenge_method="S256",
        default_timeout=TIMEOUT, trust_env=False, verify=str(oidc.ca_file or system.capath or system.cafile),
    )  # fmt: skip
    session.mount("https://", _ApprovedTls())
    return session


def _discover(session: Any, oidc: Oidc) -> Provider:
    """OpenID Connect Discovery 1.0, 4: read anew for each login, so nothing is kept that could be old."""
    found = _get(session, f"{oidc.issuer.rstrip('/')}/.well-known/openid-configuration", "discovery document")
    if found.get("issuer") != oidc.issuer:
        raise _not_trusted("its discovery document names another issuer", code="oidc_answer_refused")
    on_loopback = oidc.issuer.startswith("http:")

    def endpoint(name: str) -> str:
        url = found.get(name)
        if not isinstance(url, str) or not is_protected(url, loopback=on_loopback):
            raise _not_trusted(f"its discovery document has no {name} with TLS", code="oidc_answer_refused")
        return url

    methods = found.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    return Provider(
        endpoint("authorization_endpoint"),
        endpoint("token_endpoint"),
        endpoint("jwks_uri"),
        authenticates_in_body="client_secret_basic" not in methods,
        names_itself=found.get("authorization_response_iss_parameter_supported") is True,
    )


def _get(session: Any, url: str, what: str) -> dict[str, Any]:
    """A JSON object. Redirections are not followed: they could leave TLS."""
    try:
        answer = session.request("GET", url, withhold_token=True, allow_redirects=False)
        if answer.status_code != 200:
            raise _unreachable(f"it answers {answer.status_code} when asked for its {what}")
        found = answer.json()
    except requests.JSONDecodeError as exc:
        raise _unreachable(f"its {what} is no JSON") from exc
    except OSError as exc:  # requests' own errors are, and what it raises where the CA certificates are gone
        raise _unreachable(_why(exc)) from exc
    if not isinstance(found, dict):
        raise _unreachable(f"its {what} is no JSON object")
    return found


def _exchange(session: Any, provider: Provider, pending: Pending, redirect_uri: str, code: str) -> dict[str, Any]:
    """The token endpoint's answer. Its text is never shown: it may quote the code."""
    if not code:
        raise _not_trusted("it came back without a code", code="oidc_answer_refused")
    method = "client_secret_post" if provider.authenticates_in_body else "client_secret_basic"
    session.token_endpoint_auth_method = method
    try:
        found = session.fetch_token(
            provider.token_endpoint, grant_type="authorization_code", code=code, redirect_uri=redirect_uri,
            code_verifier=pending.verifier, allow_redirects=False,
        )  # fmt: skip
    except AuthlibBaseError as exc:
        raise _refused_by_provider(str(exc.error)) from None
    except requests.HTTPError as exc:
        status = "an error" if exc.response is None else exc.response.status_code
        raise _unreachable(f"its token endpoint answers {status}") from None
    except OSError as exc:
        raise _unreachable(_why(exc)) from None
    except ValueError:
        raise _unreachable("its token endpoint's answer is no JSON object") from None
    return dict(found)


def _keys(session: Any, provider: Provider) -> KeySet:
    """Those of the provider's keys that may sign. Kinds that are not known are left out (RFC 7517, 5)."""
    listed = _get(session, provider.jwks_uri, "key set").get("keys")
    if not isinstance(listed, list):
        raise _not_trusted("its key set is none", code="oidc_answer_refused")
    keys: list[Key] = [key for one in listed[:MOST_KEYS] if (key := _signing_key(one)) is not None]
    if not keys:
        raise _not_trusted("its key set has no key that may sign", code="oidc_answer_refused")
    return KeySet(keys)


def _signing_key(found: object) -> RSAKey | ECKey | None:
    if not isinstance(found, dict) or found.get("use", "sig") != "sig" or "d" in found:
        return None
    kinds: Mapping[object, type[RSAKey] | type[ECKey]] = {"RSA": RSAKey, "EC": ECKey}
    kind = kinds.get(found.get("kty"))
    if kind is None:
        return None
    try:
        key = kind.import_key(found)
        public = key.public_key
    except (JoseError, ValueError, KeyError, TypeError):
        return None
    match public:
        case rsa.RSAPublicKey() if public.key_size >= MIN_RSA_BITS:
            return key
        case ec.EllipticCurvePublicKey() if public.curve.name == "secp256r1":
            return key
    return None


def _verified(oidc: Oidc, token: Mapping[str, Any], keys: KeySet, nonce: str) -> Mapping[str, Any]:
    """The claims of the ID token. Steps 3 and 4 of the module."""
    text = token.get("id_token")
    if not isinstance(text, str):
        raise _not_trusted("its answer holds no ID token")
    try:
        found = jwt.decode(text, keys, registry=JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False))
        claims = CodeIDToken(
            found.claims, found.header,
            {"iss": {"essential": True, "value": oidc.issuer}, "aud": {"essential": True, "value": oidc.client_id}},
            {"nonce": nonce, "client_id": oidc.client_id, "access_token": token.get("access_token")},
        )  # fmt: skip
        claims.validate(leeway=LEEWAY_SECONDS)
    except JoseError as exc:
        claim = getattr(exc, "claim", None)
        raise _not_trusted(f"its ID token does not hold: {exc.error}{f' ({claim})' if claim else ''}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _not_trusted("its ID token is malformed") from None
    return dict(claims)


def _proven(oidc: Oidc, claims: Mapping[str, Any]) -> Proven:
    subject, name, groups = claims["sub"], claims.get(oidc.username_claim), claims.get(oidc.groups_claim, [])
    if not isinstance(subject, str):
        raise _not_trusted("its ID token's sub is no text")
    if not isinstance(name, str) or not name:
        raise Untrusted(
            "identity_unusable", f"the ID token has no claim {oidc.username_claim} with a name",
            hint="the provider has to put it into the ID token; BARTIZAN_OIDC_USERNAME_CLAIM chooses another",
        )  # fmt: skip
    if isinstance(groups, str):
        groups = [groups]
    if not isinstance(groups, list) or not all(isinstance(one, str) for one in groups):
        raise Untrusted(
            "identity_unusable", f"the ID token's claim {oidc.groups_claim} is no list of names",
            hint="BARTIZAN_OIDC_GROUPS_CLAIM chooses another",
        )  # fmt: skip
    return Proven(ExternalIdentity.Source.OIDC, oidc.issuer, subject, name, frozenset(groups))


def _why(exc: OSError) -> str:
    """Without the exception's own text, which can hold what was sent."""
    match exc:
        case requests.exceptions.SSLError():
            return "its TLS certificate is not trusted, or it speaks no TLS that is approved here"
        case requests.Timeout():
            return "it does not answer in time"
        case requests.ConnectionError():
            return "no connection"
        case requests.RequestException():
            return type(exc).__name__
        case _:
            return "its CA certificates cannot be read here"


def _refused_by_provider(error: str) -> Untrusted:
    """`error` came through the browser: only what looks like one of OAuth's codes is repeated."""
    known = error if re.fullmatch("[a-z_]{1,40}", error) else "an error"
    return Untrusted(
        "oidc_refused", f"the identity provider refused the login: {known}", hint="begin again at the login"
    )


def _not_trusted(why: str, *, code: str = "oidc_token_refused") -> Untrusted:
    return Untrusted(
        code, f"the identity provider is not believed: {why}", hint="tell an administrator of this console"
    )


def _unreachable(why: str) -> Unavailable:
    return Unavailable(
        "oidc_unreachable", f"the identity provider cannot be asked: {why}",
        hint="users of this console itself can still log in",
    )  # fmt: skip
