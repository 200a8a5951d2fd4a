"""Settings from the environment: the only module that reads it.

A value that is missing where one is needed, or cannot be read as what it should be, stops the start with a text
that names the variable.
"""

import os
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path


class SettingsError(Exception):
    """A variable of the environment is missing or wrong."""


def env_str(name: str, default: str | None = None) -> str:
    """The variable's text; `default` where it is unset. An empty value counts as unset."""
    value = os.environ.get(name, "")  # noqa: TID251
    if value:
        return value
    if default is None:
        raise SettingsError(f"{name} is not set (./bartizan sets it; see docs/install.md for a service file)")
    return default


def env_bool(name: str, *, default: bool) -> bool:
    value = env_str(name, "1" if default else "0").lower()
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    raise SettingsError(f"{name} must be 1 or 0, not {value!r}")


def env_int(name: str, default: int, *, minimum: int, maximum: int) -> int:
    value = env_str(name, str(default))
    try:
        number = int(value)
    except ValueError as exc:
        raise SettingsError(f"{name} must be a whole number, not {value!r}") from exc
    if not minimum <= number <= maximum:
        raise SettingsError(f"{name} must be from {minimum} to {maximum}, not {number}")
    return number


def env_list(name: str, default: Sequence[str]) -> list[str]:
    """Comma-separated texts, blanks around them dropped."""
    return [item for item in (part.strip() for part in env_str(name, ",".join(default)).split(",")) if item]


def env_networks(name: str) -> list[IPv4Network | IPv6Network]:
    """Comma-separated addresses and networks (192.0.2.1, 2001:db8::/64)."""
    try:
        return [ip_network(item) for item in env_list(name, [])]
    except ValueError as exc:
        raise SettingsError(f"{name} must hold addresses or networks: {exc}") from exc


def env_path(name: str, default: Path | None = None) -> Path:
    path = Path(env_str(name, None if default is None else str(default)))
    if not path.is_absolute():
        raise SettingsError(f"{name} must be an absolute path, not {str(path)!r}")
    return path


def env_secret(name: str, *, required: bool = True) -> str:
    """The variable `name`, or the first line of the file that `name`_FILE names. Never both."""
    value, file = env_str(name, ""), env_str(f"{name}_FILE", "")
    if value and file:
        raise SettingsError(f"set {name} or {name}_FILE, not both")
    if file:
        try:
            value = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise SettingsError(f"{name}_FILE: cannot read {file}: {type(exc).__name__}") from exc
    if required and not value:
        raise SettingsError(f"set {name} or {name}_FILE")
    return value
