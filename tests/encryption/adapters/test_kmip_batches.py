"""Many keys at once: messages of many requests to a real server, and what becomes of servers that do not take them."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from kmip.core import attributes, enums
from kmip.core.messages import contents, messages, payloads
from kmip.core.utils import BytearrayStream

from encryption.adapters.kmip_batches import MESSAGE_REQUESTS, Batches
from encryption.adapters.kmip_client import KmipClient
from encryption.adapters.kmip_tls import Channel, ConnectionDropped, Timeouts
from encryption.engine.key_server import (
    KeyNotFound,
    KeyOrder,
    KeyState,
    KmsError,
    KmsUnreachable,
    KmsUntrusted,
    ServerAddress,
    TrustReason,
    WrongState,
)
from encryption.engine.secret import Secret
from lab import kms
from lab.kms import KmsLayout
from tests.encryption.adapters.conftest import client_tls
from tests.encryption.adapters.fake_server import fake_server, general_failure, read_request, tls_context

ADDRESS = ServerAddress("memory")


@pytest.fixture
def messages_sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    sent: list[bytes] = []
    exchange = Channel.exchange

    def noted(channel: Channel, request: bytes, timeout: float) -> bytes:
        sent.append(request)
        return exchange(channel, request, timeout)

    monkeypatch.setattr(Channel, "exchange", noted)
    return sent


def orders(name: str, count: int) -> list[KeyOrder]:
    return [KeyOrder(f"{name} {index}", {"bartizan": f"vm {index}"}) for index in range(count)]


def ids(outcomes: Sequence[str | KmsError]) -> list[str]:
    assert all(isinstance(outcome, str) for outcome in outcomes), outcomes
    return [str(outcome) for outcome in outcomes]


def test_each_key_is_made_for_its_order_activated_and_fetched(
    client: KmipClient, name: str, messages_sent: list[bytes]
) -> None:
    count = MESSAGE_REQUESTS + 3
    made = ids(client.create_keys(orders(name, count)))
    assert client.activate_keys(made) == (None,) * count
    keys = client.get_keys(made)
    assert len(messages_sent) == 6
    assert len(set(made)) == count == len({key.reveal() for key in keys if isinstance(key, Secret)})
    for index in (0, MESSAGE_REQUESTS - 1, count - 1):
        told = client.attributes(made[index])
        assert (told.names, told.labels) == ((f"{name} {index}",), {"bartizan": f"vm {index}"})
        assert (told.state, client.get_key(made[index])) == (KeyState.ACTIVE, keys[index])


def test_nothing_wanted_is_not_asked_for(client: KmipClient, messages_sent: list[bytes]) -> None:
    assert client.create_keys([]) == client.activate_keys([]) == client.get_keys([]) == ()
    assert messages_sent == []


def test_what_fails_stands_in_its_place(client: KmipClient, name: str, messages_sent: list[bytes]) -> None:
    first, last = ids(client.create_keys(orders(name, 2)))
    client.activate(last)
    key, missing, other = client.get_keys([first, "999999", last])
    assert (key, other) == (client.get_key(first), client.get_key(last))
    assert isinstance(missing, KeyNotFound) and missing.key_id == "999999"
    fine, absent, active = client.activate_keys([first, "999999", last])
    assert fine is None and isinstance(absent, KeyNotFound)
    assert isinstance(active, WrongState) and active.state is KeyState.ACTIVE
    before = len(messages_sent)
    client.get_keys([first, last])  # a refusal of one request is none of such messages
    assert len(messages_sent) == before + 1


@dataclass
class OneByOne:
    """A key server that takes one request in a message; `refuse` is what it does with others."""

    refuse: Callable[[ssl.SSLSocket, OneByOne, messages.RequestMessage], None]
    names: dict[str, str] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)
    refused: int = 0

    def handle(self, connection: ssl.SSLSocket, _: int) -> None:
        while raw := read_request(connection):
            request = messages.RequestMessage()
            request.read(BytearrayStream(raw))
            if len(request.batch_items) > 1:
                self.refused += 1
                self.refuse(connection, self, request)
                if self.refuse is hang_up:
                    return
            else:
                connection.sendall(answer([(request.batch_items[0], self.done(request.batch_items[0]))]))

    def done(self, item: messages.RequestBatchItem) -> object:
        match item.operation.value:
            case enums.Operation.CREATE:
                given = item.request_payload.template_attribute.attributes
                (name,) = (one.attribute_value for one in given if one.attribute_name.value == "Name")
                key_id = f"key-{len(self.names)}"
                self.names[key_id] = name.name_value.value
                kind = enums.ObjectType.SYMMETRIC_KEY
                return payloads.CreateResponsePayload(object_type=kind, unique_identifier=key_id)
            case enums.Operation.LOCATE:
                (name,) = (
                    one.attribute_value for one in item.request_payload.attributes if one.attribute_name.value == "Name"
                )
                found = [key_id for key_id, known in self.names.items() if known == name.name_value.value]
                return payloads.LocateResponsePayload(unique_identifiers=found)
            case enums.Operation.ACTIVATE:
                key_id = item.request_payload.unique_identifier.value
                self.active.add(key_id)
                return payloads.ActivateResponsePayload(attributes.UniqueIdentifier(key_id))
            case _:
                raise AssertionError(item.operation)


def answer(results: Sequence[tuple[messages.RequestBatchItem, object]]) -> bytes:
    message = messages.ResponseMessage(
        response_header=messages.ResponseHeader(
            protocol_version=contents.ProtocolVersion(1, 2),
            time_stamp=contents.TimeStamp(1),
            batch_count=contents.BatchCount(len(results)),
        ),
        batch_items=[
            messages.ResponseBatchItem(
                operation=item.operation,
                unique_batch_item_id=item.unique_batch_item_id,
                result_status=contents.ResultStatus(enums.ResultStatus.SUCCESS),
                response_payload=payload,
            )
            for item, payload in results
        ],
    )
    stream = BytearrayStream()
    message.write(stream, enums.KMIPVersion.KMIP_1_2)
    return bytes(stream.buffer)


def hang_up(connection: ssl.SSLSocket, server: OneByOne, request: messages.RequestMessage) -> None:
    pass


def say_no(connection: ssl.SSLSocket, server: OneByOne, request: messages.RequestMessage) -> None:
    connection.sendall(general_failure())


def do_the_first(connection: ssl.SSLSocket, server: OneByOne, request: messages.RequestMessage) -> None:
    item = request.batch_items[0]
    connection.sendall(answer([(item, server.done(item))]))


def do_all_and_say_no(connection: ssl.SSLSocket, server: OneByOne, request: messages.RequestMessage) -> None:
    """As one whose answer would be larger than it may send."""
    for item in request.batch_items:
        server.done(item)
    connection.sendall(general_failure())


def do_all_and_mix_up(connection: ssl.SSLSocket, server: OneByOne, request: messages.RequestMessage) -> None:
    """All results under one position."""
    first = request.batch_items[0]
    connection.sendall(answer([(first, server.done(item)) for item in request.batch_items]))


@pytest.mark.parametrize("refuse", [hang_up, say_no, do_the_first, do_all_and_say_no, do_all_and_mix_up])
def test_a_server_that_takes_one_request_in_a_message_is_asked_one_by_one(
    kms_layout: KmsLayout,
    tmp_path_factory: pytest.TempPathFactory,
    refuse: Callable[[ssl.SSLSocket, OneByOne, messages.RequestMessage], None],
) -> None:
    issued = kms._own_ca(kms_layout).issue("localhost", dns=["localhost"], server=True)
    server = OneByOne(refuse)
    context = tls_context(tmp_path_factory.mktemp("one"), issued)
    tls = client_tls((kms_layout.ca / "ca-cert.pem").read_bytes(), kms.issue_client(kms_layout, "console"))
    with fake_server(context, server.handle) as address, KmipClient(address, tls, Timeouts(5, 10)) as client:
        made = ids(client.create_keys(orders("one", 5)))
        # Each key once, whatever the server had made of the message, and under its own name.
        assert [server.names[key_id] for key_id in made] == [f"one {index}" for index in range(5)]
        assert len(server.names) == 5
        assert client.activate_keys(made) == (None,) * 5 and server.active == set(made)
        assert server.refused == 1, "it is remembered"


def together(found: Mapping[int, str | KmsError]) -> Callable[[Sequence[str]], Mapping[int, str | KmsError]]:
    return lambda part: found


def lost(error: KmsError) -> Callable[[Sequence[str]], Mapping[int, str | KmsError]]:
    def ask(part: Sequence[str]) -> Mapping[int, str | KmsError]:
        raise error

    return ask


def alone(one: str, was_asked: bool) -> str:
    return f"{one} alone"


def unknown(outcomes: Sequence[object]) -> list[bool]:
    assert all(isinstance(one, KmsUnreachable) for one in outcomes), outcomes
    return [one.outcome_unknown for one in outcomes if isinstance(one, KmsUnreachable)]


def test_a_message_without_an_answer_leaves_its_own_outcomes_open_and_no_others() -> None:
    batches, wanted = Batches(), [str(number) for number in range(2 * MESSAGE_REQUESTS + 1)]
    answers: Iterator[Callable[[Sequence[str]], Mapping[int, str | KmsError]]] = iter(
        [
            together(dict.fromkeys(range(MESSAGE_REQUESTS), "made")),
            lost(KmsUnreachable(ADDRESS, "no answer in time", outcome_unknown=True)),
        ]
    )
    outcomes = batches.ask_each(wanted, together=lambda part: next(answers)(part), alone=alone)
    assert outcomes[:MESSAGE_REQUESTS] == ("made",) * MESSAGE_REQUESTS
    assert unknown(outcomes[MESSAGE_REQUESTS:]) == [True] * MESSAGE_REQUESTS + [False]


def test_a_server_that_took_such_messages_and_hangs_up_is_lost() -> None:
    batches = Batches()
    assert batches.ask_each(["a", "b"], together=together({0: "1", 1: "2"}), alone=alone) == ("1", "2")
    dropped = ConnectionDropped(ADDRESS, "closed the connection", outcome_unknown=True)
    assert unknown(batches.ask_each(["a", "b"], together=lost(dropped), alone=alone)) == [True, True]


def test_lost_while_asked_one_by_one_all_that_were_in_a_message_before_stay_open() -> None:
    def first_only(one: str, was_asked: bool) -> str:
        if one != "a":
            raise KmsUnreachable(ADDRESS, "refuses the connection")
        return one

    outcomes = Batches().ask_each(["a", "b", "c"], together=together({}), alone=first_only)
    assert outcomes[0] == "a" and unknown(outcomes[1:]) == [True, True]


def test_a_server_that_does_not_let_the_console_in_is_asked_once() -> None:
    error = KmsUntrusted(ADDRESS, TrustReason.CLIENT_CA_UNKNOWN)
    wanted = [str(number) for number in range(MESSAGE_REQUESTS + 2)]
    assert Batches().ask_each(wanted, together=lost(error), alone=alone) == (error,) * len(wanted)
    assert error.__traceback__ is None, "a failure that is kept holds no frames"
