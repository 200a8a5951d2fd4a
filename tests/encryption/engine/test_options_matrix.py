"""The plan over the whole matrix of states and wishes: none crashes, each refusal has words, and the rules hold."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from encryption.engine.options import (
    HARDWARE,
    KEY_CODES,
    Approved,
    CurrentVm,
    DesiredVm,
    HostAbilities,
    KeyProvider,
    KeyState,
    Plan,
    PlannedStep,
    State,
    StepKind,
    VmHardware,
    Vmotion,
    differences,
    effects,
    obstacles,
    plan,
    states,
)
from tests.encryption.engine.test_options import ALL, ENCRYPTED, NONE, PLAIN, codes, disk, kinds

ABLE = HostAbilities(
    uefi=True, secure_boot=True, vtpm=True, nested="vmx", viommu=True, q35=True, smm=True, plain_uefi=True
)
UNABLE = HostAbilities(
    uefi=False, secure_boot=False, vtpm=False, nested="", viommu=False, q35=False, smm=False, plain_uefi=False
)
Q35 = VmHardware(is_q35=True)
READY = replace(PLAIN, host=ABLE, hardware=Q35)
FIRMWARES: dict[str, dict[str, Any]] = {"uefi": {"firmware": "uefi"}, "bios": {"firmware": "bios", "nvram_path": ""}}
TPMS: dict[str, dict[str, Any]] = {
    "none": {"has_tpm": False},
    "plain": {"has_tpm": True},
    "encrypted": {"has_tpm": True, "is_tpm_encrypted": True},
    "place unknown": {"has_tpm": True, "tpm_state_known": False},
}
KEPT: dict[str, dict[str, Any]] = {
    "none": {},
    "snapshots": {"snapshot_count": 2, "memory_snapshot_count": 1},
    "saved": {"has_managed_save": True},
}
NEED_KEY = {
    StepKind.CREATE_KEY, StepKind.WRAP_SECRETS, StepKind.ENCRYPT_DISK, StepKind.ENCRYPT_NVRAM, StepKind.ENCRYPT_VTPM,
    StepKind.DECRYPT_DISK, StepKind.DECRYPT_NVRAM, StepKind.DECRYPT_VTPM,
}  # fmt: skip
HOSTS = {"able": ABLE, "unable": UNABLE, "not known": HostAbilities()}
WISHES = [
    DesiredVm(
        encrypt, frozenset({"vda"}) if encrypt else frozenset(), home_is_for_vtpm=for_vtpm, vtpm=vtpm,
         secure_boot=secure_boot, vbs=vbs, encrypted_vmotion=vmotion,
    )
    for encrypt, for_vtpm, vtpm, secure_boot, vbs, vmotion in product(
        (False, True), (False, True), (None, True, False), (None, True, False), (None, True, False),
        (None, *Vmotion),
    )
    if encrypt or not for_vtpm
]  # fmt: skip


def situations() -> list[CurrentVm]:
    return [
        replace(
            base, is_running=running, host=HOSTS[host], hardware=replace(Q35, is_q35=q35, has_vbs=has_vbs),
            has_secure_boot=has_vbs, **FIRMWARES[firmware], **TPMS[tpm], **KEPT[kept],
        )
        for firmware, running, base, tpm, kept, host, (q35, has_vbs) in product(
            FIRMWARES, (False, True), (PLAIN, ENCRYPTED), TPMS, KEPT, HOSTS,
            ((True, False), (True, True), (False, False), (None, False)),
        )
    ]  # fmt: skip


def check(current: CurrentVm, desired: DesiredVm, made: Plan) -> None:
    for one in (*made.refusals, *made.warnings):
        assert one.code and one.code == one.code.lower() and len(one.text) > 10, one
    assert all(one.hint for one in made.refusals), made.refusals
    assert len({one.code for one in made.refusals}) == len({(one.code, one.text) for one in made.refusals})
    found = set(kinds(made))
    if found & HARDWARE:
        assert StepKind.SWITCH_DEFINITION in found
        if current.is_running or current.has_managed_save or current.snapshot_count:
            assert made.refusals
    if StepKind.ADD_VTPM in found:
        assert StepKind.WRAP_SECRETS in found and kinds(made).index(StepKind.ADD_VTPM) < kinds(made).index(
            StepKind.SWITCH_DEFINITION
        )
    if StepKind.REMOVE_VTPM in found:  # the state is destroyed only once nothing refers to it
        assert kinds(made).index(StepKind.REMOVE_VTPM) > kinds(made).index(StepKind.SWITCH_DEFINITION)
        assert StepKind.DECRYPT_VTPM not in found and StepKind.ENCRYPT_VTPM not in found
    check_keys(current, desired, made)
    told = effects(current, desired, made, host="kvm01", key_provider="Main")
    assert bool(told) == bool(made.steps) and all(one.text for one in told)


def check_keys(current: CurrentVm, desired: DesiredVm, made: Plan) -> None:
    """What needs keys is refused where they cannot be had, and nothing else is."""
    told = set(codes(made)) | {one.code for one in made.warnings}
    needs = bool(set(kinds(made)) & NEED_KEY)
    assert needs or not told & KEY_CODES
    assert (needs and current.key_state is KeyState.LOCKED) == ("vm_locked" in codes(made))
    assert (needs and current.key_state is KeyState.MISSING) == ("key_missing" in codes(made))
    assert (needs and desired.key_provider is KeyProvider.UNTRUSTED) == ("key_provider_untrusted" in codes(made))
    assert (needs and desired.key_provider is KeyProvider.UNREACHABLE) == ("key_provider_unreachable" in told)
    assert "key_provider_unreachable" not in codes(made)
    if desired.key_provider is KeyProvider.NONE and desired.encrypt_home:
        assert "no_key_provider" in codes(made)


@pytest.mark.slow
def test_no_combination_crashes_and_each_refusal_has_words() -> None:
    """Every situation with every wish would be millions of plans: each situation, with each state of the key provider
    and of the VM's key, meets a part of the wishes, its neighbours other ones."""
    for number, (current, (provider, key)) in enumerate(product(situations(), product(KeyProvider, KeyState))):
        current = replace(current, key_state=key, lock_reason="its key is missing" if key is KeyState.LOCKED else "")
        for wish in WISHES[number % 211 :: 211]:
            desired = replace(wish, key_provider=provider)
            check(current, desired, plan(current, desired))
        if key is KeyState.LOCKED or provider is KeyProvider.NONE or number % 13 == 0:
            for control, reasons in obstacles(current, key_provider=provider).items():
                assert all(one.text and one.hint for one in reasons), (control, reasons)


