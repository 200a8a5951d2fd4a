"""Whence a request comes: the peer's address, or what proxies that the operator named say of it."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from django.conf import settings
from django.http import HttpRequest

Network = IPv4Network | IPv6Network
MOST_HOPS: Final = 20


def of_request(request: HttpRequest) -> str:
    """For events and for the throttling of logins (django-axes calls it); empty where there is no peer."""
    meta = request.META
    return client_address(meta.get("REMOTE_ADDR") or "", meta.get("HTTP_X_FORWARDED_FOR", ""), settings.TRUSTED_PROXIES)


def client_address(peer: str, forwarded: str, proxies: Sequence[Network]) -> str:
    """`forwarded` (X-Forwarded-For) is read from its end, as long as its writer is a known proxy: anybody can have
    written what stands before."""
    found = _parsed(peer)
    if found is None:
        return ""
    for name in reversed(forwarded.split(",")[-MOST_HOPS:]):
        if not any(found in network for network in proxies):
            break
        before = _parsed(name.strip())
        if before is None:
            break
        found = before
    return str(found)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """None for what is no address. An IPv4 address in IPv6's clothes is the IPv4 address; zones are dropped."""
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found
