"""The KMIP client: `KeyServer` over our own TLS.

PyKMIP builds the requests (`kmip_requests`) and knows the protocol's numbers; `kmip_tls` carries them, `ttlv` reads
the answers. KMIP 1.2 is spoken, which every server of the last ten years understands.

Importing PyKMIP pulls in SQLAlchemy (about 0.3 s), so import this module where keys are used, not in the web
process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from kmip.core import enums
from kmip.core.messages import payloads

from encryption.adapters import kmip_answers, kmip_requests
from encryption.adapters.kmip_batches import Batches
from encryption.adapters.kmip_requests import ascii_text
from encryption.adapters.kmip_tls import Channel, ConnectionDropped, Timeouts, client_context
from encryption.engine.key_server import (
    ClientTls,
    KeyAttributes,
    KeyNotFound,
    KeyOrder,
    KeyState,
    KmsError,
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
W = TypeVar("W")

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
        self._batches = Batches()

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
        payload = kmip_requests.create(name, labels or {})
        return self._ask(enums.Operation.CREATE, payload, read=kmip_answers.unique_identifier)

    def activate(self, key_id: str) -> None:
        self._ask(enums.Operation.ACTIVATE, kmip_requests.activate(key_id), key_id=key_id, read=kmip_answers.nothing)

    def get_key(self, key_id: str) -> Secret:
        read = partial(kmip_answers.asked_key, ascii_text(key_id))
        return self._ask(enums.Operation.GET, kmip_requests.get(key_id), key_id=key_id, read=read)

    def create_keys(self, orders: Sequence[KeyOrder]) -> tuple[str | KmsError, ...]:
        def together(part: Sequence[KeyOrder]) -> dict[int, str | KmsError]:
            of_each = [kmip_requests.create(order.name, order.labels) for order in part]
            read = [kmip_answers.unique_identifier] * len(part)
            return self._ask_together(enums.Operation.CREATE, of_each, read, [None] * len(part))

        def alone(order: KeyOrder, was_asked: bool) -> str:
            # What became of a request in a message that was not answered as it should be is not known.
            found = self.locate(name=order.name) if was_asked else ()
            return found[0] if found else self.create_key(name=order.name, labels=order.labels)

        return self._batches.ask_each(orders, together=together, alone=alone)

    def activate_keys(self, key_ids: Sequence[str]) -> tuple[KmsError | None, ...]:
        def together(part: Sequence[str]) -> dict[int, KmsError | None]:
            of_each = [kmip_requests.activate(key_id) for key_id in part]
            return self._ask_together(enums.Operation.ACTIVATE, of_each, [kmip_answers.nothing] * len(part), part)

        def alone(key_id: str, was_asked: bool) -> None:
            try:
                self.activate(key_id)
            except WrongState as exc:
                if not (was_asked and exc.state is KeyState.ACTIVE):
                    raise

        return self._batches.ask_each(key_ids, together=together, alone=alone)

    def get_keys(self, key_ids: Sequence[str]) -> tuple[Secret | KmsError, ...]:
        def together(part: Sequence[str]) -> dict[int, Secret | KmsError]:
            of_each = [kmip_requests.get(key_id) for key_id in part]
            read = [partial(kmip_answers.asked_key, ascii_text(key_id)) for key_id in part]
            return self._ask_together(enums.Operation.GET, of_each, read, part)

        return self._batches.ask_each(key_ids, together=together, alone=lambda key_id, _: self.get_key(key_id))

    def state(self, key_id: str) -> KeyState:
        return self._attributes(key_id, (enums.AttributeType.STATE,), kmip_answers.state)

    def attributes(self, key_id: str) -> KeyAttributes:
        def read(answer: Item) -> KeyAttributes:
            return kmip_answers.key_attributes(key_id, answer)

        return self._attributes(key_id, _ASKED_ATTRIBUTES, read)

    def revoke(self, key_id: str, reason: RevocationReason, message: str = "") -> None:
        payload = kmip_requests.revoke(key_id, reason, message)
        self._ask(enums.Operation.REVOKE, payload, key_id=key_id, read=kmip_answers.nothing)

    def destroy(self, key_id: str) -> None:
        self._ask(enums.Operation.DESTROY, kmip_requests.destroy(key_id), key_id=key_id, read=kmip_answers.nothing)

    def locate(self, *, name: str | None = None, maximum: int | None = None) -> tuple[str, ...]:
        def read(answer: Item) -> tuple[str, ...]:
            return tuple(item.text for item in answer.all(enums.Tags.UNIQUE_IDENTIFIER.value))

        return self._ask(enums.Operation.LOCATE, kmip_requests.locate(name, maximum), read=read)

    def rekey(self, key_id: str) -> str:
        payload = payloads.RekeyRequestPayload(unique_identifier=ascii_text(key_id))
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
        payload = payloads.GetAttributesRequestPayload(ascii_text(key_id), [name.value for name in names])
        return self._ask(enums.Operation.GET_ATTRIBUTES, payload, key_id=key_id, read=read)

    def _ask(self, operation: Any, payload: Any, *, read: Callable[[Item], T], key_id: str | None = None) -> T:
        """Send one operation; give its response payload to `read`, or raise the error that its result names."""
        answer = self._exchange(kmip_requests.message(operation, [payload]), repeatable=operation in _REPEATABLE)
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

    def _ask_together(
        self,
        operation: Any,
        of_each: Sequence[Any],
        read: Sequence[Callable[[Item], T]],
        key_ids: Sequence[str | None],
    ) -> dict[int, T | KmsError]:
        """One message with a request for each payload; what was answered as it should be, by position."""
        request = kmip_requests.message(operation, of_each)
        answer = self._exchange(request, repeatable=operation in _REPEATABLE)
        outcomes: dict[int, T | KmsError] = {}
        failures: dict[int, tuple[Any, str]] = {}
        try:
            for position, item in kmip_answers.batch_items(parse(answer), len(of_each)).items():
                reason, text = kmip_answers.failure(item)
                if item.get(enums.Tags.OPERATION.value).number != operation.value:
                    raise TtlvError("the server answers another operation")
                if reason is None:
                    outcomes[position] = read[position](item.get(enums.Tags.RESPONSE_PAYLOAD.value))
                else:
                    failures[position] = reason, text
        except TtlvError:
            # What was read before this was answered; what follows on this connection cannot be trusted.
            self.close()
        for position, (reason, text) in failures.items():
            try:
                outcomes[position] = self._refusal(operation, key_ids[position], reason, text)
            except KmsError as exc:
                outcomes[position] = exc.with_traceback(None)
        return outcomes

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

    def _refusal(self, operation: Any, key_id: str | None, reason: Any, text: str) -> KmsError:
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


def _word(operation: Any) -> str:
    return str(operation.name).lower().replace("_", " ")
