"""Reference values: their JSON form and their diff."""

import base64
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from attestation.engine.boot.components import ComponentKind
from attestation.engine.glob import BadPattern
from attestation.engine.reference import (
    AllowedAuthority,
    AllowedComponent,
    Change,
    ChangeKind,
    ImaReference,
    ReferenceValues,
    Revocations,
    diff,
)
from attestation.engine.reference_json import MalformedReference, from_json, to_json
from attestation.engine.tpm.algorithms import HashAlg

KEY = ec.derive_private_key(7, ec.SECP256R1()).public_key()
KEY_DER = KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
FULL = ReferenceValues(
    authorities=frozenset({AllowedAuthority("ab" * 32, "CN=Größe")}),
    components=frozenset(
        {
            AllowedComponent(ComponentKind.IMAGE, HashAlg.SHA256, "01" * 32, "grubx64.efi"),
            AllowedComponent(ComponentKind.FILE, HashAlg.SHA256, "02" * 32, "/vmlinuz-6.1"),
        }
    ),
    pin_configuration=True,
    command_lines=("* ro quiet",),
    revocations=Revocations(minimum=77, required=frozenset({"cd" * 32})),
    ima=ImaReference(
        allowed={"/usr/bin/true": frozenset({"sha256:" + "03" * 32, "sha1:" + "04" * 20})},
        excluded=("/var/**",),
        keys=(KEY_DER,),
        tolerate_violations=False,
    ),
)
EMPTY = ReferenceValues()


@pytest.mark.parametrize("values", [FULL, EMPTY], ids=["full", "empty"])
def test_there_and_back(values: ReferenceValues) -> None:
    text = to_json(values)
    assert from_json(text) == values
    assert to_json(from_json(text)) == text


def test_names_survive() -> None:
    assert [each.name for each in from_json(to_json(FULL)).authorities or ()] == ["CN=Größe"]


def test_equal_values_are_equal_bytes() -> None:
    again = replace(FULL, components=frozenset(sorted(FULL.components or (), key=str, reverse=True)))
    assert to_json(again) == to_json(FULL)


def test_the_form_of_a_file() -> None:
    assert json.loads(to_json(EMPTY)) == {
        "format": "bartizan-reference",
        "version": 1,
        "secure_boot": True,
        "authorities": None,
        "components": None,
        "pin_configuration": False,
        "command_lines": None,
        "revocations": {"minimum": 0, "required": []},
        "ima": None,
    }


def changed(**fields: object) -> bytes:
    return json.dumps({**json.loads(to_json(FULL)), **fields}).encode()


COMPONENT = {"kind": "file", "digest": "sha256:" + "01" * 32, "name": "x"}
IMA = {"allowed": {}, "excluded": [], "keys": [], "tolerate_violations": True}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "JSON"),
        (b"\xff", "UTF-8"),
        (b"[]", "the document as an object"),
        (b"{}", "the document as an object with exactly format"),
        (b"[" * 100_000, "JSON"),
        (b"1" * 5_000, "JSON"),
        (b'{"version": NaN}', "numbers without NaN"),
        (b'{"version": 1, "version": 1}', "each name once"),
        (changed(extra=1), "with exactly"),
        (changed(format="other"), 'format "bartizan-reference" of version 1'),
        (changed(version=2), "of version 1"),
        (changed(version=True), "of version 1"),
        (changed(secure_boot=1), "secure_boot as true or false"),
        (changed(pin_configuration=None), "pin_configuration as true or false"),
        (changed(authorities={}), "authorities as a list"),
        (changed(authorities=[{"sha256": "AB" * 32, "name": ""}]), r"authorities\[0\].sha256 as 64 lower-case"),
        (changed(authorities=[{"sha256": "ab" * 32}]), r"authorities\[0\] as an object with exactly sha256, name"),
        (changed(authorities=[{"sha256": "ab" * 32, "name": "x"}] * 2), "authorities without repetitions"),
        (changed(authorities=[{"sha256": "ab" * 32, "name": "x" * 5_000}]), "text of at most 4096"),
        (changed(authorities=[{"sha256": "ab" * 32, "name": "\ud800"}]), r"authorities\[0\].name as a text"),
        (changed(components=[{**COMPONENT, "kind": "planet"}]), r"components\[0\].kind as one of driver, image, file"),
        (changed(components=[{**COMPONENT, "digest": "sha256:01"}]), r"components\[0\].digest as a hash's name"),
        (changed(components=[{**COMPONENT, "digest": "md5:" + "01" * 16}]), r"components\[0\].digest"),
        (changed(command_lines=["x", 1]), r"command_lines\[1\] as a text"),
        (changed(revocations={"minimum": -1, "required": []}), "revocations.minimum as a number"),
        (changed(revocations={"minimum": True, "required": []}), "revocations.minimum as a number"),
        (changed(revocations={"minimum": 0, "required": ["x"]}), r"revocations.required\[0\] as 64"),
        (changed(ima={**IMA, "allowed": []}), "ima.allowed as an object"),
        (changed(ima={**IMA, "allowed": {"/x": ["sha256:x"]}}), "ima.allowed"),
        (changed(ima={**IMA, "keys": ["no base64!"]}), r"ima.keys\[0\] as base64 of a DER public key"),
        (changed(ima={**IMA, "keys": [base64.b64encode(b"no key").decode()]}), r"ima.keys\[0\]"),
    ],
)
def test_anything_else_is_malformed(text: bytes, expected: str) -> None:
    with pytest.raises(MalformedReference, match=expected):
        from_json(text)


