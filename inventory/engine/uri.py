"""Which libvirt URIs a host may have. libvirt's own rules allow far too much for a URI that a web form brings.

libvirt runs `command=` and `netcat=` as programs, `no_verify=1` switches server authentication off, `qemu+ext` is a
program by itself, and its parser takes parameter names in any case and `;` as a separator. So this is an
allow-list of schemes, parameters and characters; percent signs are refused because decoding could bring back the rest.

NOT checked: whether the files exist, whether the host answers, whether its certificate is good. libvirt does that.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from inventory.engine.hypervisor import BadUri

MAX_LENGTH: Final = 500
PATH_PARAMETERS: Final = frozenset({"socket", "pkipath", "keyfile"})
MODES: Final = frozenset({"auto", "direct", "legacy"})

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_PATH: Final = re.compile(r"/[A-Za-z0-9._/@+-]*")
_TEXT: Final = re.compile(r"[A-Za-z0-9._/@+:?=&\[\]-]+")


class Transport(StrEnum):
    TLS = "tls"
    SSH = "ssh"
    UNIX = "unix"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class HostUri:
    """A URI that passed: `text` is for libvirt, `label` names the host to people, `host` is empty for a socket."""

    text: str
    transport: Transport
    host: str
    label: str

    @property
    def is_encrypted(self) -> bool:
        return self.transport in {Transport.TLS, Transport.SSH}


_SCHEMES: Final = {
    "qemu": Transport.UNIX,
    "qemu+unix": Transport.UNIX,
    "qemu+tls": Transport.TLS,
    "qemu+ssh": Transport.SSH,
    "test": Transport.TEST,
}
_FORMS: Final = "use qemu+tls://host/system, qemu+ssh://user@host/system or qemu:///system"


def parse(text: str, *, allow_test: bool = False) -> HostUri:
    """Checks a host's URI. Raises BadUri; no message quotes the URI, because it could hold a password."""
    if not text or len(text) > MAX_LENGTH:
        raise BadUri("uri_malformed", f"a URI has 1 to {MAX_LENGTH} characters", hint=_FORMS)
    if not _TEXT.fullmatch(text):
        raise BadUri(
            "uri_malformed",
            "the URI holds a character that is not allowed (blank, percent sign, semicolon, quote or the like)",
            hint="write paths and names plainly; allowed are letters, digits and . _ / @ + : ? = & [ ] -",
        )
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise BadUri("uri_malformed", "the URI lacks ://", hint=_FORMS)
    transport = _SCHEMES.get(scheme)
    if transport is None or (transport is Transport.TEST and not allow_test):
        raise BadUri("uri_scheme", f"the scheme {scheme[:20]} is not supported", hint=_FORMS)
    if "://" in rest:
        raise BadUri("uri_malformed", "the URI holds :// twice", hint=_FORMS)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise BadUri("uri_malformed", "the URI's host or port is malformed", hint=_FORMS) from exc
    if parts.password is not None:
        raise BadUri("uri_password", "a URI must not hold a password", hint="use certificates (TLS) or an SSH key file")
    if transport is Transport.TEST:
        return _test(text, parts.netloc, parts.path, parts.query)
    user, _, address = parts.netloc.rpartition("@")
    _check_address(transport, user, address, port)
    if parts.path not in {"/system", "/session"}:
        raise BadUri("uri_path", "the URI's path must be /system or /session", hint=_FORMS)
    query = _query(parts.query)
    if "keyfile" in query and transport is not Transport.SSH:
        raise BadUri("uri_parameter", "keyfile belongs to qemu+ssh only", hint=_FORMS)
    if "pkipath" in query and transport is not Transport.TLS:
        raise BadUri("uri_parameter", "pkipath belongs to qemu+tls only", hint=_FORMS)
    label = parts.netloc or query.get("socket", "this machine")
    return HostUri(text, transport, parts.hostname or "", label)


def parse_migration(text: str) -> HostUri:
    """A URI that another host uses to reach this one: it must name a server, and the way must be encrypted."""
    uri = parse(text)
    if not uri.is_encrypted:
        raise BadUri(
            "uri_migration",
            "the migration URI must be qemu+tls:// or qemu+ssh:// with a host name",
            hint="other hosts connect to it over the network",
        )
    return uri


def _test(text: str, netloc: str, path: str, query: str) -> HostUri:
    if netloc or query or not _PATH.fullmatch(path) or ".." in path.split("/"):
        raise BadUri("uri_malformed", "a test URI is test:///default or test:///path/of/file.xml")
    return HostUri(text, Transport.TEST, "", text)


def _check_address(transport: Transport, user: str, address: str, port: int | None) -> None:
    if transport is Transport.UNIX:
        if user or address:
            raise BadUri(
                "uri_transport",
                "qemu:// with a host name does not say how to connect",
                hint="write qemu+tls:// or qemu+ssh://",
            )
        return
    host = address
    if port is not None:
        host = address.rpartition(":")[0]
    elif address.endswith(":"):
        raise BadUri("uri_malformed", "the port is empty", hint=_FORMS)
    if not _HOST.fullmatch(host):
        raise BadUri("uri_host", "the URI names no valid host", hint=_FORMS)
    if port == 0:
        raise BadUri("uri_host", "port 0 cannot be connected to", hint=_FORMS)
    if user and (transport is not Transport.SSH or not _USER.fullmatch(user)):
        raise BadUri("uri_user", "a user name goes with qemu+ssh only and is a plain login name", hint=_FORMS)


def _query(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    if not text:
        return found
    for item in text.split("&"):
        name, separator, value = item.partition("=")
        if name not in PATH_PARAMETERS and name != "mode":
            raise BadUri(
                "uri_parameter",
                f"the parameter {name[:20]} is not allowed",
                hint="allowed are " + ", ".join(sorted(PATH_PARAMETERS | {"mode"})),
            )
        if not separator or name in found:
            raise BadUri("uri_parameter", f"the parameter {name} has no value or stands twice")
        if name == "mode":
            if value not in MODES:
                raise BadUri("uri_parameter", "mode is one of " + ", ".join(sorted(MODES)))
        elif not _PATH.fullmatch(value) or ".." in value.split("/"):
            raise BadUri("uri_parameter", f"{name} must be an absolute path of plain characters")
        found[name] = value
    return found
