"""Compliance: a table of drifts, then properties for every pair of expectation and observation."""

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encryption.engine import luks
from encryption.engine.compliance import (
    HEAD_BYTES,
    ExpectedPart,
    ExpectedVm,
    Header,
    ObservedPart,
    ObservedVm,
    SeenHeader,
    State,
    assess,
    look_at_image,
    look_at_vtpm,
)
from encryption.engine.metadata import ProtectedVm, WrappedKey
from encryption.engine.secret import Secret

OURS, HOME, TPM, FOREIGN = (UUID(int=n) for n in (1, 2, 3, 4))
LUKS = luks.create(Secret(b"0" * 64)).header_bytes[:HEAD_BYTES]
KEYS = (
    WrappedKey("disk", "vda", OURS, b"wrapped", "kek", "raw", 1),
    WrappedKey("nvram", "nvram", HOME, b"wrapped", "kek", "raw", 1),
    WrappedKey("vtpm", "vtpm", TPM, b"wrapped", "kek", "raw", 0),
)
ELEMENT = ProtectedVm(UUID(int=9), "KMS", "kek", "Gold", KEYS)
EXPECTED = ExpectedVm(
    "Gold",
    (
        ExpectedPart("nvram", "Gold", encrypts=True, secret=HOME),
        ExpectedPart("vtpm", "Gold", encrypts=True, secret=TPM),
        ExpectedPart("vda", "Gold", encrypts=True, secret=OURS),
        ExpectedPart("vdb", "No encryption", encrypts=False, secret=None),
    ),
    ELEMENT,
)
GOOD, CLEAR = SeenHeader(Header.ENCRYPTED, "LUKS1"), SeenHeader(Header.PLAIN, "no LUKS header")


def part(name: str, secret: UUID | None, seen: SeenHeader = GOOD) -> ObservedPart:
    return ObservedPart(name, f"/i/{name}", seen, secret, secret, f"/i/{name}")


OBSERVED = ObservedVm(
    (part("nvram", HOME), part("vtpm", TPM), part("vda", OURS), part("vdb", None, CLEAR)),
    ELEMENT, "", dumps_core=False, has_managed_save=False, memory_snapshot_count=0,
)  # fmt: skip


def with_part(changed: ObservedPart) -> ObservedVm:
    others = tuple(one for one in OBSERVED.parts if one.name != changed.name)
    return replace(OBSERVED, parts=(*others, changed))


