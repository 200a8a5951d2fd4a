"""What the answers of a KMIP server say: from the items of a message to Bartizan's values.

Every function raises TtlvError when the answer is not what KMIP 1.2 prescribes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from kmip.core import enums

from encryption.engine.key_server import KeyAttributes, KeyState
from encryption.engine.secret import Secret
from encryption.engine.ttlv import Item, TtlvError

KEY_BITS = 256
# Of a Unique Batch Item ID (KMIP 1.2 section 6.4): the position of the request in its message.
ID_BYTES = 2

_STATES = {state.value: KeyState[state.name] for state in enums.State}


def batch_item(message: Item) -> Item:
    items = message.all(enums.Tags.BATCH_ITEM.value)
    if len(items) != 1:
        raise TtlvError("the answer does not hold one result")
    return items[0]


def batch_items(message: Item, count: int) -> dict[int, Item]:
    """The results that belong to a request of a message of `count`, by its position (see `kmip_requests.message`).

    One for the message as a whole, as from a server that takes one request in a message, has no position.
    """
    found: dict[int, Item] = {}
    for item in message.all(enums.Tags.BATCH_ITEM.value):
        given = item.find(enums.Tags.UNIQUE_BATCH_ITEM_ID.value)
        position = int.from_bytes(given.octets, "big") if given is not None and len(given.octets) == ID_BYTES else count
        if position in found:
            raise TtlvError("the answer holds two results for one request")
        if position < count:
            found[position] = item
    return found


def failure(item: Item) -> tuple[Any, str]:
    """(None, "") for a success, else the result reason (GENERAL_FAILURE when unknown) and the server's words."""
    if item.get(enums.Tags.RESULT_STATUS.value).number == enums.ResultStatus.SUCCESS.value:
        return None, ""
    given = item.find(enums.Tags.RESULT_REASON.value)
    words = item.find(enums.Tags.RESULT_MESSAGE.value)
    # The server's words end up in events and pages: one line, printable, short.
    text = "".join(char if char.isprintable() else " " for char in words.text[:200]) if words else ""
    try:
        reason = enums.ResultReason(given.number if given else enums.ResultReason.GENERAL_FAILURE.value)
    except ValueError:
        reason = enums.ResultReason.GENERAL_FAILURE
    return reason, text or reason.name.lower().replace("_", " ")


def nothing(answer: Item) -> None:
    """Of this answer only the success counts."""


def unique_identifier(answer: Item) -> str:
    return answer.get(enums.Tags.UNIQUE_IDENTIFIER.value).text


def key_material(answer: Item) -> Secret:
    """The bytes of an AES-256 key in a Get response (KMIP 1.2 sections 2.1.3 and 4.11)."""
    block = answer.get(enums.Tags.SYMMETRIC_KEY.value).get(enums.Tags.KEY_BLOCK.value)
    expected = (
        (enums.Tags.KEY_FORMAT_TYPE, enums.KeyFormatType.RAW.value),
        (enums.Tags.CRYPTOGRAPHIC_ALGORITHM, enums.CryptographicAlgorithm.AES.value),
        (enums.Tags.CRYPTOGRAPHIC_LENGTH, KEY_BITS),
    )
    for tag, value in expected:
        item = block.find(tag.value)
        if item is not None and item.number != value:
            raise TtlvError("the key is not a plain AES-256 key")
    material = block.get(enums.Tags.KEY_VALUE.value).get(enums.Tags.KEY_MATERIAL.value).octets
    if block.find(enums.Tags.KEY_WRAPPING_DATA.value) is not None or len(material) * 8 != KEY_BITS:
        raise TtlvError("the key is not a plain AES-256 key")
    return Secret(material)


def asked_key(key_id: str, answer: Item) -> Secret:
    # Another key than the one asked for would open nothing, or worse, wrap secrets for the wrong one.
    if unique_identifier(answer) != key_id:
        raise TtlvError("the server answers with another key")
    return key_material(answer)


def _values(answer: Item) -> dict[str, list[Item]]:
    """The values in a Get Attributes response by attribute name."""
    values: dict[str, list[Item]] = {}
    for attribute in answer.all(enums.Tags.ATTRIBUTE.value):
        name = attribute.get(enums.Tags.ATTRIBUTE_NAME.value).text
        values.setdefault(name, []).append(attribute.get(enums.Tags.ATTRIBUTE_VALUE.value))
    return values


def state(answer: Item) -> KeyState:
    found = _values(answer).get(enums.AttributeType.STATE.value, [])
    known = _STATES.get(found[0].number) if found else None
    if known is None:
        raise TtlvError("the server gives no state that KMIP knows")
    return known


def key_attributes(key_id: str, answer: Item) -> KeyAttributes:
    values = _values(answer)

    def first(kind: Any) -> Item | None:
        return next(iter(values.get(kind.value, [])), None)

    def date(kind: Any) -> datetime | None:
        item = first(kind)
        return item.time if item else None

    algorithm = first(enums.AttributeType.CRYPTOGRAPHIC_ALGORITHM)
    length = first(enums.AttributeType.CRYPTOGRAPHIC_LENGTH)
    mask = first(enums.AttributeType.CRYPTOGRAPHIC_USAGE_MASK)
    labels = values.get(enums.AttributeType.APPLICATION_SPECIFIC_INFORMATION.value, [])
    return KeyAttributes(
        key_id=key_id,
        names=tuple(
            item.get(enums.Tags.NAME_VALUE.value).text for item in values.get(enums.AttributeType.NAME.value, [])
        ),
        state=state(answer),
        algorithm=_member(enums.CryptographicAlgorithm, algorithm.number) if algorithm else "",
        length_bits=length.number if length else 0,
        usages=frozenset(usage.name for usage in enums.CryptographicUsageMask if mask and usage.value & mask.number),
        created_at=date(enums.AttributeType.INITIAL_DATE),
        activated_at=date(enums.AttributeType.ACTIVATION_DATE),
        deactivated_at=date(enums.AttributeType.DEACTIVATION_DATE),
        labels={
            label.get(enums.Tags.APPLICATION_NAMESPACE.value).text: label.get(enums.Tags.APPLICATION_DATA.value).text
            for label in labels
        },
    )


def query_facts(answer: Item) -> tuple[str, frozenset[str]]:
    vendor = answer.find(enums.Tags.VENDOR_IDENTIFICATION.value)
    operations = answer.all(enums.Tags.OPERATION.value)
    return (
        vendor.text[:200] if vendor else "",
        frozenset(_member(enums.Operation, item.number) for item in operations),
    )


def versions(answer: Item) -> tuple[str, ...]:
    major, minor = enums.Tags.PROTOCOL_VERSION_MAJOR.value, enums.Tags.PROTOCOL_VERSION_MINOR.value
    return tuple(
        f"{version.get(major).number}.{version.get(minor).number}"
        for version in answer.all(enums.Tags.PROTOCOL_VERSION.value)
    )


def _member(kind: Any, number: int) -> str:
    """The name of an enumeration's member, or its number for one that is newer than PyKMIP."""
    try:
        return str(kind(number).name)
    except ValueError:
        return f"{number:#x}"
