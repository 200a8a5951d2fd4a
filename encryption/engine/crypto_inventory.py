"""The signed list of what protects every VM: for auditors, to be verified without the console.

A JSON file {"format", "inventory", "signature": {"algorithm", "key", "public_key", "value"}}. The signature (ECDSA over
P-256 with SHA-256) is over FORMAT, a line end, and the canonical JSON of `inventory`: keys sorted, no blanks, ASCII.
All values are texts, whole numbers, booleans or null, so that this form is the same everywhere.

NOT checked: whose key it is. The file brings its public key along; whoever verifies compares the fingerprint with one
that came by another way. Nor what was true: it says what the console knew when it was made.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from inventory.engine.checkpoint import BadKey, fingerprint, fits

FORMAT: Final = "bartizan-crypto-inventory-1"
ALGORITHM: Final = "ECDSA P-256 SHA-256"
MAX_BYTES: Final = 512 * 2**20


class BadInventory(Exception):
    """The file is no crypto inventory, or what it says is not what was signed."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Verified:
    """What a file says whose signature holds. `is_known`: the key is one that the caller named."""

    key: str
    is_known: bool
    made_at: str
    made_by: str
    virtual_machines: int
    encrypted_parts: int


def signed_bytes(inventory: Mapping[str, object]) -> bytes:
    content = json.dumps(inventory, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{FORMAT}\n{content}".encode("ascii")


def document(inventory: Mapping[str, object], *, key: str, public_key: str, value: str) -> str:
    """The file. `key` is the fingerprint, `value` the signature in base64url."""
    signature = {"algorithm": ALGORITHM, "key": key, "public_key": public_key, "value": value}
    return json.dumps({"format": FORMAT, "inventory": inventory, "signature": signature}, indent=1) + "\n"


def verify(content: bytes, *, known: Iterable[str] = ()) -> Verified:
    """Raises BadInventory: `not_an_inventory`, `signature_wrong`, `key_unknown` (not among `known`, where any is)."""
    found = _object(content)
    inventory, signature = found.get("inventory"), found.get("signature")
    if found.get("format") != FORMAT or not isinstance(inventory, dict) or not isinstance(signature, dict):
        raise BadInventory("not_an_inventory", f"this is no {FORMAT}")
    key, pem, value = (signature.get(name) for name in ("key", "public_key", "value"))
    if not isinstance(key, str) or not isinstance(pem, str) or not isinstance(value, str):
        raise BadInventory("not_an_inventory", "the signature lacks its key or its value")
    try:
        if fingerprint(pem) != key or not fits(pem, signed_bytes(inventory), value):
            raise BadInventory("signature_wrong", "the signature does not fit: the inventory or the key was changed")
    except BadKey as exc:
        raise BadInventory("not_an_inventory", str(exc)) from exc
    except (ValueError, RecursionError) as exc:
        raise BadInventory("signature_wrong", "the signature cannot be read") from exc
    trusted = frozenset(known)
    if trusted and key not in trusted:
        raise BadInventory("key_unknown", f"it is signed by the key {key}, which is none of those named")
    return Verified(
        key=key,
        is_known=bool(trusted),
        made_at=str(inventory.get("made_at", "")),
        made_by=str(inventory.get("made_by", "")),
        virtual_machines=_count(inventory, "virtual_machines"),
        encrypted_parts=_count(inventory, "encrypted_parts"),
    )


def _object(content: bytes) -> dict[str, object]:
    """The JSON object in the file; a name that comes twice is refused, because readers differ on which one counts."""
    if len(content) > MAX_BYTES:
        raise BadInventory("not_an_inventory", f"the file has more than {MAX_BYTES >> 20} MiB")
    try:
        found = json.loads(content, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as exc:
        raise BadInventory("not_an_inventory", "the file cannot be read as JSON") from exc
    if not isinstance(found, dict):
        raise BadInventory("not_an_inventory", "the file holds no JSON object")
    return found


def _unambiguous(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _count(inventory: Mapping[str, object], name: str) -> int:
    totals = inventory.get("totals")
    value = totals.get(name) if isinstance(totals, dict) else None
    return value if isinstance(value, int) else 0
