"""Secure Boot and VBS in the plan: what is done, what is refused and why; then every combination."""

from dataclasses import replace
from itertools import product

import pytest

from encryption.engine.options import CurrentVm, DesiredVm, HostAbilities, Plan, StepKind, VmHardware, plan
from tests.encryption.engine.test_options import PLAIN, codes, disk, kinds

HOST = HostAbilities(
    uefi=True, secure_boot=True, vtpm=True, nested="vmx", viommu=True, q35=True, smm=True, plain_uefi=True,
    nested_in_cpu="vmx", is_kvm=True, is_firmware_4m=True,
)  # fmt: skip
HARDWARE = VmHardware(is_q35=True, is_kvm=True)
VM = replace(PLAIN, firmware="uefi", hardware=HARDWARE, host=HOST)
WITH_VBS = replace(
    VM, has_secure_boot=True, hardware=replace(HARDWARE, has_vbs=True, remembers_vbs=True, iommu="intel")
)
AS_IT_IS = DesiredVm(encrypt_home=False, encrypted_disks=frozenset())
VBS, NO_VBS = replace(AS_IT_IS, vbs=True), replace(AS_IT_IS, vbs=False)
SECURE, INSECURE = replace(AS_IT_IS, secure_boot=True), replace(AS_IT_IS, secure_boot=False)
BIOS = replace(VM, firmware="bios", nvram_path="")
BLANK = (disk("vda", is_blank=True),)
SWITCH = StepKind.SWITCH_DEFINITION


def warned(made: Plan) -> list[str]:
    return [one.code for one in made.warnings]


@pytest.mark.parametrize(
    ("current", "desired", "steps", "warnings"),
    [
        (VM, VBS, [StepKind.SET_FIRMWARE, StepKind.SET_VBS, SWITCH], ["vbs_in_guest", "keys_enrolled"]),
        (replace(VM, has_secure_boot=True), VBS, [StepKind.SET_VBS, SWITCH], ["vbs_in_guest"]),
        (replace(VM, nvram_path=""), SECURE, [StepKind.SET_FIRMWARE, SWITCH], []),
        (VM, SECURE, [StepKind.SET_FIRMWARE, SWITCH], ["keys_enrolled"]),
        (replace(VM, has_secure_boot=True), INSECURE, [StepKind.SET_FIRMWARE, SWITCH], ["secure_boot_off"]),
        (WITH_VBS, NO_VBS, [StepKind.UNSET_VBS, SWITCH], ["vbs_off_in_guest"]),
        (
            WITH_VBS, replace(NO_VBS, secure_boot=False), [StepKind.SET_FIRMWARE, StepKind.UNSET_VBS, SWITCH],
            ["vbs_off_in_guest", "secure_boot_off"],
        ),
        (
            replace(WITH_VBS, hardware=replace(WITH_VBS.hardware, remembers_vbs=False)), NO_VBS,
            [StepKind.UNSET_VBS, SWITCH], ["vbs_off_in_guest", "vbs_not_remembered"],
        ),
        (
            replace(VM, has_secure_boot=True, host=replace(HOST, is_kvm=False, nested="svm")), VBS,
            [StepKind.SET_VBS, SWITCH], ["vbs_in_guest", "vbs_emulated"],
        ),
        # A VM with BIOS and nothing to lose.
        (replace(BIOS, disks=BLANK), SECURE, [StepKind.SET_FIRMWARE, SWITCH], []),
        (replace(BIOS, disks=()), VBS, [StepKind.SET_FIRMWARE, StepKind.SET_VBS, SWITCH], ["vbs_in_guest"]),
        # As wanted already.
        (WITH_VBS, VBS, [], []),
        (WITH_VBS, SECURE, [], []),
        (VM, NO_VBS, [], []),
        (VM, INSECURE, [], []),
        (replace(VM, is_running=True, host=HostAbilities()), AS_IT_IS, [], []),
    ],
)  # fmt: skip
def test_allowed(current: CurrentVm, desired: DesiredVm, steps: list[StepKind], warnings: list[str]) -> None:
    made = plan(current, desired)
    assert codes(made) == []
    assert (kinds(made), warned(made)) == (steps, warnings)


def host(**changes: object) -> CurrentVm:
    return replace(VM, host=replace(HOST, **changes))  # type: ignore[arg-type]


