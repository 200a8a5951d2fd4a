from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encryption.engine import variable_store
from encryption.engine.variable_store import BadStore, NoKeys, StoreFull, switched
from tests.encryption import stores
from tests.encryption.stores import ADDED, DELETED, ENABLE, GLOBAL, HEADER_ONLY, IN_DELETED_TRANSITION, record, store

KEYLESS, ENROLLED = stores.KEYLESS, stores.ENROLLED
NAMES = {"BootOrder", "PK", "KEK", "db", "dbx", "SecureBootEnable"}


def values(content: bytes) -> dict[str, bytes]:
    return {one.name: one.data for one in variable_store.parse(content).variables}


def enforces(content: bytes) -> bool:
    return variable_store.parse(content).enforces_secure_boot


def test_firmware_of_this_machine() -> None:
    """Debian's OVMF, whose files are as firmware itself has written them."""
    folder = Path("/usr/share/OVMF")
    enrolled, keyless = ((folder / name).read_bytes() for name in ("OVMF_VARS_4M.ms.fd", "OVMF_VARS_4M.fd"))
    assert enforces(enrolled) and not enforces(keyless)
    assert b"Microsoft" in values(enrolled)["db"]
    off = switched(enrolled, is_on=False).final
    assert sum(one != other for one, other in zip(enrolled, off, strict=True)) == 1
    assert switched(off, is_on=True).final == enrolled
    taken = values(switched(keyless, is_on=True, template=enrolled).final)
    assert taken == {name: data for name, data in values(enrolled).items() if name in NAMES - {"BootOrder"}}


def test_off_and_on_again() -> None:
    off = switched(ENROLLED, is_on=False)
    assert off.prepared == ENROLLED
    assert not enforces(off.final)
    assert values(off.final) == values(ENROLLED) | {"SecureBootEnable": b"\x00"}
    assert switched(off.final, is_on=True).final == ENROLLED


def test_off_where_firmware_has_not_decided_yet() -> None:
    """With a PK and no SecureBootEnable it would switch Secure Boot on at the next boot."""
    content = store(stores.BOOT_ORDER, stores.KEYS)
    assert enforces(content)
    off = switched(content, is_on=False)
    assert (values(off.prepared), enforces(off.final)) == (values(content), False)
    assert values(off.final)["SecureBootEnable"] == b"\x00"


@pytest.mark.parametrize(
    ("content", "is_on"),
    [(KEYLESS, False), (ENROLLED, True), (store(stores.ON), False), (switched(ENROLLED, is_on=False).final, False)],
)
def test_as_wanted_already(content: bytes, is_on: bool) -> None:
    assert switched(content, is_on=is_on).final == content


@pytest.mark.parametrize("enable", [b"", stores.ON, stores.OFF])
def test_keys_are_taken_from_the_template(enable: bytes) -> None:
    content = store(stores.BOOT_ORDER, enable)
    made = switched(content, is_on=True, template=ENROLLED)
    assert values(made.prepared) == values(content)
    assert values(made.final) == values(ENROLLED)
    assert len(made.final) == len(content)


def test_keys_that_are_there_stay() -> None:
    mine = record("db", stores.DATABASES, b"my own")
    made = switched(store(mine), is_on=True, template=ENROLLED).final
    assert values(made) == {name: data for name, data in values(ENROLLED).items() if name != "BootOrder"} | {
        "db": b"my own"
    }


@pytest.mark.parametrize("template", [None, KEYLESS])
def test_a_template_without_keys(template: bytes | None) -> None:
    with pytest.raises(NoKeys):
        switched(KEYLESS, is_on=True, template=template)


def test_no_room() -> None:
    with pytest.raises(StoreFull, match="bytes are needed"):
        switched(store(stores.BOOT_ORDER, size=300), is_on=True, template=ENROLLED)


