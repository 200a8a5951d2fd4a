"""Leftovers: a table of files and what they are taken for, and that nothing in use is ever among them."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encryption.engine.leftovers import Content, Finding, FoundFile, Kind, KnownVm, backing_chain, classify, content_of

WEB, OTHER = UUID(int=1), UUID(int=2)
GONE = UUID("11111111-2222-3333-4444-555555555555")
TPM = UUID("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee")
GIB = 2**30

LUKS = b"LUKS\xba\xbe\x00\x01".ljust(600, b"\x07")
QCOW2 = b"QFI\xfb\x00\x00\x00\x03".ljust(600, b"\0")
QCOW2_LUKS = (b"QFI\xfb\x00\x00\x00\x03".ljust(32, b"\0") + b"\0\0\0\2").ljust(600, b"\0")
MBR = b"\x33\xc0".ljust(510, b"\0") + b"\x55\xaa"
GPT = bytes(512) + b"EFI PART"
EXT4 = bytes(1080) + b"\x53\xef"
VARS = bytes(40) + b"_FVH" + b"\xff" * 100
SAVE = b"LibvirtQemudSave" + bytes(76)
CORE = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\x04\x00" + bytes(50)
PROGRAM = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\x03\x00" + bytes(50)
TPM_PLAIN = b"\x02\x01\x00\x0a\x00\x00\x00\x00\x00\x20" + bytes(22)
TPM_ENCRYPTED = b"\x02\x01\x00\x0a\x00\x09\x00\x00\x00\x20" + bytes(22)

VM = KnownVm(
    id=WEB, uuid=TPM, name="web-01", is_protected=True, has_encrypted_tpm=True,
    encrypted=frozenset({"/pool/web/root-1a2b3c4d.luks", "/pool/web/VARS-1a2b3c4d.luks"}),
    plain_paths=frozenset({"/pool/web/root.raw", "/pool/web/VARS.fd"}),
    half_written=frozenset({"/pool/web/data-plain-1a2b3c4d.raw"}), sizes=frozenset({40 * GIB}),
)  # fmt: skip
PLAIN = KnownVm(id=OTHER, uuid=UUID(int=99), name="plain-01", is_protected=False)
USED = frozenset({"/pool/web/root-1a2b3c4d.luks", "/pool/web/VARS-1a2b3c4d.luks", f"/swtpm/{TPM}/tpm2", "/pool/p.raw"})


def found(path: str, head: bytes = MBR, size: int = 4096, capacity: int = 0, backing: str = "") -> FoundFile:
    return FoundFile(path, size, capacity or size, backing, head)


def one(file: FoundFile) -> Finding | None:
    made = classify([file], [VM, PLAIN], USED)
    assert len(made) <= 1
    return made[0] if made else None


@pytest.mark.parametrize(
    ("head", "path", "content"),
    [
        (LUKS, "", Content.LUKS), (QCOW2, "", Content.QCOW2), (QCOW2_LUKS, "", Content.LUKS), (MBR, "", Content.DISK),
        (GPT, "", Content.DISK), (EXT4, "", Content.DISK), (VARS, "", Content.VARIABLES),
        (SAVE, "", Content.SAVED_STATE), (b"LibvirtQemudPart", "", Content.SAVED_STATE),
        (b"QEVM\0\0\0\3", "", Content.MEMORY_STREAM), (b"KDUMP   \6", "", Content.CORE_DUMP),
        (CORE, "", Content.CORE_DUMP), (PROGRAM, "", Content.OTHER), (b"", "", Content.EMPTY),
        (bytes(900), "", Content.EMPTY), (b"hello", "", Content.OTHER),
        (TPM_PLAIN, "/a/tpm2-00.permall", Content.PLAIN_TPM), (TPM_ENCRYPTED, "/a/tpm2-00.permall", Content.OTHER),
        (b"junk", "/a/tpm2-00.permall", Content.OTHER), (TPM_PLAIN, "/a/other", Content.OTHER),
    ],
)  # fmt: skip
def test_content(head: bytes, path: str, content: Content) -> None:
    assert content_of(head, path) is content


@pytest.mark.parametrize(
    ("file", "kind", "owner"),
    [
        (found("/pool/web/root.raw"), Kind.ORIGINAL, WEB),
        (found("/pool/web/root.raw", b"no partition table"), Kind.ORIGINAL, WEB),
        (found("/pool/web/VARS.fd", VARS), Kind.ORIGINAL, WEB),
        (found("/pool/web/data-plain-1a2b3c4d.raw", b""), Kind.HALF_WRITTEN, WEB),
        (found("/pool/web/data-plain-1a2b3c4d.raw", LUKS), Kind.HALF_WRITTEN, WEB),
        (found("/pool/web/root.qcow2", QCOW2), Kind.PLAIN_COPY, WEB),
        (found("/pool/web/root.raw.bak"), Kind.PLAIN_COPY, WEB),
        (found("/pool/web/root-old.raw", GPT), Kind.PLAIN_COPY, WEB),
        (found("/pool/web/root-plain-99999999.raw"), Kind.PLAIN_COPY, WEB),
        (found("/backup/web-01.qcow2", QCOW2), Kind.PLAIN_COPY, WEB),
        (found("/backup/web-01 (copy).raw"), Kind.PLAIN_COPY, WEB),
        (found("/backup/unnamed.raw", capacity=40 * GIB), Kind.SAME_SIZE, WEB),
        (found("/backup/web-01_VARS.fd", VARS), Kind.NVRAM_COPY, WEB),
        (found("/save/web-01.save", SAVE), Kind.SAVED_STATE, WEB),
        (found("/x/snap.mem", SAVE + f"<domain><uuid>{TPM}</uuid>".encode()), Kind.SAVED_STATE, WEB),
        (found("/x/mem", SAVE + f"<uuid>{GONE}</uuid>".encode()), Kind.SAVED_STATE, None),
        (found("/dump/web-01-2026-11-23-10:00:00", b"QEVM"), Kind.CORE_DUMP, WEB),
        (found("/dump/core.1234", CORE), Kind.CORE_DUMP, None),
        (found(f"/swtpm/{TPM}/tpm2.old-1a2b3c4d/tpm2-00.permall", TPM_PLAIN), Kind.VTPM_STATE, WEB),
        (found(f"/swtpm/{GONE}/tpm2/tpm2-00.permall", TPM_PLAIN), Kind.VTPM_STATE, None),
    ],
    ids=lambda value: value.path if isinstance(value, FoundFile) else "",
)
def test_is_one(file: FoundFile, kind: Kind, owner: UUID | None) -> None:
    made = one(file)
    assert made is not None
    assert (made.path, made.kind, made.vm_id, made.size) == (file.path, kind, owner, file.size)
    assert made.evidence and all(made.evidence)


@pytest.mark.parametrize(
    "file",
    [
        found("/pool/web/root-1a2b3c4d.luks", LUKS),
        found("/pool/web/root-1a2b3c4d.luks", MBR),  # in use, whatever is in it: compliance tells that
        found("/pool/web/root.raw", LUKS),
        found("/pool/web/root.raw", size=0),
        found("/pool/web/rootfs.txt", b"text"),
        found("/pool/web/readme.txt", b"text"),
        found("/pool/web/rooted.raw"),
        found("/pool/p.raw"),
        found("/pool/p.raw", capacity=40 * GIB),
        found("/backup/plain-01.qcow2", QCOW2),
        found("/backup/web-012.qcow2", QCOW2),
        found("/iso/debian.iso", MBR, capacity=GIB),
        found("/backup/export.luks", LUKS, capacity=40 * GIB),
        found("/save/plain-01.save", SAVE + f"<uuid>{UUID(int=99)}</uuid>".encode()),
        found("/save/web-01.save", SAVE + f"<uuid>{UUID(int=99)}</uuid>".encode()),
        found("/backup/other_VARS.fd", VARS),
        found(f"/swtpm/{TPM}/tpm2/tpm2-00.permall", TPM_PLAIN),
        found(f"/swtpm/{TPM}/tpm2.old-1a2b3c4d/tpm2-00.permall", TPM_ENCRYPTED),
        found(f"/swtpm/{UUID(int=99)}/tpm2/tpm2-00.permall", TPM_PLAIN),
        found("/swtpm/somewhere/tpm2/tpm2-00.permall", TPM_PLAIN),
    ],
    ids=lambda file: file.path,
)
def test_is_none(file: FoundFile) -> None:
    assert one(file) is None


def test_memory_of_nobody_known_is_no_concern_without_protected_vms() -> None:
    assert classify([found("/dump/core.1", CORE)], [PLAIN], frozenset()) == ()


def test_the_plain_backing_file_of_an_encrypted_disk_is_shown_though_it_is_in_use() -> None:
    overlay = found("/pool/web/root-1a2b3c4d.luks", QCOW2_LUKS, backing="/pool/base.qcow2")
    base = found("/pool/base.qcow2", QCOW2)
    used = backing_chain([overlay, base], USED)
    assert "/pool/base.qcow2" in used
    (made,) = classify([overlay, base], [VM], used)
    assert (made.path, made.kind, made.vm_id) == ("/pool/base.qcow2", Kind.BACKING_FILE, WEB)
    assert classify([overlay, found("/pool/base.qcow2", LUKS)], [VM], used) == ()


def test_chains_of_backing_files_are_followed_to_their_end_even_in_a_circle() -> None:
    files = [found("/a", backing="/b"), found("/b", backing="/c"), found("/c", backing="/a"), found("/d", backing="/e")]
    assert backing_chain(files, frozenset({"/a"})) == {"/a", "/b", "/c"}


PATHS = st.sampled_from(
    ["/pool/web/root.raw", "/pool/web/root-old.raw", "/save/web-01.save", "/b/web-01.raw", "/pool/web/VARS.fd"]
)
HEADS = st.one_of(st.binary(max_size=64), st.sampled_from([LUKS, QCOW2, MBR, GPT, VARS, SAVE, CORE, TPM_PLAIN]))


@given(st.lists(st.tuples(PATHS, HEADS, st.integers(0, 50 * GIB))), st.frozensets(PATHS))
def test_nothing_in_use_is_ever_a_leftover_and_nothing_crashes(
    given_files: list[tuple[str, bytes, int]], in_use: frozenset[str]
) -> None:
    files = [FoundFile(path, size, size, "", head) for path, head, size in given_files]
    made = classify(files, [VM, PLAIN], in_use)
    assert not {finding.path for finding in made} & in_use
    assert {finding.path for finding in made} <= {file.path for file in files}
    assert len({finding.path for finding in made}) == len(made)