def hardware(**changes: object) -> CurrentVm:
    return replace(VM, hardware=replace(HARDWARE, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("current", "desired", "refusals"),
    [
        (replace(VM, is_running=True), VBS, ["vbs_needs_power_off"]),
        (replace(VM, is_running=True), SECURE, ["vbs_needs_power_off"]),
        (replace(WITH_VBS, is_running=True), NO_VBS, ["vbs_needs_power_off"]),
        (BIOS, VBS, ["vbs_needs_uefi"]),
        (BIOS, SECURE, ["vbs_needs_uefi"]),
        (replace(BIOS, disks=(*BLANK, disk("vdb"))), VBS, ["vbs_needs_uefi"]),
        (hardware(is_q35=False), VBS, ["vbs_needs_q35"]),
        (replace(hardware(is_q35=False), has_secure_boot=True), VBS, ["vbs_needs_q35"]),
        (hardware(is_q35=False), SECURE, ["vbs_needs_q35"]),
        (hardware(passthrough_devices=1), VBS, ["vbs_with_passthrough"]),
        (hardware(has_cpu_hotplug=True), VBS, ["vbs_with_hotplug"]),
        (hardware(has_memory_hotplug=True), VBS, ["vbs_with_hotplug"]),
        (hardware(iommu="virtio"), VBS, ["vbs_with_other_viommu"]),
        (hardware(is_kvm=False), VBS, ["vbs_in_emulation"]),
        (hardware(is_firmware_4m=False), SECURE, ["firmware_of_other_size"]),
        (host(nested=""), VBS, ["nested_not_on_host"]),
        (host(viommu=False), VBS, ["viommu_not_on_host"]),
        (host(secure_boot=False), VBS, ["secure_boot_not_on_host"]),
        (host(secure_boot=False), SECURE, ["secure_boot_not_on_host"]),
        (host(smm=False), SECURE, ["smm_not_on_host"]),
        (replace(host(plain_uefi=False), has_secure_boot=True), INSECURE, ["plain_uefi_not_on_host"]),
        (replace(VM, host=HostAbilities()), VBS, ["host_not_asked"]),
        (replace(VM, host=HostAbilities()), SECURE, ["host_not_asked"]),
        (VM, replace(VBS, secure_boot=False), ["vbs_needs_secure_boot"]),
        (WITH_VBS, INSECURE, ["vbs_needs_secure_boot"]),
        (replace(VM, snapshot_count=1), VBS, ["snapshots_present"]),
        (replace(VM, has_managed_save=True), VBS, ["managed_save_present"]),
    ],
)  # fmt: skip
def test_refused(current: CurrentVm, desired: DesiredVm, refusals: list[str]) -> None:
    made = plan(current, desired)
    assert codes(made) == refusals
    assert all(one.text and one.hint for one in made.refusals)


def test_the_remedy_for_nested_virtualization_names_the_module() -> None:
    hints = {in_cpu: plan(host(nested="", nested_in_cpu=in_cpu), VBS).refusals[0].hint for in_cpu in ("vmx", "svm", "")}
    assert "kvm_intel with nested=1" in hints["vmx"] and "kvm_amd with nested=1" in hints["svm"]
    assert "VT-x or AMD-V" in hints[""]


FLAGS = list(product((False, True), repeat=7))


@pytest.mark.parametrize("is_q35", [None, False, True])
def test_every_combination_has_an_answer_in_words(is_q35: bool | None) -> None:
    for is_uefi, running, secure, vbs, asked, nested, saved in FLAGS:
        has_secure_boot = secure and is_uefi
        current = replace(
            VM if is_uefi else BIOS, is_running=running, has_secure_boot=has_secure_boot, has_managed_save=saved,
            hardware=replace(HARDWARE, is_q35=is_q35, has_vbs=vbs and has_secure_boot),
            host=replace(HOST, nested="vmx" if nested else "") if asked else HostAbilities(),
        )  # fmt: skip
        for wanted_vbs, wanted_secure_boot in product((None, False, True), repeat=2):
            made = plan(current, replace(AS_IT_IS, vbs=wanted_vbs, secure_boot=wanted_secure_boot))
            for finding in (*made.refusals, *made.warnings):
                assert finding.code
                assert finding.text[0].isupper() or finding.text.startswith("web")
            assert len({one.code for one in made.refusals}) == len(made.refusals)
            assert all(step.text for step in made.steps)
            if not made.refusals and made.steps:
                assert made.steps[-1].kind is SWITCH
