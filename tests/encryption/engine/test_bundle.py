"""Manifests of exported VMs: what is written is read, and nothing else is."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encryption.engine.bundle import (
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    BadBundle,
    BundleFile,
    KeyPlace,
    Manifest,
    Role,
    from_json,
    refuse_backing,
    to_json,
)

ID = UUID("6c1f2a54-0f0b-4a55-9d0c-2d5e6b7a8c90")
DIGEST = "ab" * 32
DEFINITION = BundleFile("definition.xml", Role.DEFINITION, "", 10, DIGEST, is_encrypted=False)
DISK = BundleFile("vda.luks", Role.DISK, "vda", 4096, DIGEST, is_encrypted=True)
WHOLE = Manifest(
    vm_uuid=ID, vm_name="app-01", console="console.example", made_at=datetime(2026, 1, 2, tzinfo=UTC), made_by="alice",
    is_clear=False, keys=KeyPlace(ID, "KMS", "7"), files=(DEFINITION, DISK),
)  # fmt: skip


def told(**changes: Any) -> bytes:
    return json.dumps(json.loads(to_json(WHOLE)) | changes).encode()


def with_file(**changes: Any) -> bytes:
    root = json.loads(to_json(WHOLE))
    root["files"][1] |= changes
    return json.dumps(root).encode()


def test_what_is_written_is_read() -> None:
    assert from_json(to_json(WHOLE)) == WHOLE
    plain = replace(WHOLE, is_clear=True, keys=None, files=(DEFINITION, replace(DISK, is_encrypted=False)))
    assert from_json(to_json(plain)) == plain
    assert WHOLE.size == 4106 and WHOLE.file(Role.DISK, "vda") == DISK and WHOLE.file(Role.NVRAM) is None


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(BadBundle):
        from_json(data)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
), st.sampled_from(sorted(json.loads(to_json(WHOLE)))))  # fmt: skip
def test_any_value_in_any_place_is_refused_or_read_as_itself(value: Any, name: str) -> None:
    try:
        found = from_json(told(**{name: value}))
    except BadBundle:
        return
    assert json.loads(to_json(found))[name] == value or name == "made_at"


NAMES = [
    "../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "-rf", "a\x00b", "a\nb", "manifest.json", "x" * 121,
    "definition.xml", "DEFINITION.XML", "\u202evda", "vda.luks ",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_plain_file_names(name: str) -> None:
    with pytest.raises(BadBundle):
        from_json(with_file(name=name))


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "kernel"}, {"role": "other"}, {"role": 1}, {"target": ""}, {"target": "VDA"}, {"target": "../vda"},
        {"size": -1}, {"size": 1 << 51}, {"size": "1"}, {"size": 1.0}, {"size": True}, {"sha256": "AB" * 32},
        {"sha256": "ab"}, {"sha256": None}, {"encrypted": False}, {"encrypted": 1}, {"more": 1},
    ],
)  # fmt: skip
def test_files_that_contradict_or_are_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(BadBundle):
        from_json(with_file(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"}, {"version": 2}, {"version": True}, {"version": "1"}, {"in_clear": True}, {"keys": None},
        {"keys": {}}, {"vm": {}}, {"vm": {"uuid": str(ID).upper(), "name": "x"}}, {"vm": {"uuid": str(ID), "name": ""}},
        {"console": "a\nb"}, {"made_at": "yesterday"}, {"made_at": "2026-01-02T00:00:00"}, {"made_by": ""},
        {"files": []}, {"files": {}}, {"files": [{}] * (MAX_FILES + 1)}, {"more": 1},
    ],
)  # fmt: skip
def test_manifests_that_are_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(BadBundle):
        from_json(told(**changes))


def test_the_same_file_or_part_twice() -> None:
    for other in (replace(DISK, target="vdb"), replace(DISK, name="VDA.LUKS", target="vdb"), replace(DISK, name="b")):
        with pytest.raises(BadBundle):
            replace(WHOLE, files=(DEFINITION, DISK, other))


def test_no_definition() -> None:
    with pytest.raises(BadBundle):
        replace(WHOLE, files=(DISK,))


def test_json_tricks() -> None:
    twice = to_json(WHOLE).replace(b'"version": 1,', b'"version": 1, "version": 1,')
    for data in (twice, to_json(WHOLE) + b"x", b"NaN", b"[" * 100_000, b" " * (MAX_MANIFEST_BYTES + 1), b"\xff\xfe"):
        with pytest.raises(BadBundle):
            from_json(data)


def header(version: int = 3, backing: int = 0, incompatible: int = 0) -> bytes:
    head = b"QFI\xfb" + version.to_bytes(4, "big") + backing.to_bytes(8, "big")
    return (head.ljust(72, b"\0") + incompatible.to_bytes(8, "big")).ljust(104, b"\0")


@pytest.mark.parametrize("head", [header(), header(2), header(2, incompatible=4), header(incompatible=1 | 8 | 16)])
def test_a_qcow2_that_stands_alone(head: bytes) -> None:
    refuse_backing(head)


@pytest.mark.parametrize(
    "head", [b"", header()[:103], b"\0" * 104, header(4), header(backing=512), header(incompatible=4),
             header(incompatible=2), header(incompatible=1 << 40)],
)  # fmt: skip
def test_a_qcow2_that_does_not(head: bytes) -> None:
    with pytest.raises(BadBundle):
        refuse_backing(head)
