"""The checklist of Windows 11, point by point."""

from dataclasses import replace

import pytest

from inventory.engine import windows11
from inventory.engine.windows11 import GIB, Machine, State

READY = Machine(
    tpm_version="2.0", firmware="uefi", has_secure_boot=True, arch="x86_64", vcpus=2, memory_bytes=4 * GIB,
    largest_disk=64 * GIB, hard_disks=1,
)  # fmt: skip


def test_exactly_enough() -> None:
    found = windows11.checklist(READY)
    assert windows11.is_ready(found)
    assert {one.remedy for one in found} == {""}
    assert len({one.code for one in found}) == 7


@pytest.mark.parametrize(
    ("changes", "code", "state"),
    [
        ({"tpm_version": ""}, "tpm", State.UNMET),
        ({"tpm_version": "1.2"}, "tpm", State.UNMET),
        ({"firmware": "bios"}, "uefi", State.UNMET),
        ({"has_secure_boot": False}, "secure_boot", State.UNMET),
        ({"arch": ""}, "cpu_64_bit", State.UNKNOWN),
        ({"arch": "i686"}, "cpu_64_bit", State.UNMET),
        ({"vcpus": 1}, "vcpus", State.UNMET),
        ({"memory_bytes": 4 * GIB - 1}, "memory", State.UNMET),
        ({"largest_disk": 64 * GIB - 1}, "disk", State.UNMET),
        ({"largest_disk": 0}, "disk", State.UNKNOWN),
        ({"largest_disk": 0, "hard_disks": 0}, "disk", State.UNMET),
    ],
)
def test_one_thing_is_missing(changes: dict[str, object], code: str, state: State) -> None:
    found = windows11.checklist(replace(READY, **changes))  # type: ignore[arg-type]
    assert not windows11.is_ready(found)
    (missing,) = [one for one in found if one.state is not State.MET]
    assert (missing.code, missing.state) == (code, state)
    assert missing.text and missing.remedy
