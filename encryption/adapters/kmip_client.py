"""The KMIP client: `KeyServer` over our own TLS. The only file that imports PyKMIP.

PyKMIP builds the requests and knows the protocol's numbers; `kmip_tls` carries them, `ttlv` reads the
answers. KMIP 1.2 is spoken, which every server of the last ten years understands.

Importing PyKMIP pulls in SQLAlchemy (about 0.3 s), so import this module where keys are used, not in the web
process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from kmip.core import attributes, enums, objects
from kmip.core.factories.attributes import AttributeFactory
from kmip.core.messages import contents, messages, payloads
from kmip.core.utils import BytearrayStream

from encryption.adapters import kmip_answers
from encryption.adapters.kmip_answers import KEY_BITS
from encryption.adapters.kmip_tls import Channel, ConnectionDropped, Timeouts, client_context
from encryption.engine.key_server import (
    ClientTls,
    KeyAttributes,
    KeyNotFound,
    KeyState,
    KmsProtocolError,
    KmsUntrusted,
    NotPermitted,
    NotSupported,
    RevocationReason,
    ServerAddress,
    ServerInfo,
    TrustReason,
    WrongState,
)
from encryption.engine.secret import Secret
from encryption.engine.ttlv import Item, TtlvError, parse

T = TypeVar("T")

_VERSION = enums.KMIPVersion.KMIP_1_2
_USAGES = (
    enums.CryptographicUsageMask.ENCRYPT,
    enums.CryptographicUsageMask.DECRYPT,
    enums.CryptographicUsageMask.WRAP_KEY,
    enums.CryptographicUsageMask.UNWRAP_KEY,
)
_ASKED_ATTRIBUTES = (
    enums.AttributeType.NAME,
    enums.AttributeType.STATE,
    enums.AttributeType.CRYPTOGRAPHIC_ALGORITHM,
    enums.AttributeType.CRYPTOGRAPHIC_LENGTH,
    enums.AttributeType.CRYPTOGRAPHIC_USAGE_MASK,
    enums.AttributeType.INITIAL_DATE,
    enums.AttributeType.ACTIVATION_DATE,
    enums.AttributeType.DEACTIVATION_DATE,
    enums.AttributeType.APPLICATION_SPECIFIC_INFORMATION,
)
_REVOCATION_CODES = {reason: enums.RevocationReasonCode[reason.name] for reason in RevocationReason}

# Requests that change nothing may be sent a second time after the connection broke.
_REPEATABLE = {
    enums.Operation.GET,
    enums.Operation.GET_ATTRIBUTES,
    enums.Operation.LOCATE,
    enums.Operation.QUERY,
    enums.Operation.DISCOVER_VERSIONS,
}
_NOT_FOUND = {
    enums.ResultReason.ITEM_NOT_FOUND,
    enums.ResultReason.OBJECT_NOT_FOUND,
    enums.ResultReason.OBJECT_DESTROYED,
}
_NOT_SUPPORTED = {enums.ResultReason.OPERATION_NOT_SUPPORTED, enums.ResultReason.FEATURE_NOT_SUPPORTED}
# What servers answer both to a client without the right and to an operation that the key's state rules out.
_REFUSED = {
    enums.ResultReason.PERMISSION_DENIED,
    enums.ResultReason.ILLEGAL_OPERATION,
    enums.ResultReason.NOT_AUTHORISED,
    enums.ResultReason.WRONG_KEY_LIFECYCLE_STATE,
}
# States from which an operation is possible (KMIP 1.2 section 3.22, figure 1).
_ALLOWED_STATES = {
    enums.Operation.ACTIVATE: {KeyState.PRE_ACTIVE},
    enums.Operation.REVOKE: {KeyState.ACTIVE},
    enums.Operation.DESTROY: {KeyState.PRE_ACTIVE, KeyState.DEACTIVATED, KeyState.COMPROMISED},
}


class KmipClient:
    """One connection to one KMIP server, opened at the first request and reused until `close`.

    Not for sharing between threads: one client each. A connection that the server dropped while idle is
    replaced before the next request is sent. When it breaks after that, only a request that changes nothing
    is sent again, once.
    """

    def __init__(self, address: ServerAddress, tls: ClientTls, timeouts: Timeouts | None = None) -> None:
        """Raises KmsUntrusted when the PEM of `tls` cannot be used; connects to nothing yet."""
        self._address = address
        self._timeouts = timeouts or Timeouts()
        self._context = client_context(address, tls)
        self._channel: Channel | None = None
        self._busy = threading.Lock()

    @property
    def address(self) -> ServerAddress:
        return self._address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel = None

    def create_key(self, *, name: str, labels: Mapping[str, str] | None = None) -> str:
        """See KeyServer.create_key. PyKMIP writes ASCII only: other characters are escaped as `\\u....`."""
        make = AttributeFactory().create_attribute
        template = [
            make(enums.AttributeType.CRYPTOGRAPHIC_ALGORITHM, enums.CryptographicAlgorithm.AES),
            make(enums.AttributeType.CRYPTOGRAPHIC_LENGTH, KEY_BITS),
            make(enums.AttributeType.CRYPTOGRAPHIC_USAGE_MASK, list(_USAGES)),
            make(enums.AttributeType.NAME, _ascii(name)),
        ]
        for index, (namespace, text) in enumerate(sorted((labels or {}).items())):
            label = {"application_namespace": _ascii(namespace), "application_data": _ascii(text)}
            template.append(make(enums.AttributeType.APPLICATION_SPECIFIC_INFORMATION, label, index))
        payload = payloads.CreateRequestPayload(
            object_type=enums.ObjectType.SYMMETRIC_KEY,
            template_attribute=objects.TemplateAttribute(attributes=template),
        )
        return self._ask(enums.Operation.CREATE, payload, read=kmip_answers.unique_identifier)

    def activate(self, key_id: str) -> None:
        payload = payloads.ActivateRequestPayload(attributes.UniqueIdentifier(_ascii(key_id)))
        self._ask(enums.Operation.ACTIVATE, payload, key_id=key_id, read=kmip_answers.nothing)

    def get_key(self, key_id: str) -> Secret:
        payload = payloads.GetRequestPayload(unique_identifier=_ascii(key_id), key_format_type=enums.KeyFormatType.RAW)

        def read(answer: Item) -> Secret:
            # Another key than the one asked for would open nothing, or worse, wrap secrets for the wrong one.
            if kmip_answers.unique_identifier(answer) != _ascii(key_id):
                raise TtlvError("the server answers with another key")
            return kmip_answers.key_material(answer)

        return self._ask(enums.Operation.GET, payload, key_id=key_id, read=read)

    def state(self, key_id: str) -> KeyState:
        return self._attributes(key_id, (enums.AttributeType.STATE,), kmip_answers.state)

    def attributes(self, key_id: str) -> KeyAttributes:
        def read(answer: Item) -> KeyAttributes:
            return kmip_answers.key_attributes(key_id, answer)

        return self._attributes(key_id, _ASKED_ATTRIBUTES, read)

    def revoke(self, key_id: str, reason: RevocationReason, message: str = "") -> None:
        payload = payloads.RevokeRequestPayload(
            unique_identifier=attributes.UniqueIdentifier(_ascii(key_id)),
            revocation_reason=objects.RevocationReason(
                code=_REVOCATION_CODES[reason], message=_ascii(message) if message else None
            ),
        )
        self._ask(enums.Operation.REVOKE, payload, key_id=key_id, read=kmip_answers.nothing)

    def destroy(self, key_id: str) -> None:
        payload = payloads.DestroyRequestPayload(attributes.UniqueIdentifier(_ascii(key_id)))
        self._ask(enums.Operation.DESTROY, payload, key_id=key_id, read=kmip_answers.nothing)

    def locate(self, *, name: str | None = None, maximum: int | None = None) -> tuple[str, ...]:
        make = AttributeFactory().create_attribute
        wanted = [make(enums.AttributeType.OBJECT_TYPE, enums.ObjectType.SYMMETRIC_KEY)]
        if name is not None:
            wanted.append(make(enums.AttributeType.NAME, _ascii(name)))
        payload = payloads.LocateRequestPayload(maximum_items=maximum, attributes=wanted)

        def read(answer: Item) -> tuple[str, ...]:
            return tuple(item.text for item in answer.all(enums.Tags.UNIQUE_IDENTIFIER.value))

        return self._ask(enums.Operation.LOCATE, payload, read=read)

    def rekey(self, key_id: str) -> str:
        payload = payloads.RekeyRequestPayload(unique_identifier=_ascii(key_id))
        return self._ask(enums.Operation.REKEY, payload, key_id=key_id, read=kmip_answers.unique_identifier)

    def query(self) -> ServerInfo:
        functions = [enums.QueryFunction.QUERY_OPERATIONS, enums.QueryFunction.QUERY_SERVER_INFORMATION]
        vendor, operations = self._ask(
            enums.Operation.QUERY, payloads.QueryRequestPayload(functions), read=kmip_answers.query_facts
        )
        try:
            versions = self._ask(
                enums.Operation.DISCOVER_VERSIONS,
                payloads.DiscoverVersionsRequestPayload(),
                read=kmip_answers.versions,
            )
        except NotSupported:  # came with KMIP 1.1
            versions = ()
        return ServerInfo(vendor, versions, operations)

    def _attributes(self, key_id: str, names: tuple[Any, ...], read: Callable[[Item], T]) -> T:
        payload = payloads.GetAttributesRequestPayload(_ascii(key_id), [name.value for name in names])
        return self._ask(enums.Operation.GET_ATTRIBUTES, payload, key_id=key_id, read=read)

    def _ask(self, operation: Any, payload: Any, *, read: Callable[[Item], T], key_id: str | None = None) -> T:
        """Send one operation; give its response payload to `read`, or raise the error that its result names."""
        answer = self._exchange(_encoded(operation, payload), repeatable=operation in _REPEATABLE)
        # Errors are raised outside of the handler: a parser's traceback would keep frames that hold the
        # answer.
        try:
            item = kmip_answers.batch_item(parse(answer))
            reason, text = kmip_answers.failure(item)
            if reason is None:
                if item.get(enums.Tags.OPERATION.value).number != operation.value:
                    raise TtlvError("the server answers another operation")
                return read(item.get(enums.Tags.RESPONSE_PAYLOAD.value))
        except TtlvError as exc:
            problem = str(exc)
        else:
            raise self._refusal(operation, key_id, reason, text)
        # What follows on this connection cannot be trusted to be the answer to what is asked.
        self.close()
        raise KmsProtocolError(self._address, f"unreadable answer to {_word(operation)}: {problem}")

    def _exchange(self, request: bytes, *, repeatable: bool) -> bytes:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("internal error: one KmipClient used by two threads")
        try:
            if self._channel and self._channel.is_stale():
                self.close()
            reused = self._channel is not None
            try:
                return self._exchange_once(request)
            except ConnectionDropped:
                # The server may have hung up between the check and the request. A create that it did carry
                # out must not be carried out twice, so only what changes nothing is sent again.
                if not (reused and repeatable):
                    raise
            return self._exchange_once(request)
        finally:
            self._busy.release()

    def _exchange_once(self, request: bytes) -> bytes:
        if self._channel is None:
            self._channel = Channel.connect(self._address, self._context, self._timeouts.connect)
        done = False
        try:
            answer = self._channel.exchange(request, self._timeouts.request)
            done = True
            return answer
        finally:
            # After any failure the place in the stream is unknown: a late answer must never meet the next
            # request.
            if not done:
                self.close()

    def _refusal(self, operation: Any, key_id: str | None, reason: Any, text: str) -> Exception:
        """Name a failure that the server reported."""
        if reason in _NOT_FOUND and key_id is not None:
            return KeyNotFound(self._address, key_id)
        if reason in _NOT_SUPPORTED:
            return NotSupported(self._address, _word(operation))
        if reason is enums.ResultReason.AUTHENTICATION_NOT_SUCCESSFUL:
            return KmsUntrusted(self._address, TrustReason.CLIENT_CERTIFICATE_REFUSED)
        if reason in _REFUSED:
            if key_id is None or operation not in _ALLOWED_STATES:
                return NotPermitted(self._address, _word(operation), key_id)
            # Servers use the same reasons for a missing right and for a wrong state; the state tells them
            # apart.
            try:
                state = self.state(key_id)
            except (KeyNotFound, NotPermitted):
                return NotPermitted(self._address, _word(operation), key_id)
            if state not in _ALLOWED_STATES[operation]:
                return WrongState(self._address, _word(operation), key_id, state)
            return NotPermitted(self._address, _word(operation), key_id)
        return KmsProtocolError(self._address, f"{_word(operation)} failed: {text}")


def _encoded(operation: Any, payload: Any) -> bytes:
    major, minor = str(_VERSION.value).split(".")
    message = messages.RequestMessage(
        request_header=messages.RequestHeader(
            protocol_version=contents.ProtocolVersion(int(major), int(minor)),
            batch_count=contents.BatchCount(1),
        ),
        batch_items=[messages.RequestBatchItem(operation=contents.Operation(operation), request_payload=payload)],
    )
    stream = BytearrayStream()
    message.write(stream, _VERSION)
    return bytes(stream.buffer)


def _word(operation: Any) -> str:
    return str(operation.name).lower().replace("_", " ")


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")
