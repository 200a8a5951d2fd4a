"""The plan of a migration over the whole matrix of states: it never crashes, and each refusal has words."""

from dataclasses import replace
from itertools import product

import pytest

from encryption.engine.migration import (
    Mode,
    MovingFile,
    MovingVm,
    StepKind,
    Target,
    Tls,
    effective_mode,
    plan,
)

GIB = 2**30
DISK = MovingFile("vda", "/images/vda.raw", "raw", GIB, is_encrypted=False, is_shared=True)
VM = MovingVm(
    name="app", host="kvm-a", is_present=True, is_persistent=True, is_running=True, is_off=False, is_encrypted=False,
    keys_are_ours=True, is_changing=False, has_tpm=False, memory_bytes=GIB, files=(DISK,), mode=Mode.OPPORTUNISTIC,
    cpu_model="EPYC",
)  # fmt: skip
TARGET = Target(
    name="kvm-b", is_same=False, is_connected=True, is_reachable_by_hosts=True, memory_free_bytes=4 * GIB,
    cpu_model="EPYC", has_name=False, has_uuid=False, knows_vtpm_folder=True, tls=Tls.READY,
)  # fmt: skip
OFF = replace(VM, is_running=False, is_off=True)
LOCAL = replace(VM, files=(replace(DISK, is_shared=False),))
STORE = replace(TARGET, datastore="default", free_bytes=10 * GIB)


def codes(vm: MovingVm, target: Target) -> list[str]:
    return [one.code for one in plan(vm, target).refusals]


@pytest.mark.parametrize(
    ("vm", "target", "code"),
    [
        (replace(VM, is_present=False), TARGET, "vm_not_present"),
        (replace(VM, host_is_connected=False), TARGET, "host_disconnected"),
        (replace(VM, is_persistent=False), TARGET, "vm_transient"),
        (replace(VM, is_running=False), TARGET, "vm_crashed"),
        (replace(VM, is_changing=True), TARGET, "change_unfinished"),
        (replace(VM, has_managed_save=True), TARGET, "vm_suspended"),
        (replace(VM, snapshot_count=1), TARGET, "vm_has_snapshots"),
        (replace(VM, keys_are_ours=False), TARGET, "foreign_keys"),
        (replace(VM, held_by=("the host's device",)), TARGET, "host_device"),
        (VM, replace(TARGET, is_same=True), "migration_same_host"),
        (VM, replace(TARGET, is_connected=False), "target_disconnected"),
        (VM, replace(TARGET, is_reachable_by_hosts=False), "migration_uri_missing"),
        (VM, replace(TARGET, has_uuid=True, has_name=True), "uuid_taken"),
        (VM, replace(TARGET, has_name=True), "name_taken"),
        (VM, replace(TARGET, memory_free_bytes=GIB - 1), "memory_missing"),
        (VM, replace(TARGET, machine_is_known=False, machine="pc-q35-9.0"), "machine_unknown"),
        (replace(VM, needs_same_cpu=True), replace(TARGET, cpu_model="Xeon"), "cpu_incompatible"),
        (VM, replace(TARGET, missing_media=("/iso/cd.iso",)), "media_missing"),
        (replace(OFF, has_tpm=True), replace(TARGET, knows_vtpm_folder=False), "vtpm_state_unknown"),
        (replace(VM, files=(replace(DISK, path="/dev/sdb"),)), TARGET, "disk_not_copyable"),
        (replace(VM, files=(replace(DISK, path=""),)), TARGET, "disk_not_copyable"),
        (LOCAL, TARGET, "datastore_needed"),
        (LOCAL, replace(STORE, free_bytes=GIB), "space_missing"),
        (replace(VM, files=(replace(DISK, is_shared=False, size=0),)), STORE, "size_unknown"),
        (replace(VM, mode=Mode.REQUIRED), replace(TARGET, tls=Tls.NOT_READY), "migration_tls_unavailable"),
        (
            replace(VM, is_encrypted=True, mode=Mode.DISABLED),
            replace(TARGET, tls=Tls.NOT_READY, tls_code="migration_tls_untrusted", tls_reason="another CA"),
            "migration_tls_untrusted",
        ),
    ],
)
def test_each_refusal(vm: MovingVm, target: Target, code: str) -> None:
    assert codes(vm, target) == [code]


@pytest.mark.parametrize("vm", [VM, OFF, replace(VM, is_encrypted=True), replace(OFF, has_tpm=True)])
def test_nothing_against_it(vm: MovingVm) -> None:
    assert codes(vm, TARGET) == []


