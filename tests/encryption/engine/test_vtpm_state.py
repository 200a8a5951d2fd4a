import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encryption.engine import vtpm_state
from encryption.engine.vtpm_state import BadState, VtpmState

PLAIN = bytes.fromhex("0201000a000000000523") + bytes(1305)
ENCRYPTED = bytes.fromhex("0201000a00090000057c") + bytes(1394)


def test_plain_state() -> None:
    assert vtpm_state.parse(PLAIN) == VtpmState(2, False, False, None, 1315)


def test_encrypted_state() -> None:
    assert vtpm_state.parse(ENCRYPTED[:10], file_bytes=1404) == VtpmState(2, True, False, 256, 1404)


def test_state_under_a_migration_key() -> None:
    state = vtpm_state.parse(bytes.fromhex("0201000a00030000057c"))
    assert (state.encrypted, state.migration_encrypted, state.key_bits) == (True, True, 128)


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_what_swtpm_writes(tmp_path: Path, is_encrypted: bool) -> None:
    key = tmp_path / "key"
    key.write_text("a passphrase of a test")
    state = tmp_path / "state"
    state.mkdir()
    options = ["--pwdfile", str(key), "--cipher", "aes-256-cbc"] if is_encrypted else []
    subprocess.run(["swtpm_setup", "--tpm2", "--tpmstate", str(state), *options], check=True, capture_output=True)
    content = (state / "tpm2-00.permall").read_bytes()
    parsed = vtpm_state.parse(content, file_bytes=len(content))
    assert parsed.encrypted is is_encrypted
    assert parsed.key_bits == (256 if is_encrypted else None)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "0201000a0000000005",
        "0001000a000000000523",
        "1101000a000000000523",
        "0203000a000000000523",
        "0200000a000000000523",
        "0201000b000000000523",
        "02010000000000000523",
        "0201000a00000000000a",
        "0201000a0000ffffffff",
    ],
)
def test_hostile_headers_are_refused(header: str) -> None:
    with pytest.raises(BadState):
        vtpm_state.parse(bytes.fromhex(header))


def test_a_cut_file_is_refused() -> None:
    with pytest.raises(BadState, match="should have 1315 bytes, the file has 1314"):
        vtpm_state.parse(PLAIN, file_bytes=1314)


@given(st.binary(max_size=40))
def test_any_bytes_parse_or_are_refused(content: bytes) -> None:
    try:
        state = vtpm_state.parse(content)
    except BadState:
        return
    assert 10 < state.total_bytes <= vtpm_state.MAX_STATE_BYTES
