"""The plan of a new VM, over firmware x protection x host x key provider: none crashes, each refusal has words."""

from dataclasses import replace
from itertools import product

from encryption.engine.options import (
    DesiredVm,
    HostAbilities,
    KeyProvider,
    StepKind,
    VmHardware,
    Vmotion,
    creation_effects,
    creation_obstacles,
    plan_creation,
)
from tests.encryption.engine.test_options import PLAIN, codes, disk, kinds
from tests.encryption.engine.test_options_matrix import ABLE, UNABLE

BLANK = replace(
    PLAIN, disks=(disk("vda", is_blank=True), disk("vdb", is_blank=True)), nvram_path="", host=ABLE,
    hardware=VmHardware(is_q35=True),
)  # fmt: skip
PARTS = frozenset({"vda", "vdb"})


def test_every_combination() -> None:
    for firmware, host, provider, disks, home, vtpm, secure_boot, vbs, vmotion in product(
        ("uefi", "bios"), (ABLE, UNABLE, HostAbilities()), KeyProvider, (frozenset(), {"vda"}, PARTS),
        (False, True), (None, True), (None, True), (None, True), (None, *Vmotion),
    ):  # fmt: skip
        desired = DesiredVm(
            home, frozenset(disks), key_provider=provider, home_is_for_vtpm=bool(home and vtpm and not disks),
            vtpm=vtpm, secure_boot=secure_boot, vbs=vbs, encrypted_vmotion=vmotion,
        )  # fmt: skip
        made = plan_creation(replace(BLANK, firmware=firmware, host=host), desired, hardware="2 CPUs")
        assert all(one.text and one.hint for one in made.refusals), made.refusals
        found = kinds(made)
        assert found.count(StepKind.MAKE_DISK) == 2 and StepKind.DEFINE in found
        assert not {StepKind.SWITCH_DEFINITION, StepKind.ENCRYPT_DISK, StepKind.DESTROY_ORIGINALS} & set(found)
        assert all(one.text for one in creation_effects(made, host="kvm01", key_provider=""))
        if home and provider is KeyProvider.NONE:
            assert "no_key_provider" in codes(made)
        if home and provider is KeyProvider.UNTRUSTED:
            assert "key_provider_untrusted" in codes(made)
        if firmware == "bios" and (secure_boot or vbs or vtpm) and host is not HostAbilities():
            assert made.refusals
        if not host.is_known:
            assert codes(made)[0] == "host_not_asked"


def test_in_the_order_in_which_it_is_done() -> None:
    desired = DesiredVm(True, frozenset({"vda"}), vtpm=True, vbs=True)
    made = plan_creation(BLANK, desired, hardware="2 CPUs, 4.0 GiB of memory")
    assert not made.refusals
    assert kinds(made) == [
        StepKind.CREATE_KEY,
        StepKind.WRAP_SECRETS,
        StepKind.MAKE_DISK,
        StepKind.MAKE_DISK,
        StepKind.MAKE_NVRAM,
        StepKind.ADD_VTPM,
        StepKind.SET_VBS,
        StepKind.DEFINE,
    ]
    texts = [step.text for step in made.steps]
    assert "LUKS image" in texts[2] and "not encrypted" in texts[3]
    assert texts[-1] == "Define web: 2 CPUs, 4.0 GiB of memory, UEFI with Secure Boot; it stays off"
    told = {one.label: one.text for one in creation_effects(made, host="kvm01", key_provider="Main")}
    assert told["Space"].startswith("up to 2.0 GiB") and "a key encryption key at Main" in told["Keys to be made"]
    assert "vda, NVRAM, vTPM state" in told["Keys to be made"]


def test_nothing_to_encrypt() -> None:
    bios = replace(BLANK, firmware="bios")
    assert "nothing_to_encrypt" in codes(plan_creation(bios, DesiredVm(True, frozenset()), hardware=""))
    assert not plan_creation(bios, DesiredVm(True, frozenset({"vda"})), hardware="").refusals
    plain = plan_creation(bios, DesiredVm(False, frozenset()), hardware="")
    assert kinds(plain) == [StepKind.MAKE_DISK, StepKind.MAKE_DISK, StepKind.DEFINE] and not plain.refusals


def test_controls_that_cannot_be_used() -> None:
    def codes_of(**values: object) -> dict[str, set[str]]:
        blank = replace(BLANK, disks=(), **values)  # type: ignore[arg-type]
        found = creation_obstacles(blank, key_provider=KeyProvider.CONNECTED)
        assert all(one.text and one.hint for reasons in found.values() for one in reasons)
        return {name: {one.code for one in reasons} for name, reasons in found.items()}

    assert codes_of() == {"vtpm": set(), "secure_boot": set(), "vbs": set()}
    bios = {"vtpm": {"vtpm_needs_uefi"}, "secure_boot": {"secure_boot_needs_uefi"}, "vbs": {"secure_boot_needs_uefi"}}
    assert codes_of(firmware="bios") == bios
    assert codes_of(firmware="bios", host=HostAbilities()) == bios, "whatever the host can"
    assert codes_of(host=HostAbilities()) == {"vtpm": set(), "secure_boot": set(), "vbs": set()}, "not known: tried"
    unable = codes_of(host=UNABLE)
    assert "vtpm_not_on_host" in unable["vtpm"] and "secure_boot_not_on_host" in unable["secure_boot"] & unable["vbs"]
    alone = creation_obstacles(BLANK, key_provider=KeyProvider.NONE)
    assert [one.code for one in alone["vtpm"]] == ["no_key_provider"] and not alone["secure_boot"]
