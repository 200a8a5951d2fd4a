"""How many requests an address may send. Token buckets in the memory of the one process."""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

MAX_ADDRESSES = 20_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimit:
    """`burst` requests at once, then `per_minute`. An IPv6 address counts as its /64: that is what one host has."""

    def __init__(self, *, burst: int, per_minute: float) -> None:
        self._burst = float(burst)
        self._per_second = per_minute / 60
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def allows(self, address: str, *, now: float) -> bool:
        """Takes one request of the address into account. `now` in seconds, of a clock that does not go back.

        The address seen longest ago is forgotten where there are too many: its bucket is likely full again.
        """
        source = _network(address)
        bucket = self._buckets.pop(source, None) or _Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled_at) * self._per_second)
        bucket.filled_at = now
        is_allowed = bucket.tokens >= 1
        if is_allowed:
            bucket.tokens -= 1
        self._buckets[source] = bucket
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return is_allowed


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
