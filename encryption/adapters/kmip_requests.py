"""Requests to a KMIP server, built and encoded by PyKMIP: payloads of operations, and the messages that carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kmip.core import attributes, enums, objects
from kmip.core.factories.attributes import AttributeFactory
from kmip.core.messages import contents, messages, payloads
from kmip.core.utils import BytearrayStream

from encryption.adapters.kmip_answers import ID_BYTES, KEY_BITS
from encryption.engine.key_server import RevocationReason

_VERSION = enums.KMIPVersion.KMIP_1_2
_USAGES = (
    enums.CryptographicUsageMask.ENCRYPT,
    enums.CryptographicUsageMask.DECRYPT,
    enums.CryptographicUsageMask.WRAP_KEY,
    enums.CryptographicUsageMask.UNWRAP_KEY,
)
_REVOCATION_CODES = {reason: enums.RevocationReasonCode[reason.name] for reason in RevocationReason}


def create(name: str, labels: Mapping[str, str]) -> Any:
    """An AES-256 key; see KeyServer.create_key."""
    make = AttributeFactory().create_attribute
    template = [
        make(enums.AttributeType.CRYPTOGRAPHIC_ALGORITHM, enums.CryptographicAlgorithm.AES),
        make(enums.AttributeType.CRYPTOGRAPHIC_LENGTH, KEY_BITS),
        make(enums.AttributeType.CRYPTOGRAPHIC_USAGE_MASK, list(_USAGES)),
        make(enums.AttributeType.NAME, ascii_text(name)),
    ]
    for index, (namespace, text) in enumerate(sorted(labels.items())):
        label = {"application_namespace": ascii_text(namespace), "application_data": ascii_text(text)}
        template.append(make(enums.AttributeType.APPLICATION_SPECIFIC_INFORMATION, label, index))
    return payloads.CreateRequestPayload(
        object_type=enums.ObjectType.SYMMETRIC_KEY,
        template_attribute=objects.TemplateAttribute(attributes=template),
    )


def activate(key_id: str) -> Any:
    return payloads.ActivateRequestPayload(attributes.UniqueIdentifier(ascii_text(key_id)))


def get(key_id: str) -> Any:
    return payloads.GetRequestPayload(unique_identifier=ascii_text(key_id), key_format_type=enums.KeyFormatType.RAW)


def revoke(key_id: str, reason: RevocationReason, message: str) -> Any:
    return payloads.RevokeRequestPayload(
        unique_identifier=attributes.UniqueIdentifier(ascii_text(key_id)),
        revocation_reason=objects.RevocationReason(
            code=_REVOCATION_CODES[reason], message=ascii_text(message) if message else None
        ),
    )


def destroy(key_id: str) -> Any:
    return payloads.DestroyRequestPayload(attributes.UniqueIdentifier(ascii_text(key_id)))


def locate(name: str | None, maximum: int | None) -> Any:
    make = AttributeFactory().create_attribute
    wanted = [make(enums.AttributeType.OBJECT_TYPE, enums.ObjectType.SYMMETRIC_KEY)]
    if name is not None:
        wanted.append(make(enums.AttributeType.NAME, ascii_text(name)))
    return payloads.LocateRequestPayload(maximum_items=maximum, attributes=wanted)


def message(operation: Any, of_each: Sequence[Any]) -> bytes:
    """One message with a request for each payload.

    Several carry their position as Unique Batch Item ID and are to be gone on with after one that failed
    (KMIP 1.2 sections 6.4 and 6.13). A single one is written as if there were no batches.
    """
    major, minor = str(_VERSION.value).split(".")
    is_many = len(of_each) > 1
    go_on = contents.BatchErrorContinuationOption(enums.BatchErrorContinuationOption.CONTINUE)
    ids = [contents.UniqueBatchItemID(position.to_bytes(ID_BYTES, "big")) for position in range(len(of_each))]
    encoded = messages.RequestMessage(
        request_header=messages.RequestHeader(
            protocol_version=contents.ProtocolVersion(int(major), int(minor)),
            batch_error_cont_option=go_on if is_many else None,
            batch_count=contents.BatchCount(len(of_each)),
        ),
        batch_items=[
            messages.RequestBatchItem(
                operation=contents.Operation(operation),
                unique_batch_item_id=item_id if is_many else None,
                request_payload=payload,
            )
            for item_id, payload in zip(ids, of_each, strict=True)
        ],
    )
    stream = BytearrayStream()
    encoded.write(stream, _VERSION)
    return bytes(stream.buffer)


def ascii_text(text: str) -> str:
    """PyKMIP writes ASCII only: other characters are escaped as in Python's text."""
    return text.encode("ascii", "backslashreplace").decode("ascii")
