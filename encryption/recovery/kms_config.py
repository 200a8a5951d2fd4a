"""How to reach the servers of a KMS cluster, from a small TOML file of the administrator's.

    servers = ["kms-1.example.org", "kms-2.example.org:5696", "[2001:db8::1]:5696"]     # tried in this order
    ca = "ca.pem"                      # issues the servers' certificates, or is the only server's own
    certificate = "client.pem"         # ours, intermediates behind it
    key = "client.key"                 # its private key, not encrypted
    timeout = 10                       # seconds for connecting and for each answer; may be left out

Names of files are relative to the TOML file. Every other key is refused: a misspelt one is not to be missed.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from encryption.engine.key_server import KMIP_PORT, ClientTls, ServerAddress
from encryption.engine.secret import Secret
from encryption.recovery.report import Report
from inventory.errors import Invalid, NotFound, Unavailable

_HINT = "see docs/recovery.md for its form"
_MAX_BYTES = 64 * 1024
_MAX_SERVERS = 16
_MAX_PORT = 65535
_MAX_TIMEOUT = 300
_DEFAULT_TIMEOUT = 10
_FILES = ("ca", "certificate", "key")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]@]+))(?::([0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class KmsConfig:
    """`servers` in the order in which to try them, at least one."""

    servers: tuple[ServerAddress, ...]
    tls: ClientTls
    timeout_seconds: float


def load(path: Path, report: Report) -> KmsConfig:
    """Read the file and those that it names. Notes a key that others can read.

    Raises Invalid (kms_config_malformed), NotFound (kms_config_missing), Unavailable (kms_config_unreadable).
    """
    try:
        values: Mapping[str, object] = tomllib.loads(_content(path).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Invalid("kms_config_malformed", f"{path} is not TOML: {exc}", hint=_HINT) from exc
    unknown = sorted(set(values) - {"servers", "timeout", *_FILES})
    if unknown:
        raise Invalid("kms_config_malformed", f"{path} has an unknown key {unknown[0]!r}", hint=_HINT)
    ca, certificate, key = (path.parent / _file_name(path, values, name) for name in _FILES)
    tls = ClientTls(_pem(ca), _pem(certificate), Secret(_pem(key)))
    if key.stat().st_mode & 0o077:
        report.note(f"{key} can be read by others: chmod 600 it")
    return KmsConfig(_servers(path, values), tls, _timeout(path, values))


def _servers(path: Path, values: Mapping[str, object]) -> tuple[ServerAddress, ...]:
    given = values.get("servers")
    if not isinstance(given, list) or not 0 < len(given) <= _MAX_SERVERS:
        raise Invalid("kms_config_malformed", f"{path} needs `servers`, a list of 1 to {_MAX_SERVERS}", hint=_HINT)
    return tuple(_address(path, text) for text in given)


def _address(path: Path, text: object) -> ServerAddress:
    found = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    port = int(found[3] or KMIP_PORT) if found else 0
    if found is None or not 0 < port <= _MAX_PORT:
        raise Invalid("kms_config_malformed", f"{path} has {text!r} in `servers`, no HOST or HOST:PORT", hint=_HINT)
    return ServerAddress(found[1] or found[2], port)


def _timeout(path: Path, values: Mapping[str, object]) -> float:
    given = values.get("timeout", _DEFAULT_TIMEOUT)
    # A bool is an int, and NaN compares with nothing: both fail here.
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= _MAX_TIMEOUT:
        raise Invalid("kms_config_malformed", f"{path} needs a `timeout` of 1 to {_MAX_TIMEOUT} seconds", hint=_HINT)
    return float(given)


def _file_name(path: Path, values: Mapping[str, object], name: str) -> str:
    given = values.get(name)
    if not isinstance(given, str) or not given or "\0" in given:
        raise Invalid("kms_config_malformed", f"{path} needs `{name}`, the name of a file", hint=_HINT)
    return os.path.expanduser(given)


def _pem(path: Path) -> bytes:
    content = _content(path)
    if b"-----BEGIN " not in content:
        raise Invalid("kms_config_malformed", f"{path} is not PEM", hint=_HINT)
    return content


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotFound("kms_config_missing", f"there is no file {path}", hint=_HINT) from None
    except OSError as exc:
        raise Unavailable("kms_config_unreadable", f"cannot read {path}: {exc.strerror}") from exc
    if len(content) > _MAX_BYTES:
        raise Invalid("kms_config_malformed", f"{path} is larger than {_MAX_BYTES} bytes", hint=_HINT)
    return content