@pytest.mark.parametrize(
    ("change", "desired", "code"),
    [
        ({}, {"vtpm": True, "key_provider": KeyProvider.NONE}, "no_key_provider"),
        ({"is_running": True}, {"vtpm": True}, "vtpm_needs_power_off"),
        ({}, {"vtpm": True, "key_provider": KeyProvider.UNTRUSTED}, "key_provider_untrusted"),
        ({"key_state": KeyState.LOCKED, "lock_reason": "gone"}, {"vtpm": True}, "vm_locked"),
        ({"key_state": KeyState.MISSING}, {"encrypt_home": True}, "key_missing"),
        ({"firmware": "bios", "nvram_path": ""}, {"vtpm": True}, "vtpm_needs_uefi"),
        ({"host": UNABLE}, {"vtpm": True}, "vtpm_not_on_host"),
        ({"tpm_state_known": False}, {"vtpm": True}, "vtpm_state_unknown"),
        ({"has_tpm": True, "is_running": True}, {"vtpm": False}, "vtpm_needs_power_off"),
        ({"is_running": True}, {"secure_boot": True}, "vbs_needs_power_off"),
        ({}, {"encrypt_home": True, "encrypted_vmotion": Vmotion.DISABLED}, "vmotion_fixed"),
        ({"snapshot_count": 1}, {"vbs": True}, "snapshots_present"),
        ({"has_managed_save": True}, {"secure_boot": True}, "managed_save_present"),
        ({}, {"encrypt_home": True, "home_is_for_vtpm": True}, "vtpm_home_without_vtpm"),
    ],
)
def test_refused(change: dict[str, object], desired: dict[str, object], code: str) -> None:
    encrypt = bool(desired.get("vtpm")) or bool(desired.get("encrypt_home"))
    wish = replace(DesiredVm(encrypt, frozenset()), **desired)  # type: ignore[arg-type]
    assert code in codes(plan(replace(READY, **change), wish))  # type: ignore[arg-type]


def test_a_vtpm_alone_encrypts_the_home_and_no_disk() -> None:
    made = plan(READY, DesiredVm(True, frozenset(), home_is_for_vtpm=True, vtpm=True))
    assert not made.refusals
    assert kinds(made) == [
        StepKind.CREATE_KEY,
        StepKind.WRAP_SECRETS,
        StepKind.ENCRYPT_NVRAM,
        StepKind.ADD_VTPM,
        StepKind.SWITCH_DEFINITION,
        StepKind.DESTROY_ORIGINALS,
    ]
    assert "home_for_vtpm" in [one.code for one in made.warnings]


def test_what_is_so_already_is_no_step() -> None:
    """A plan that is made again after a crash refuses nothing that has been done."""
    done = replace(
        ENCRYPTED, has_tpm=True, is_tpm_encrypted=True, has_secure_boot=True, hardware=replace(Q35, has_vbs=True),
        host=UNABLE, encrypted_vmotion=Vmotion.REQUIRED,
    )  # fmt: skip
    made = plan(done, replace(ALL, vtpm=True, secure_boot=True, vbs=True, encrypted_vmotion=Vmotion.REQUIRED))
    assert made.is_empty, made
    gone = plan(replace(PLAIN, host=UNABLE), replace(NONE, vtpm=False, vbs=False, secure_boot=False))
    assert gone.is_empty, gone