@pytest.mark.parametrize(
    ("mode", "is_encrypted", "effective", "tries", "falls_back"),
    [
        (Mode.DISABLED, False, Mode.DISABLED, False, False),
        (Mode.OPPORTUNISTIC, False, Mode.OPPORTUNISTIC, True, True),
        (Mode.REQUIRED, False, Mode.REQUIRED, True, False),
        (Mode.DISABLED, True, Mode.REQUIRED, True, False),
        (Mode.OPPORTUNISTIC, True, Mode.REQUIRED, True, False),
    ],
)
def test_the_mode(mode: Mode, is_encrypted: bool, effective: Mode, tries: bool, falls_back: bool) -> None:
    found = plan(replace(VM, mode=mode, is_encrypted=is_encrypted), TARGET)
    assert found.mode is effective is effective_mode(mode, is_encrypted=is_encrypted)
    assert (found.tries_tls, found.may_fall_back) == (tries, falls_back)


def test_opportunistic_goes_without_tls_and_says_so() -> None:
    found = plan(VM, replace(TARGET, tls=Tls.NOT_READY, tls_reason="no certificates"))
    assert not found.refusals
    assert [one.code for one in found.warnings] == ["will_fall_back"]
    assert "no certificates" in found.warnings[0].text


def test_a_cold_move_needs_no_tls_and_no_keys() -> None:
    vm = replace(OFF, is_encrypted=True, has_tpm=True, files=(replace(DISK, is_shared=False, is_encrypted=True),))
    found = plan(vm, replace(STORE, tls=Tls.NOT_READY, is_reachable_by_hosts=False))
    assert not found.refusals and not found.tries_tls
    assert [step.kind for step in found.steps] == [
        StepKind.COPY_FILES, StepKind.COPY_FILES, StepKind.DEFINE, StepKind.DESTROY_ORIGINALS,
    ]  # fmt: skip


def test_steps_of_a_live_move_with_local_disks() -> None:
    vm = replace(VM, is_encrypted=True, has_tpm=True, files=(replace(DISK, is_shared=False, is_encrypted=True),))
    found = plan(vm, STORE)
    assert [step.kind for step in found.steps] == [
        StepKind.CHECK, StepKind.CREATE_FILES, StepKind.SEND_KEYS, StepKind.TRANSFER, StepKind.REMOVE_KEYS,
        StepKind.DESTROY_ORIGINALS,
    ]  # fmt: skip
    assert found.copied_bytes == GIB and "under TLS" in found.steps[3].text


def test_what_is_not_known_to_be_shared() -> None:
    unknown = replace(VM, files=(replace(DISK, is_shared=None),))
    assert [one.code for one in plan(unknown, TARGET).warnings] == ["sharing_assumed"]
    assert plan(unknown, TARGET).copied == ()
    assert len(plan(unknown, STORE).copied) == 1


def test_nvram_needs_no_datastore() -> None:
    nvram = MovingFile("NVRAM", "/var/lib/libvirt/qemu/nvram/app.fd", "raw", 0, is_encrypted=True, is_shared=False)
    assert codes(replace(VM, files=(DISK, nvram)), TARGET) == []


def test_no_combination_crashes_and_each_refusal_has_words() -> None:
    yes_no = (True, False)
    count = 0
    for running, off, encrypted, ours, tpm, shared, mode in product(
        yes_no, yes_no, yes_no, yes_no, yes_no, (True, False, None), Mode
    ):
        vm = replace(
            VM, is_running=running, is_off=off and not running, is_encrypted=encrypted, keys_are_ours=ours, has_tpm=tpm,
            files=(replace(DISK, is_shared=shared, is_encrypted=encrypted),), mode=mode,
            snapshot_count=int(not ours), detached=("/x",) if tpm else (),
        )  # fmt: skip
        for same, connected, tls, store, machine in product(yes_no, yes_no, Tls, ("", "s"), (True, False, None)):
            target = replace(
                TARGET, is_same=same, is_connected=connected, is_reachable_by_hosts=connected, tls=tls, datastore=store,
                free_bytes=GIB, machine_is_known=machine, knows_vtpm_folder=connected,
            )  # fmt: skip
            found = plan(vm, target)
            count += 1
            for finding in (*found.refusals, *found.warnings):
                assert finding.code and finding.text
            assert all(finding.hint for finding in found.refusals)
            assert all(step.text for step in found.steps)
            # An encrypted VM never goes in clear, whatever was chosen.
            assert not (encrypted and (found.may_fall_back or (running and not found.tries_tls)))
    assert count > 10_000