def test_what_is_as_wanted_is_compliant_and_says_what_was_seen() -> None:
    result = assess(EXPECTED, OBSERVED)
    assert (result.state, result.findings) == (State.COMPLIANT, ())
    assert [(one.part, one.state) for one in result.observations] == [
        ("nvram", Header.ENCRYPTED), ("vtpm", Header.ENCRYPTED), ("vda", Header.ENCRYPTED), ("vdb", Header.PLAIN),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("observed", "code", "where"),
    [
        (with_part(part("vda", None, CLEAR)), "disk_plain", "vda"),
        (with_part(part("vda", None, GOOD)), "definition_differs", "vda"),
        (with_part(part("vda", OURS, CLEAR)), "header_missing", "vda"),
        (with_part(part("vda", OURS, SeenHeader(Header.WEAK, "x"))), "header_weak", "vda"),
        (with_part(part("vda", FOREIGN)), "secret_unknown", "vda"),
        (with_part(part("vda", HOME)), "secret_unknown", "vda"),
        (with_part(part("vdb", FOREIGN)), "secret_unknown", "vdb"),
        (with_part(part("nvram", None, CLEAR)), "nvram_plain", "nvram"),
        (with_part(part("nvram", HOME, CLEAR)), "header_missing", "nvram"),
        (with_part(part("vtpm", None, CLEAR)), "vtpm_plain", "vtpm"),
        (with_part(part("vtpm", TPM, CLEAR)), "vtpm_plain", "vtpm"),
        (with_part(part("vtpm", None, SeenHeader(Header.ABSENT, "x"))), "vtpm_plain", "vtpm"),
        (with_part(part("vdc", None, CLEAR)), "disk_plain_unknown", "vdc"),
        (with_part(part("vdc", FOREIGN)), "secret_unknown", "vdc"),
        (with_part(replace(part("vda", OURS), next_secret=None)), "definition_differs", "vda"),
        (with_part(replace(part("vda", OURS), next_path="/i/other")), "definition_differs", "vda"),
        (replace(OBSERVED, parts=OBSERVED.parts[1:]), "definition_differs", "nvram"),
        (replace(OBSERVED, metadata=None), "metadata_differs", "vm"),
        (replace(OBSERVED, metadata=None, metadata_problem="bad"), "metadata_differs", "vm"),
        (replace(OBSERVED, metadata=replace(ELEMENT, kek_id="other")), "metadata_differs", "vm"),
        (replace(OBSERVED, metadata=replace(ELEMENT, kms_cluster=FOREIGN)), "metadata_differs", "vm"),
        (replace(OBSERVED, metadata=replace(ELEMENT, secrets=KEYS[1:])), "metadata_differs", "vm"),
        (
            replace(OBSERVED, metadata=replace(ELEMENT, secrets=(replace(KEYS[0], wrapped=b"x"), *KEYS[1:]))),
            "metadata_differs", "vm",
        ),
        (replace(OBSERVED, dumps_core=True), "dump_core_on", "vm"),
        (replace(OBSERVED, has_managed_save=True), "managed_save_present", "vm"),
        (replace(OBSERVED, memory_snapshot_count=2), "memory_snapshot", "vm"),
    ],
)  # fmt: skip
def test_every_drift_has_its_code_evidence_and_remedy(observed: ObservedVm, code: str, where: str) -> None:
    result = assess(EXPECTED, observed)
    assert result.state is State.NONCOMPLIANT
    (finding,) = result.findings
    assert (finding.code, finding.part) == (code, where)
    assert finding.evidence and finding.remedy and finding.expected and finding.observed


@pytest.mark.parametrize("name", ["nvram", "vtpm", "vda", "vdb"])
def test_what_cannot_be_read_is_not_known(name: str) -> None:
    before = next(one for one in OBSERVED.parts if one.name == name)
    result = assess(EXPECTED, with_part(replace(before, seen=SeenHeader(Header.UNREADABLE, "refused"))))
    assert (result.state, [one.code for one in result.findings]) == (State.UNKNOWN, ["not_readable"])


def test_a_missing_file_is_not_known_and_a_vtpm_without_state_is_fine() -> None:
    absent = SeenHeader(Header.ABSENT, "there is no such file")
    assert assess(EXPECTED, with_part(part("vda", OURS, absent))).state is State.UNKNOWN
    assert assess(EXPECTED, with_part(part("vtpm", TPM, absent))).state is State.COMPLIANT


def test_names_of_policy_and_provider_may_change() -> None:
    renamed = replace(ELEMENT, policy="Silver", kms_cluster_name="KMS 2")
    assert assess(EXPECTED, replace(OBSERVED, metadata=renamed)).state is State.COMPLIANT


def test_a_policy_that_does_not_encrypt_on_an_encrypted_disk() -> None:
    rule = ExpectedPart("vda", "No encryption", encrypts=False, secret=OURS)
    result = assess(replace(EXPECTED, parts=(*EXPECTED.parts[:2], rule, EXPECTED.parts[3])), OBSERVED)
    assert [one.code for one in result.findings] == ["encrypted_against_policy"]


def test_a_disk_that_is_detached_is_no_breach() -> None:
    assert assess(EXPECTED, replace(OBSERVED, parts=OBSERVED.parts[:2])).state is State.COMPLIANT


