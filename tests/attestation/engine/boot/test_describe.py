"""Events as people see them: real ones, structured ones, hostile ones."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.engine.boot.describe import Description, describe
from attestation.engine.boot.event_types import EventType, type_name
from attestation.engine.boot.uefi import GLOBAL_VARIABLE, MAX_TEXT
from tests.attestation.engine.boot.logs import logs_of, parsed, variable

HOST_A = {
    event.number: describe(event.type, event.data)
    for entry in logs_of("replays")
    if entry.name.startswith("a-secureboot-on")
    for event in parsed(entry).events
}


@pytest.mark.parametrize(
    ("number", "kind", "summary"),
    [
        (0, "EV_NO_ACTION", "log format of TCG specification 2.0 (errata 0)"),
        (1, "EV_S_CRTM_VERSION", "no version"),
        (2, "EV_EFI_PLATFORM_FIRMWARE_BLOB", "firmware of 917504 bytes at 0x820000"),
        (4, "EV_EFI_VARIABLE_DRIVER_CONFIG", "SecureBoot: on"),
        (5, "EV_EFI_VARIABLE_DRIVER_CONFIG", "PK: 1 certificate"),
        (8, "EV_EFI_VARIABLE_DRIVER_CONFIG", "dbx: 1 image hash"),
        (9, "EV_SEPARATOR", "end of the firmware's part"),
        (10, "EV_EFI_VARIABLE_BOOT", "BootOrder: 0001, 0000, 0002"),
        (11, "EV_EFI_VARIABLE_BOOT", "Boot0001: UEFI Misc Device"),
        (14, "EV_EFI_ACTION", "Calling EFI Application from Boot Option"),
        (23, "EV_EFI_GPT_EVENT", "disk 6d1cbd0c-1f1f-4b6a-9a56-0d1f2a3b4c5d with 1 partition"),
        (27, "EV_EFI_VARIABLE_AUTHORITY", "SbatLevel: sbat,1,2025021800 shim,4 grub,5"),
        (29, "EV_EFI_VARIABLE_AUTHORITY", "MokListRT: signed by CN=Debian Secure Boot CA"),
        (41, "EV_EFI_BOOT_SERVICES_APPLICATION", "image of 14186432 bytes, without a path"),
        (45, "EV_IPL", "/initrd.img"),
    ],
)
def test_host_a(number: int, kind: str, summary: str) -> None:
    assert (HOST_A[number].type, HOST_A[number].summary) == (kind, summary)


def test_fields_of_an_image() -> None:
    path = r"PciRoot(0x0)/Pci(0x1,0x0)/HD(1,GPT,1b9f1f60-5b0e-4cf3-8d4e-4fe2c1c9a001)/\EFI\BOOT\BOOTX64.EFI"
    assert ("path", path) in HOST_A[24].fields
    assert HOST_A[24].summary == path


@pytest.mark.parametrize(
    ("kind", "data", "summary"),
    [
        (EventType.NO_ACTION, b"StartupLocality\0\3", "the TPM was started at locality 3"),
        (
            EventType.NO_ACTION,
            b"SP800-155 Event3" + struct.pack("<I", 343) + bytes(range(16)),
            "the platform's reference manifest, 03020100-0504-0706-0809-0a0b0c0d0e0f",
        ),
        (EventType.SEPARATOR, b"\1\0\0\0", "the firmware stopped with an error"),
        (EventType.SEPARATOR, b"WBCL", "WBCL"),
        (EventType.S_CRTM_VERSION, "v1.2\0".encode("utf-16-le"), "v1.2"),
        (EventType.EFI_PLATFORM_FIRMWARE_BLOB2, b"\4main" + bytes(16), "firmware main"),
        (EventType.EFI_HANDOFF_TABLES2, b"\0" + struct.pack("<Q", 1) + bytes(24), "1 configuration table"),
        (EventType.EVENT_TAG, struct.pack("<II", 0x8F3B22EC, 13) + b"Linux initrd\0", "Linux initrd, 13 bytes"),
        (EventType.EFI_VARIABLE_DRIVER_CONFIG, variable(GLOBAL_VARIABLE, "SecureBoot", b""), "SecureBoot: absent"),
        (EventType.EFI_VARIABLE_BOOT, variable(GLOBAL_VARIABLE, "Timeout", b"\5\0"), "Timeout: 2 bytes"),
        (0x1234, b"\0\1\2", "3 bytes"),
    ],
)
def test_events_of_other_kinds(kind: int, data: bytes, summary: str) -> None:
    assert describe(kind, data).summary == summary


@pytest.mark.parametrize("kind", [*EventType, 0x1234])
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 7, bytes(64), b"\xff" * 64])
def test_what_cannot_be_decoded_is_shown(kind: int, data: bytes) -> None:
    description = describe(kind, data)
    assert description.type == type_name(kind)
    assert description.summary


def test_control_characters_are_escaped() -> None:
    assert (
        describe(EventType.IPL, b"grub_cmd: menuentry {\n\tlinux\n}\0").summary == r"grub_cmd: menuentry {\n\tlinux\n}"
    )
    assert describe(EventType.IPL, b"grub_cmd: \x1b[31m").summary == "15 bytes"
    assert describe(EventType.IPL, "grub_cmd: \u202ex".encode()).summary == "14 bytes"
    named = describe(EventType.EFI_VARIABLE_BOOT, variable(GLOBAL_VARIABLE, "a\n\u202eb", b""))
    assert named.summary == r"a\n\u202eb: 0 bytes"


def _is_shown_safely(description: Description) -> bool:
    texts = [description.summary, *(text for field in description.fields for text in field)]
    return all(text.isprintable() and len(text) <= MAX_TEXT + 200 for text in texts)


@given(
    st.sampled_from(list(EventType)) | st.integers(0, 0xFFFFFFFF), st.binary(max_size=300) | st.text().map(str.encode)
)
def test_any_event_is_described_safely(kind: int, data: bytes) -> None:
    assert _is_shown_safely(describe(kind, data))


@given(st.sampled_from(sorted(HOST_A)), st.data())
def test_mutated_real_events_are_described_safely(number: int, data: st.DataObject) -> None:
    (entry,) = [entry for entry in logs_of("replays") if entry.name.startswith("a-secureboot-on")]
    event = parsed(entry).events[number]
    changed = bytearray(event.data)
    for _ in range(data.draw(st.integers(1, 4))):
        if changed:
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    assert _is_shown_safely(describe(event.type, bytes(changed)))
