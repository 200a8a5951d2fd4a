"""The plans of the three ways of recrypting: steps, warnings and refusals for any state of a VM."""

from dataclasses import replace

import pytest

from encryption.engine import recrypt
from encryption.engine.options import CurrentDisk, CurrentVm, How, Plan, StepKind
from encryption.engine.recrypt import Way

DISK = CurrentDisk("vda", "disk", "raw", "/i/vda.luks", 3 * 2**30, True, False, True)
VM = CurrentVm(
    name="app-01", is_present=True, is_persistent=True, is_running=False, files_reachable=True,
    nvram_path="/n/VARS.luks", is_nvram_encrypted=True, has_tpm=True, is_tpm_encrypted=True, tpm_state_known=True,
    home_is_ours=True, disks=(DISK, replace(DISK, target="vdb", source="/i/vdb.luks")), has_key=True,
)  # fmt: skip
ALL = frozenset({"vda", "vdb", "nvram", "vtpm"})


def kinds(plan: Plan) -> list[StepKind]:
    return [step.kind for step in plan.steps]


def codes(plan: Plan) -> list[str]:
    return [finding.code for finding in plan.refusals]


def test_parts_are_the_encrypted_ones_that_can_be_written() -> None:
    assert recrypt.encrypted_parts(VM) == {"vda": 3 * 2**30, "vdb": 3 * 2**30, "nvram": 0, "vtpm": 0}
    plain = replace(DISK, is_encrypted=False)
    shut = replace(VM, disks=(plain, replace(DISK, target="vdb", is_read_only=True)), is_nvram_encrypted=False)
    assert recrypt.encrypted_parts(replace(shut, is_tpm_encrypted=False)) == {}


def test_a_new_key_needs_no_space_and_may_be_given_to_a_running_vm() -> None:
    plan = recrypt.plan(replace(VM, is_running=True), Way.KEY, frozenset())
    assert kinds(plan) == [StepKind.CREATE_KEY, StepKind.WRAP_SECRETS, StepKind.SWITCH_DEFINITION]
    assert (plan.refusals, plan.new_bytes) == ((), 0)


def test_passphrases_are_added_switched_and_only_then_removed() -> None:
    plan = recrypt.plan(VM, Way.PASSPHRASES, frozenset())
    assert kinds(plan) == [
        StepKind.WRAP_SECRETS,
        *[StepKind.ADD_KEYSLOT] * 3,
        StepKind.SWITCH_DEFINITION,
        *[StepKind.REMOVE_KEYSLOT] * 3,
    ]
    assert [step.target for step in plan.steps if step.kind is StepKind.ADD_KEYSLOT] == ["vda", "vdb", "NVRAM"]
    assert [finding.code for finding in plan.warnings] == ["volume_keys_stay", "vtpm_left_out"]
    assert (plan.refusals, plan.new_bytes) == ((), 0)


def test_new_volume_keys_of_all_parts() -> None:
    plan = recrypt.plan(VM, Way.VOLUME_KEYS, ALL)
    assert kinds(plan) == [
        StepKind.CREATE_KEY,
        StepKind.WRAP_SECRETS,
        StepKind.RECRYPT_DISK,
        StepKind.RECRYPT_DISK,
        StepKind.RECRYPT_NVRAM,
        StepKind.RECRYPT_VTPM,
        StepKind.SWITCH_DEFINITION,
        StepKind.DESTROY_ORIGINALS,
    ]
    assert plan.new_bytes == 6 * 2**30 and plan.refusals == ()
    assert "6.0 GiB" in plan.warnings[0].text
    assert [finding.code for finding in plan.warnings] == ["space_needed", "overwrite_limits"]


def test_what_is_left_out_is_told() -> None:
    plan = recrypt.plan(VM, Way.VOLUME_KEYS, frozenset({"vdb"}))
    (left,) = [finding.text for finding in plan.warnings if finding.code == "parts_left_out"]
    assert left.startswith("vda, NVRAM, vTPM state:") and plan.refusals == ()