def test_encrypted_vmotion_alone_needs_no_switch() -> None:
    made = plan(READY, replace(NONE, encrypted_vmotion=Vmotion.DISABLED))
    assert kinds(made) == [StepKind.SET_MIGRATION] and made.steps[0].undo
    assert [one.code for one in made.warnings] == ["vmotion_clear"]


def test_an_obstacle_says_what_would_help() -> None:
    found = obstacles(replace(READY, is_running=True), key_provider=KeyProvider.NONE)
    assert {"no_key_provider", "vtpm_needs_power_off"} <= {one.code for one in found["vtpm"]}
    assert not found["encrypted_vmotion"]
    assert not any(obstacles(READY, key_provider=KeyProvider.CONNECTED).values())
    assert [one.code for one in obstacles(ENCRYPTED, key_provider=KeyProvider.CONNECTED)["encrypted_vmotion"]] == [
        "vmotion_fixed"
    ]


class TestKeys:
    @pytest.mark.parametrize("provider", KeyProvider)
    @pytest.mark.parametrize("key", KeyState)
    def test_what_needs_none_never_asks_for_them(self, provider: KeyProvider, key: KeyState) -> None:
        wish = replace(NONE, key_provider=provider, secure_boot=True, encrypted_vmotion=Vmotion.REQUIRED)
        made = plan(replace(READY, key_state=key), wish)
        assert not made.refusals and StepKind.SET_FIRMWARE in kinds(made)

    def test_one_that_does_not_answer_may_by_then(self) -> None:
        made = plan(READY, replace(ALL, key_provider=KeyProvider.UNREACHABLE))
        assert not made.refusals and "key_provider_unreachable" in [one.code for one in made.warnings]
        assert plan(READY, replace(ALL, key_provider=KeyProvider.UNKNOWN)).refusals == ()

    def test_how_it_was_last_seen_is_not_approved(self) -> None:
        """The worker asks it, whatever was seen before; the plan stays the one that was approved."""
        seen = {
            Approved.of(plan(READY, replace(ALL, key_provider=one)), "aa").digest
            for one in KeyProvider
            if one is not KeyProvider.NONE
        }
        assert len(seen) == 1

    def test_a_key_that_is_not_active_any_more_is_told(self) -> None:
        made = plan(replace(ENCRYPTED, key_state=KeyState.NOT_ACTIVE), NONE)
        assert "key_not_active" in [one.code for one in made.warnings] and not set(codes(made)) & KEY_CODES


class TestDigest:
    def test_it_is_that_of_the_plan_and_the_definition(self) -> None:
        made = plan(PLAIN, ALL)
        first = Approved.of(made, "aa")
        assert first == Approved.of(plan(PLAIN, ALL), "aa") and len(first.digest) == 64
        assert Approved.from_params(first.as_params()) == first
        others = [Approved.of(made, "bb"), Approved.of(plan(PLAIN, NONE), "aa")]
        assert len({first.digest, *(one.digest for one in others)}) == 3

    def test_what_is_different_is_said(self) -> None:
        approved, bigger = (
            Approved.of(plan(replace(PLAIN, disks=(disk("vda", format=one),)), ALL), "aa") for one in ("raw", "qcow2")
        )
        told = differences(approved, bigger)
        assert told[0].startswith("no longer: Encrypt vda (raw)") and told[1].startswith("new: Encrypt vda (qcow2)")
        assert differences(approved, replace(approved, digest="x", definition="bb")) == (
            "the VM's definition was changed",
        )
        assert differences(approved, approved) == ()
        assert differences(approved, replace(approved, digest="x"))


class TestStates:
    steps = tuple(PlannedStep.of(step) for step in plan(replace(PLAIN, has_tpm=True), ALL).steps)

    def at(self, reported: str) -> list[str]:
        found = states(self.steps, reported, is_live=True, has_succeeded=False)
        return [step.kind for step, state in zip(self.steps, found, strict=True) if state is State.DOING]

    @pytest.mark.parametrize(
        ("reported", "kind"),
        [
            ("creating a key at the key provider", "create_key"),
            ("encrypting NVRAM", "encrypt_nvram"),
            ("encrypting the vTPM state", "encrypt_vtpm"),
            ("verifying vda", "encrypt_disk"),
            ("encrypting vdb while the VM runs", "encrypt_disk"),
            ("encrypting vda on kvm01", "encrypt_disk"),
            ("switching the definition", "switch_definition"),
            ("destroying the originals", "destroy_originals"),
        ],
    )
    def test_words_of_the_worker(self, reported: str, kind: str) -> None:
        assert self.at(reported) == [kind]

    def test_before_after_and_failed(self) -> None:
        assert self.at("looking at the virtual machine") == []
        assert set(states(self.steps, "x", is_live=False, has_succeeded=True)) == {State.DONE}
        found = states(self.steps, "encrypting vda", is_live=False, has_succeeded=False)
        at = found.index(State.FAILED)
        assert set(found[:at]) == {State.DONE} and set(found[at + 1 :]) == {State.WAITING}
