"""Addresses that people type in."""

from typing import Final

from inventory.errors import Invalid

MAX_HOST: Final = 253  # RFC 1035 section 2.3.4, without the length octets


def checked_host(text: str) -> str:
    """A DNS name or IP address as it is kept: without blanks around it, or the brackets of IPv6. Raises Invalid
    `host_invalid`. NOT checked: whether it exists."""
    host = text.strip().strip("[]")
    if (
        not 0 < len(host) <= MAX_HOST
        or not host.isprintable()
        or any(char.isspace() or char in "/@?#" for char in host)
    ):
        raise Invalid(
            "host_invalid", f"{host[:80]!r} is no host name or address", hint="give a DNS name or an IP address"
        )
    return host
