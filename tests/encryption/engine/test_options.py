"""The plan: a table of situations, then properties that hold for every pair of states."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encryption.engine.options import (
    Assignment,
    CurrentDisk,
    CurrentVm,
    DesiredVm,
    How,
    KeyProvider,
    Plan,
    StepKind,
    plan,
)

GIB = 2**30


def disk(target: str, **changes: object) -> CurrentDisk:
    made = CurrentDisk(
        target=target,
        device="disk",
        format="raw",
        source=f"/pool/vm/{target}.raw",
        size=GIB,
        is_encrypted=False,
        is_read_only=False,
        is_ours=False,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


PLAIN = CurrentVm(
    name="web",
    is_present=True,
    is_persistent=True,
    is_running=False,
    files_reachable=True,
    nvram_path="/pool/vm/vars.fd",
    is_nvram_encrypted=False,
    has_tpm=False,
    is_tpm_encrypted=False,
    tpm_state_known=True,
    home_is_ours=True,
    disks=(disk("vda"), disk("vdb", format="qcow2", source="/pool/vm/vdb.qcow2")),
    has_key=False,
)
ENCRYPTED = replace(
    PLAIN,
    is_nvram_encrypted=True,
    has_key=True,
    disks=tuple(replace(one, is_encrypted=True, is_ours=True) for one in PLAIN.disks),
)
ALL = DesiredVm(encrypt_home=True, encrypted_disks=frozenset({"vda", "vdb"}))
NONE = DesiredVm(encrypt_home=False, encrypted_disks=frozenset())


def kinds(made: Plan) -> list[StepKind]:
    return [step.kind for step in made.steps]


def codes(made: Plan) -> list[str]:
    return [refusal.code for refusal in made.refusals]


def test_a_powered_off_vm_is_encrypted_home_first_and_originals_last() -> None:
    made = plan(PLAIN, ALL)
    assert not made.refusals
    assert kinds(made) == [
        StepKind.CREATE_KEY,
        StepKind.WRAP_SECRETS,
        StepKind.ENCRYPT_NVRAM,
        StepKind.ENCRYPT_DISK,
        StepKind.ENCRYPT_DISK,
        StepKind.SWITCH_DEFINITION,
        StepKind.DESTROY_ORIGINALS,
    ]
    assert [step.how for step in made.steps if step.kind is StepKind.ENCRYPT_DISK] == [How.ENGINE, How.QEMU_IMG]
    assert made.new_bytes == 2 * GIB


def test_decryption_takes_disks_first_and_the_home_last() -> None:
    made = plan(ENCRYPTED, NONE)
    assert not made.refusals
    assert kinds(made) == [
        StepKind.DECRYPT_DISK,
        StepKind.DECRYPT_DISK,
        StepKind.DECRYPT_NVRAM,
        StepKind.SWITCH_DEFINITION,
        StepKind.DESTROY_ORIGINALS,
    ]


def test_what_is_as_wanted_needs_nothing() -> None:
    assert plan(PLAIN, NONE).is_empty
    assert plan(ENCRYPTED, ALL).is_empty


def test_what_an_interrupted_change_left_is_still_destroyed() -> None:
    made = plan(replace(ENCRYPTED, leftovers=("/pool/vm/vda.raw",)), ALL)
    assert kinds(made) == [StepKind.DESTROY_ORIGINALS]
    assert "/pool/vm/vda.raw" in made.steps[0].text


def test_a_running_vm_with_an_encrypted_home_has_its_disk_copied_live() -> None:
    running = replace(ENCRYPTED, is_running=True, disks=PLAIN.disks)
    made = plan(running, replace(ALL, encrypted_disks=frozenset({"vda"})))
    assert not made.refusals
    assert [(step.target, step.how) for step in made.steps if step.kind is StepKind.ENCRYPT_DISK] == [
        ("vda", How.BLOCK_COPY)
    ]


@pytest.mark.parametrize(("current", "desired"), [(PLAIN, ALL), (ENCRYPTED, NONE)])
def test_what_libvirt_keeps_of_the_vm_forbids_every_conversion(current: CurrentVm, desired: DesiredVm) -> None:
    assert codes(plan(replace(current, has_managed_save=True), desired)) == ["managed_save_present"]
    made = plan(replace(current, snapshot_count=1), desired)
    assert codes(made) == ["snapshots_present"]
    assert "1 snapshot, which" in made.refusals[0].text
    made = plan(replace(current, snapshot_count=3, memory_snapshot_count=2), desired)
    assert "3 snapshots, 2 of them with guest memory" in made.refusals[0].text


def test_what_libvirt_keeps_is_no_matter_where_nothing_changes() -> None:
    kept = replace(ENCRYPTED, has_managed_save=True, snapshot_count=1)
    assert plan(kept, ALL).is_empty
    assert plan(replace(PLAIN, snapshot_count=1), NONE).is_empty


def test_a_running_bios_vm_has_no_home_files_in_the_way() -> None:
    made = plan(replace(PLAIN, nvram_path="", is_running=True), ALL)
    assert not made.refusals
    assert StepKind.CREATE_KEY in kinds(made)


@pytest.mark.parametrize(
    ("current", "desired", "code"),
    [
        (replace(PLAIN, is_running=True), ALL, "home_in_use"),
        (replace(ENCRYPTED, is_running=True), NONE, "home_in_use"),
        (PLAIN, DesiredVm(False, frozenset({"vda"})), "home_not_encrypted"),
        (PLAIN, replace(ALL, key_provider=KeyProvider.NONE), "no_key_provider"),
        (PLAIN, DesiredVm(True, frozenset({"sdz"})), "disk_unknown"),
        (replace(PLAIN, is_present=False), ALL, "vm_gone"),
        (replace(PLAIN, is_persistent=False), ALL, "vm_transient"),
        (replace(PLAIN, has_tpm=True, tpm_state_known=False), ALL, "vtpm_state_unknown"),
        (replace(ENCRYPTED, home_is_ours=False), NONE, "foreign_home"),
        (replace(PLAIN, disks=(disk("vda", shared_with=("db",)),)), ALL, "disk_shared"),
        (replace(PLAIN, disks=(disk("vda", source=""),)), ALL, "disk_without_file"),
        (replace(PLAIN, disks=(disk("vda", source="/dev/sdb"),)), ALL, "disk_is_device"),
        (replace(PLAIN, disks=(disk("vda", format="vmdk"),)), ALL, "disk_format"),
        (replace(ENCRYPTED, disks=(disk("vda", is_encrypted=True),)), NONE, "foreign_disk"),
    ],
)
def test_refusals_have_a_code_and_say_what_to_do(current: CurrentVm, desired: DesiredVm, code: str) -> None:
    made = plan(current, desired)
    assert code in codes(made)
    assert all(refusal.text for refusal in made.refusals)


def test_a_read_only_disk_and_a_cd_are_left_alone() -> None:
    current = replace(PLAIN, disks=(disk("vda"), disk("sda", device="cdrom"), disk("vdb", is_read_only=True)))
    made = plan(current, replace(ALL, encrypted_disks=frozenset({"vda"})))
    assert [step.target for step in made.steps if step.kind is StepKind.ENCRYPT_DISK] == ["vda"]


@st.composite
def vms(draw: st.DrawFn) -> CurrentVm:
    disks = tuple(
        disk(
            f"vd{letter}",
            format=draw(st.sampled_from(["raw", "qcow2", "vmdk", ""])),
            is_encrypted=draw(st.booleans()),
            is_ours=draw(st.booleans()),
            is_read_only=draw(st.booleans()),
        )
        for letter in "abc"[: draw(st.integers(0, 3))]
    )
    flags = {
        name: draw(st.booleans())
        for name in (
            "is_present",
            "is_persistent",
            "is_running",
            "files_reachable",
            "is_nvram_encrypted",
            "has_tpm",
            "is_tpm_encrypted",
            "tpm_state_known",
            "home_is_ours",
            "has_key",
            "has_managed_save",
        )
    }
    return replace(PLAIN, disks=disks, nvram_path=draw(st.sampled_from(["", "/pool/vars.fd"])), **flags)  # type: ignore[arg-type]


def test_disks_that_no_worker_reaches_are_copied_by_their_host() -> None:
    far = replace(PLAIN, files_reachable=False)
    made = plan(far, ALL)
    assert made.refusals == ()
    assert {step.how for step in made.steps if step.kind is StepKind.ENCRYPT_DISK} == {How.STORAGE_API}
    assert {step.how for step in made.steps if step.kind is StepKind.ENCRYPT_NVRAM} == {How.ENGINE}
    assert "host_copies" in [warning.code for warning in made.warnings]
    running = plan(replace(far, is_running=True, nvram_path="", disks=PLAIN.disks), ALL)
    assert {step.how for step in running.steps if step.kind is StepKind.ENCRYPT_DISK} == {How.BLOCK_COPY}
    assert "host_copies" not in [warning.code for warning in running.warnings]


@given(vms(), st.builds(DesiredVm, st.booleans(), st.frozensets(st.sampled_from(["vda", "vdb", "vdc"])), st.booleans()))
def test_every_plan_keeps_the_rules(current: CurrentVm, desired: DesiredVm) -> None:
    made = plan(current, desired)
    done = kinds(made)
    home = {StepKind.ENCRYPT_NVRAM, StepKind.ENCRYPT_VTPM, StepKind.DECRYPT_NVRAM, StepKind.DECRYPT_VTPM}
    if StepKind.DESTROY_ORIGINALS in done:
        assert done[-1] is StepKind.DESTROY_ORIGINALS
    for encrypts in (StepKind.ENCRYPT_NVRAM, StepKind.ENCRYPT_VTPM):
        if encrypts in done and StepKind.ENCRYPT_DISK in done:
            assert done.index(encrypts) < done.index(StepKind.ENCRYPT_DISK)
    for decrypts in (StepKind.DECRYPT_NVRAM, StepKind.DECRYPT_VTPM):
        if decrypts in done and StepKind.DECRYPT_DISK in done:
            assert max(i for i, kind in enumerate(done) if kind is StepKind.DECRYPT_DISK) < done.index(decrypts)
    if current.is_running and not made.refusals:
        assert not home & set(done)
    if not made.refusals:
        assert not (desired.encrypted_disks and not desired.encrypt_home)


def test_another_policy_that_asks_for_no_conversion_is_one_step() -> None:
    change = Assignment("vda", "Gold", True)
    made = plan(ENCRYPTED, replace(ALL, assignments=(change,)))
    assert kinds(made) == [StepKind.ASSIGN_POLICY] and made.steps[0].target == "vda"
    assert "Assign Gold to vda" in made.steps[0].text and not made.is_empty and made.new_bytes == 0


def test_a_disk_that_is_converted_is_not_told_twice() -> None:
    current = replace(ENCRYPTED, disks=(ENCRYPTED.disks[0], PLAIN.disks[1]))
    changes = (Assignment("vda", "Gold", True), Assignment("vdb", "Gold", True))
    made = plan(current, replace(ALL, assignments=changes))
    assigned = [step.target for step in made.steps if step.kind is StepKind.ASSIGN_POLICY]
    assert assigned == ["vda"] and StepKind.ENCRYPT_DISK in kinds(made)


def test_a_disk_that_is_named_and_not_there_is_refused_whatever_its_policy() -> None:
    assert codes(plan(PLAIN, replace(NONE, known_disks=frozenset({"vdz"})))) == ["disk_unknown"]
