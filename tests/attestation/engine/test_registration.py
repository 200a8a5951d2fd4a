"""What agents of both dialects register is read; anything else is refused, whatever it is."""

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from attestation.engine.errors import Malformed
from attestation.engine.registration import (
    MAX_BODY_BYTES,
    MalformedRegistration,
    is_agent_id,
    parse_auth_tag,
    parse_offer,
)
from tests.attestation.emulator import sized
from tests.attestation.offers import Machine, body, self_signed

MACHINE = Machine()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def test_python_dialect() -> None:
    offer = parse_offer(body(MACHINE.python_offer()))
    assert offer.ek.raw == MACHINE.ek_area
    assert offer.ak.raw == MACHINE.signer.ak_area
    assert (offer.contact_host, offer.contact_port) == ("192.0.2.10", 9002)
    assert len(offer.ek_certificates) == 1
    assert offer.mtls_certificate == MACHINE.tls


def test_rust_dialect() -> None:
    offer = parse_offer(body(MACHINE.rust_offer(port=19002, ip="kvm01.example.org")))
    assert offer.ek.raw == MACHINE.ek_area
    assert len(offer.ek_certificates) == 2
    assert offer.ek_certificate_pem.count("BEGIN CERTIFICATE") == 2
    assert (offer.contact_host, offer.contact_port) == ("kvm01.example.org", 19002)


@pytest.mark.parametrize("none", ["", None, "emulator"])
def test_a_tpm_without_certificate(none: str | None) -> None:
    assert parse_offer(body(MACHINE.rust_offer(ekcert=none))).ek_certificates == ()
    with pytest.raises(MalformedRegistration, match="ek_tpm, or its certificate"):
        parse_offer(body(MACHINE.python_offer(ekcert=none)))


def test_an_agent_that_names_no_address() -> None:
    offer = parse_offer(body(MACHINE.python_offer(ip=None, port=None)))
    assert (offer.contact_host, offer.contact_port) == ("", 9002)


def _with_attributes(attributes: int) -> str:
    area = bytearray(MACHINE.signer.ak_area)
    area[4:8] = attributes.to_bytes(4, "big")
    return base64.b64encode(sized(bytes(area))).decode()


WEAK_AK = base64.b64encode(sized(MACHINE.signer.ak_area.replace(b"\0\x18\0\x0b", b"\0\x18\0\x04"))).decode()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"aik_tpm": _with_attributes(0x00040072)}, "not restricted"),
        ({"aik_tpm": _with_attributes(0x00050070)}, "another TPM"),
        ({"aik_tpm": WEAK_AK}, "sha1"),
        ({"aik_tpm": "%%%"}, "base64"),
        ({"aik_tpm": ""}, "size prefix"),
        ({"aik_tpm": 7}, "aik_tpm as text"),
        ({"aik_tpm": base64.b64encode(sized(MACHINE.ek_area)).decode()}, "attestation key, but"),
        ({"ek_tpm": base64.b64encode(sized(MACHINE.signer.ak_area)).decode()}, "endorsement key, but"),
        ({"ek_tpm": base64.b64encode(sized(Machine().ek_area)).decode()}, "certificate of ek_tpm"),
        ({"ekcert": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "certificate"),
        ({"ekcert": "AAAA"}, "certificate"),
        ({"ekcert": {"a": 1}}, "ekcert as text"),
        ({"mtls_cert": "disabled"}, "without TLS"),
        ({"mtls_cert": None}, "without TLS"),
        ({"mtls_cert": "-----BEGIN \u00e9"}, "ASCII"),
        ({"ip": "::"}, "one host"),
        ({"ip": "224.0.0.1"}, "one host"),
        ({"ip": "1.2.3"}, "address or a host name"),
        ({"ip": "a b"}, "address or a host name"),
        ({"ip": "host\n"}, "address or a host name"),
        ({"port": "70000"}, "port"),
        ({"port": 0}, "port"),
        ({"port": True}, "port"),
        ({"port": 9.5}, "port"),
        ({"port": "9002\n"}, "port"),
        ({"port": "\u0669"}, "port"),
    ],
)
def test_what_cannot_be_enrolled_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(Malformed, match=said):
        parse_offer(body(MACHINE.rust_offer(**changed)))


def test_two_tls_certificates_are_refused() -> None:
    pem = self_signed(ec.generate_private_key(ec.SECP256R1()), "other").public_bytes(Encoding.PEM).decode()
    with pytest.raises(MalformedRegistration, match="one certificate"):
        parse_offer(body(MACHINE.python_offer(mtls_cert=pem + pem)))


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"\xff", b"{", b"[" * 5000, b'{"aik_tpm": 1' + b"0" * 5000 + b"}"]
)
def test_no_object(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_offer(raw)
    with pytest.raises(MalformedRegistration):
        parse_auth_tag(raw)


def test_a_body_that_is_too_long() -> None:
    with pytest.raises(MalformedRegistration, match="at most"):
        parse_offer(body({**MACHINE.python_offer(), "more": "x" * MAX_BODY_BYTES}))


@given(JSON)
def test_hostile_json_is_refused(document: Any) -> None:
    with pytest.raises(Malformed):
        parse_offer(json.dumps(document).encode())


@given(st.sampled_from(sorted(MACHINE.rust_offer())), JSON)
def test_a_hostile_field_is_refused_or_harmless(name: str, value: Any) -> None:
    try:
        offer = parse_offer(body(MACHINE.rust_offer(**{name: value})))
    except Malformed:
        return
    assert offer.ak.raw == MACHINE.signer.ak_area
    assert 1 <= offer.contact_port <= 65535


@given(st.sampled_from(["aik_tpm", "ek_tpm", "ekcert"]), st.integers(0, 700), st.integers(1, 255))
def test_a_changed_byte_never_gives_another_error(name: str, place: int, change: int) -> None:
    offer = MACHINE.rust_offer(ekcert=MACHINE.python_offer()["ekcert"])
    raw = bytearray(base64.b64decode(offer[name]))
    raw[place % len(raw)] ^= change
    with suppress(Malformed):
        parse_offer(body({**offer, name: base64.b64encode(bytes(raw)).decode()}))


@pytest.mark.parametrize("text", ["a" * 96, "0" * 96])
def test_auth_tag(text: str) -> None:
    assert parse_auth_tag(body({"auth_tag": text})) == text


@pytest.mark.parametrize("text", ["", "a" * 95, "A" * 96, "g" * 96, "a" * 96 + "\n", None, 1])
def test_what_is_no_auth_tag(text: Any) -> None:
    with pytest.raises(MalformedRegistration):
        parse_auth_tag(body({"auth_tag": text}))


def test_agent_ids() -> None:
    assert is_agent_id("d432fbb3-d2f1-4a97-9ef7-75bd81c00000")
    assert is_agent_id("kvm01.example_org")
    for text in ("", ".", "..", "-a", "a/b", "a b", "a\n", "\u00e9", "a" * 129):
        assert not is_agent_id(text), text