def test_a_pattern_must_compile() -> None:
    with pytest.raises(BadPattern):
        from_json(changed(command_lines=["x\\"]))


@given(st.binary(max_size=200))
def test_any_bytes(text: bytes) -> None:
    with pytest.raises(MalformedReference):
        from_json(text)


def test_no_difference() -> None:
    assert diff(FULL, from_json(to_json(FULL))) == ()


def test_a_part_that_was_not_looked_at() -> None:
    changes = diff(EMPTY, FULL)
    assert Change(ChangeKind.CHANGED, "authorities", "authorities", "not checked", "checked") in changes
    assert Change(ChangeKind.ADDED, "authorities", "CN=Größe", after="ab" * 32) in changes
    assert diff(EMPTY, EMPTY) == ()


def test_each_part_of_a_diff() -> None:
    components = frozenset({AllowedComponent(ComponentKind.FILE, HashAlg.SHA256, "05" * 32, "/vmlinuz-6.2")})
    after = replace(
        FULL,
        secure_boot=False,
        components=components,
        command_lines=("* ro",),
        revocations=Revocations(minimum=78, required=frozenset({"cd" * 32})),
        ima=ImaReference(allowed={"/usr/bin/true": frozenset({"sha256:" + "06" * 32})}, keys=(KEY_DER,)),
    )
    kernel, new_kernel = "file sha256:" + "02" * 32, "file sha256:" + "05" * 32
    assert diff(FULL, after) == (
        Change(ChangeKind.CHANGED, "secure_boot", "secure_boot", "required", "not required"),
        Change(ChangeKind.CHANGED, "revocations", "revocations", "77", "78"),
        Change(ChangeKind.REMOVED, "components", "/vmlinuz-6.1", before=kernel),
        Change(ChangeKind.REMOVED, "components", "grubx64.efi", before="image sha256:" + "01" * 32),
        Change(ChangeKind.ADDED, "components", "/vmlinuz-6.2", after=new_kernel),
        Change(ChangeKind.REMOVED, "command_lines", "* ro quiet", before="* ro quiet"),
        Change(ChangeKind.ADDED, "command_lines", "* ro", after="* ro"),
        Change(
            ChangeKind.CHANGED,
            "ima.allowed",
            "/usr/bin/true",
            "sha1:" + "04" * 20 + ", sha256:" + "03" * 32,
            "sha256:" + "06" * 32,
        ),
        Change(ChangeKind.REMOVED, "ima.excluded", "/var/**", before="/var/**"),
        Change(ChangeKind.CHANGED, "ima.tolerate_violations", "ima.tolerate_violations", "no", "yes"),
    )