@pytest.mark.parametrize(
    ("change", "way", "parts", "expected"),
    [
        ({"is_present": False, "is_persistent": False}, Way.KEY, ALL, ["vm_gone", "vm_transient"]),
        ({"has_key": False}, Way.KEY, ALL, ["not_encrypted"]),
        ({"is_running": True}, Way.PASSPHRASES, ALL, ["vm_running"]),
        ({"is_running": True, "files_reachable": False}, Way.PASSPHRASES, ALL, ["vm_running"]),
        ({"files_reachable": False}, Way.PASSPHRASES, ALL, []),
        ({"disks": (), "is_nvram_encrypted": False}, Way.PASSPHRASES, ALL, ["nothing_to_recrypt"]),
        ({"home_is_ours": False}, Way.PASSPHRASES, ALL, ["foreign_home"]),
        ({"snapshot_count": 2}, Way.PASSPHRASES, ALL, ["snapshots_present"]),
        ({"is_running": True}, Way.VOLUME_KEYS, ALL, ["home_in_use"]),
        ({"is_running": True}, Way.VOLUME_KEYS, {"vda", "vdb"}, []),
        ({"is_running": True, "files_reachable": False}, Way.VOLUME_KEYS, {"vda"}, []),
        ({"files_reachable": False}, Way.VOLUME_KEYS, {"vda"}, []),
        ({"tpm_state_known": False}, Way.VOLUME_KEYS, ALL, ["vtpm_state_unknown"]),
        ({"tpm_state_known": False}, Way.VOLUME_KEYS, {"nvram"}, []),
        ({"home_is_ours": False}, Way.VOLUME_KEYS, {"nvram"}, ["foreign_home"]),
        ({"home_is_ours": False}, Way.VOLUME_KEYS, {"vda"}, []),
        ({"has_managed_save": True}, Way.VOLUME_KEYS, {"vda"}, ["managed_save_present"]),
        ({"disks": (replace(DISK, is_ours=False),)}, Way.VOLUME_KEYS, {"vda"}, ["foreign_disk"]),
        ({"disks": (replace(DISK, is_ours=False),)}, Way.VOLUME_KEYS, {"nvram"}, []),
        ({"disks": (replace(DISK, shared_with=("app-02",)),)}, Way.VOLUME_KEYS, {"vda"}, ["disk_shared"]),
        ({"disks": (replace(DISK, source="/dev/sdb"),)}, Way.VOLUME_KEYS, {"vda"}, ["disk_is_device"]),
        ({}, Way.VOLUME_KEYS, {"vdz"}, ["part_unknown"]),
        ({}, Way.VOLUME_KEYS, set(), ["nothing_to_recrypt"]),
    ],
)
def test_refusals(change: dict[str, object], way: Way, parts: set[str], expected: list[str]) -> None:
    plan = recrypt.plan(replace(VM, **change), way, frozenset(parts))  # type: ignore[arg-type]
    assert codes(plan) == expected
    assert all(finding.hint for finding in plan.refusals)


def test_a_host_whose_files_no_worker_reaches_copies_by_itself() -> None:
    found = recrypt.plan(replace(VM, files_reachable=False), Way.VOLUME_KEYS, frozenset({"vda", "nvram"}))
    (copied,) = [step for step in found.steps if step.target == "vda"]
    assert copied.how is How.STORAGE_API and "by its host" in copied.text
    assert "host_copies" in {finding.code for finding in found.warnings}


def test_keyslots_are_written_through_a_host_whose_files_no_worker_reaches() -> None:
    near, far = (recrypt.plan(replace(VM, files_reachable=reached), Way.PASSPHRASES, ALL) for reached in (True, False))
    assert [step.text for step in near.steps] == [step.text for step in far.steps]
    assert {step.how for step in near.steps if "KEYSLOT" in step.kind.name} == {How.ENGINE}
    assert {step.how for step in far.steps if "KEYSLOT" in step.kind.name} == {How.STORAGE_API}
    assert {finding.code for finding in far.warnings} - {finding.code for finding in near.warnings} == {"host_writes"}
