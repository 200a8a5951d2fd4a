"""The whole life of a key, against a real PyKMIP server."""

from __future__ import annotations

import logging
import threading

import pytest

from encryption.adapters.kmip_client import KmipClient
from encryption.engine.key_server import (
    KeyNotFound,
    KeyState,
    NotPermitted,
    NotSupported,
    RevocationReason,
    WrongState,
)
from lab.kms import KmsLayout
from tests.encryption.adapters.conftest import RunningKms, serving


def test_life_of_a_key(client: KmipClient, name: str) -> None:
    key_id = client.create_key(name=name)
    assert client.state(key_id) is KeyState.PRE_ACTIVE
    client.activate(key_id)
    assert client.state(key_id) is KeyState.ACTIVE
    key = client.get_key(key_id)
    assert len(key) == 32
    assert client.get_key(key_id) == key
    assert client.locate(name=name) == (key_id,)
    client.revoke(key_id, RevocationReason.SUPERSEDED, "replaced")
    assert client.state(key_id) is KeyState.DEACTIVATED
    client.destroy(key_id)
    with pytest.raises(KeyNotFound) as caught:
        client.get_key(key_id)
    assert caught.value.key_id == key_id
    assert client.locate(name=name) == ()


def test_two_keys_differ(client: KmipClient, name: str) -> None:
    first, second = (client.create_key(name=f"{name} {index}") for index in range(2))
    assert first != second
    assert client.get_key(first) != client.get_key(second)


def test_attributes_tell_what_the_key_is_for(client: KmipClient, name: str) -> None:
    labels = {"bartizan-vm": "web01", "bartizan-cluster": "c1"}
    attributes = client.attributes(client.create_key(name=name, labels=labels))
    assert attributes.names == (name,)
    assert attributes.labels == labels
    assert (attributes.algorithm, attributes.length_bits) == ("AES", 256)
    assert attributes.usages == {"ENCRYPT", "DECRYPT", "WRAP_KEY", "UNWRAP_KEY"}
    assert attributes.created_at is not None
    assert attributes.created_at.tzinfo is not None


def test_a_name_beyond_ascii_is_escaped_and_found_again(client: KmipClient, name: str) -> None:
    key_id = client.create_key(name=f"größe {name}")
    assert client.attributes(key_id).names == (f"gr\\xf6\\xdfe {name}",)
    assert client.locate(name=f"größe {name}") == (key_id,)


def test_locate_lists_newest_first_up_to_a_maximum(client: KmipClient, name: str) -> None:
    made = {client.create_key(name=f"{name} {index}") for index in range(3)}
    assert made <= set(client.locate())
    assert len(client.locate(maximum=2)) == 2


def test_compromised_key(client: KmipClient, name: str) -> None:
    key_id = client.create_key(name=name)
    client.revoke(key_id, RevocationReason.KEY_COMPROMISE)
    assert client.state(key_id) is KeyState.COMPROMISED


def test_wrong_states_are_named(client: KmipClient, name: str) -> None:
    key_id = client.create_key(name=name)
    with pytest.raises(WrongState) as caught:
        client.revoke(key_id, RevocationReason.SUPERSEDED)
    assert caught.value.state is KeyState.PRE_ACTIVE
    client.activate(key_id)
    with pytest.raises(WrongState) as caught:
        client.activate(key_id)
    assert caught.value.code == "kms_wrong_key_state"
    with pytest.raises(WrongState) as caught:
        client.destroy(key_id)
    assert caught.value.state is KeyState.ACTIVE
    assert "destroy" in str(caught.value)


@pytest.mark.parametrize("key_id", ["999999", "no-such-key", "größe"])
def test_unknown_key(client: KmipClient, key_id: str) -> None:
    for call in (client.get_key, client.state, client.attributes, client.activate, client.destroy):
        with pytest.raises(KeyNotFound):
            call(key_id)


def test_rekey_is_refused_by_a_server_without_it(client: KmipClient, name: str) -> None:
    with pytest.raises(NotSupported):
        client.rekey(client.create_key(name=name))


def test_query(client: KmipClient) -> None:
    info = client.query()
    assert "PyKMIP" in info.vendor
    assert "1.2" in info.versions
    assert {"CREATE", "GET", "ACTIVATE", "DESTROY"} <= info.operations


def test_another_console_reads_a_key_but_cannot_take_it_away(
    kms_server: RunningKms, client: KmipClient, name: str
) -> None:
    key_id = client.create_key(name=name)
    client.activate(key_id)
    with kms_server.client("another console") as other:
        assert other.get_key(key_id) == client.get_key(key_id)
        assert other.locate(name=name) == (key_id,)
        with pytest.raises(NotPermitted) as caught:
            other.revoke(key_id, RevocationReason.SUPERSEDED)
        assert caught.value.code == "kms_not_permitted"
    assert client.state(key_id) is KeyState.ACTIVE


def test_two_servers_share_one_database(
    kms_server: RunningKms, kms_layout: KmsLayout, client: KmipClient, name: str
) -> None:
    with serving(kms_layout, "second") as second, second.client() as replica:
        key_id = client.create_key(name=name)
        assert replica.get_key(key_id) == client.get_key(key_id)
        replica.activate(key_id)
        assert client.state(key_id) is KeyState.ACTIVE
        assert second.port != kms_server.port


def test_no_key_in_any_log(
    kms_layout: KmsLayout, client: KmipClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for logger in list(logging.Logger.manager.loggerDict):
            if logger.startswith("kmip"):
                caplog.set_level(logging.DEBUG, logger=logger)
        with serving(kms_layout, "quiet") as server, server.client() as own:
            key_id = own.create_key(name=name)
            key = own.get_key(key_id)
            with pytest.raises(KeyNotFound) as caught:
                own.get_key("999999")
    shown = caplog.text + repr(key) + repr(caught.value) + (kms_layout.state / "quiet.log").read_text()
    # Any eight bytes of the key, as hex or as Python prints bytes.
    for start in range(0, 32, 8):
        part = key.reveal()[start : start + 8]
        assert part.hex() not in shown.lower()
        assert repr(part)[2:-1] not in shown


def test_a_client_refuses_a_second_thread(client: KmipClient, kms_server: RunningKms) -> None:
    client.query()
    with client._busy:
        problems: list[str] = []

        def use() -> None:
            try:
                client.query()
            except RuntimeError as exc:
                problems.append(str(exc))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert problems == ["internal error: one KmipClient used by two threads"]