@pytest.mark.parametrize(
    ("states", "value"),
    [
        ([DELETED], None),
        ([HEADER_ONLY], None),
        ([DELETED, ADDED], 1),
        ([IN_DELETED_TRANSITION], 0),
        ([IN_DELETED_TRANSITION, ADDED], 1),
        ([IN_DELETED_TRANSITION, HEADER_ONLY], 0),
        ([ADDED, ADDED], 0),
    ],
)
def test_the_record_in_force(states: list[int], value: int | None) -> None:
    """As firmware finds it, whatever moment it was powered off at."""
    records = [record("BootCurrent", GLOBAL, bytes([at]), state=state) for at, state in enumerate(states)]
    found = variable_store.parse(store(*records)).find("BootCurrent", GLOBAL)
    assert (None if found is None else found.data[0]) == value


def test_a_write_that_was_cut_short_before_its_sizes() -> None:
    """The header of a record is written from its start: sizes that are still erased count as none."""
    torn = bytearray(record("Torn", GLOBAL, b"data", state=HEADER_ONLY)[:60])
    torn[36:44] = b"\xff" * 8
    content = store(bytes(torn), stores.KEYS)
    assert enforces(content)


def test_a_kill_at_any_sector_leaves_the_old_or_the_new() -> None:
    content = store(record("Junk", GLOBAL, b"x" * 300), stores.OFF)
    edit = switched(content, is_on=True, template=ENROLLED)
    old, new = values(content), values(edit.final)
    now = bytearray(content)
    seen = []
    for written in (edit.prepared, edit.final):
        for start in range(0, len(content), 512):
            now[start : start + 512] = written[start : start + 512]
            seen.append(values(bytes(now)))
            # A job that is run again ends where the first would have ended.
            again = switched(bytes(now), is_on=True, template=ENROLLED).final
            assert values(again) == new
    assert all(
        one in (old, new) or one == new | {"SecureBootEnable": b"\x00"} or one == old | {"SecureBootEnable": b"\x01"}
        for one in seen
    )
    assert seen[-1] == new and old in seen


def test_only_the_store_is_written() -> None:
    made = switched(ENROLLED, is_on=False).final
    end = variable_store.parse(ENROLLED).end
    assert made[end:] == ENROLLED[end:] and made[: stores.VOLUME_HEADER] == ENROLLED[: stores.VOLUME_HEADER]


def broken(at: int, value: bytes) -> bytes:
    return ENROLLED[:at] + value + ENROLLED[at + len(value) :]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "shorter than the header"),
        (bytes(4096), "no firmware volume"),
        (broken(16, bytes(16)), "no firmware volume"),
        (broken(32, b"\xff" * 8), "cut off"),
        (broken(48, b"\x00\x00"), "cut off"),
        (broken(48, b"\xff\xff"), "cut off"),
        (ENROLLED[:80], "cut off"),
        (broken(72, bytes(16)), "of another kind"),
        (broken(72 + 20, b"\x00"), "not formatted"),
        (broken(72 + 16, b"\xff\xff\xff\x7f"), "longer than its volume"),
        (broken(72 + 16, bytes(4)), "longer than its volume"),
        (broken(100 + 40, b"\x00\x10\x00\x00"), "ends behind its store"),
    ],
)
def test_what_is_no_store(content: bytes, text: str) -> None:
    with pytest.raises(BadStore, match=text):
        variable_store.parse(content)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1200), st.binary(min_size=1, max_size=12)), max_size=4), st.booleans())
def test_hostile_bytes(changes: list[tuple[int, bytes]], is_on: bool) -> None:
    """Refused, or switched to what was asked for; never longer, never another error."""
    content = bytearray(ENROLLED)
    for at, value in changes:
        content[at : at + len(value)] = value
    try:
        edit = switched(bytes(content), is_on=is_on, template=ENROLLED)
    except variable_store.VariableStoreError:
        return
    assert len(edit.final) == len(edit.prepared) == len(content)
    assert enforces(edit.final) is is_on


def test_names_are_of_one_vendor() -> None:
    assert not enforces(store(record("PK", ENABLE, b"of somebody else"), stores.ON))