class TestHeaders:
    def test_ours(self) -> None:
        seen = look_at_image(LUKS)
        assert seen.header is Header.ENCRYPTED and "512-bit" in seen.told and "1 of 8 keyslots" in seen.told

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ((8, b"serpent\0"), "cipher is not"),
            ((40, b"cbc-essiv:sha256\0"), "cipher is not"),
            ((108, b"\0\0\0\x20"), "32 bytes"),
            ((6, b"\0\x02"), "version 2"),
            ((208, b"\0\0\xde\xad"), "0 of 8 keyslots"),
        ],
    )
    def test_weak_ones(self, change: tuple[int, bytes], told: str) -> None:
        at, data = change
        seen = look_at_image(LUKS[:at] + data + LUKS[at + len(data) :])
        assert seen.header is Header.WEAK and told in seen.told

    @pytest.mark.parametrize(
        ("head", "told"),
        [
            (b"", "no LUKS header"),
            (b"\0" * 592, "no LUKS header"),
            (b"QFI\xfb\0\0\0\x03" + b"\0" * 64, "a qcow2 image without"),
            (b"QFI\xfb", "a qcow2 image without"),
            (b"\0" * 510 + b"\x55\xaa", "a boot sector"),
            (b"\0" * 40 + b"_FVH" + b"\0" * 500, "a firmware variable store"),
        ],
    )
    def test_plain_ones(self, head: bytes, told: str) -> None:
        seen = look_at_image(head)
        assert seen.header is Header.PLAIN and told in seen.told

    def test_luks_inside_qcow2(self) -> None:
        assert look_at_image(b"QFI\xfb" + b"\0" * 28 + b"\0\0\0\x02").header is Header.WEAK

    @pytest.mark.parametrize(
        ("flags", "header"), [(0x0, Header.PLAIN), (0x9, Header.ENCRYPTED), (0x1, Header.WEAK), (0x8, Header.PLAIN)]
    )
    def test_vtpm_flags(self, flags: int, header: Header) -> None:
        head = b"\x02\x01\x00\x0a" + flags.to_bytes(2, "big") + b"\0\0\x18\x7c"
        assert look_at_vtpm(head).header is header
        assert look_at_vtpm(head[:5]).header is Header.UNREADABLE

    @given(st.binary(max_size=700))
    def test_any_bytes_are_told_and_never_quoted(self, tail: bytes) -> None:
        for head in (tail, b"LUKS\xba\xbe" + tail, b"QFI\xfb" + tail):
            assert look_at_image(head).told.isprintable()
            assert look_at_vtpm(head).told.isprintable()


SECRETS = st.sampled_from([None, OURS, HOME, TPM, FOREIGN])
NAMES = st.sampled_from(["nvram", "vtpm", "vda", "vdb"])
PATHS = st.sampled_from(["", "/i/a", "/i/b"])
SEEN = st.builds(SeenHeader, st.sampled_from(Header), st.text(max_size=5))
OBSERVED_VMS = st.builds(
    ObservedVm,
    st.lists(st.builds(ObservedPart, NAMES, PATHS, SEEN, SECRETS, SECRETS, PATHS), max_size=5).map(tuple),
    st.sampled_from([None, ELEMENT]), st.sampled_from(["", "bad"]), st.booleans(), st.booleans(), st.integers(0, 2),
)  # fmt: skip
RULES = st.builds(ExpectedPart, NAMES, st.sampled_from(["", "Gold"]), st.booleans(), SECRETS)
EXPECTED_VMS = st.builds(
    ExpectedVm, st.just("Gold"), st.lists(RULES, max_size=5).map(tuple), st.sampled_from([None, ELEMENT])
)


@given(EXPECTED_VMS, OBSERVED_VMS)
def test_it_answers_for_every_pair_and_what_is_not_readable_is_never_compliant(
    expected: ExpectedVm, observed: ObservedVm
) -> None:
    result = assess(expected, observed)
    bad = [finding for finding in result.findings if not finding.is_unknown]
    assert (result.state is State.NONCOMPLIANT) == bool(bad)
    assert (result.state is State.COMPLIANT) == (not result.findings)
    if any(one.seen.header is Header.UNREADABLE for one in observed.parts):
        assert result.state is not State.COMPLIANT
    assert all(finding.code and finding.evidence and finding.remedy for finding in result.findings)
    assert len(result.observations) == len(observed.parts)


@given(OBSERVED_VMS)
def test_a_plain_file_where_encryption_is_wanted_is_never_compliant(observed: ObservedVm) -> None:
    plain = [one for one in observed.parts if one.name == "vda" and one.seen.header is Header.PLAIN]
    assert not plain or assess(EXPECTED, observed).state is State.NONCOMPLIANT
