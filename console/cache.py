"""How cached values are written to Redis: as JSON. Django's default, pickle, would run whatever Redis hands out."""

import json
from typing import Any


class JsonSerializer:
    """For RedisCache's OPTIONS["serializer"]. Whole numbers stay bare, so that Redis can count with them."""

    def dumps(self, value: Any) -> bytes | int:
        """Raises TypeError for what JSON does not know."""
        return value if type(value) is int else json.dumps(value).encode()

    def loads(self, stored: bytes) -> Any:
        """Raises ValueError for what is no JSON."""
        return json.loads(stored)
