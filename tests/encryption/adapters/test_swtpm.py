"""vTPM state converted by the real swtpm, and read back by its header and by swtpm itself."""

import subprocess
from pathlib import Path

import pytest

from encryption.adapters import swtpm
from encryption.engine import vtpm_state
from encryption.engine.secret import Secret


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    folder = tmp_path / "tpm2"
    folder.mkdir()
    subprocess.run(
        ["swtpm_setup", "--tpm2", "--tpmstate", str(folder), "--logfile", str(tmp_path / "log")],
        check=True,
        capture_output=True,
    )
    return folder


def is_encrypted(folder: Path) -> bool:
    return vtpm_state.parse(swtpm.state_file(folder).read_bytes()).encrypted


def test_state_is_encrypted_rekeyed_and_decrypted(plain: Path, tmp_path: Path) -> None:
    first, second = Secret(b"1" * 64), Secret(b"2" * 64)
    assert not is_encrypted(plain)
    swtpm.convert(plain, tmp_path / "a", old=None, new=first)
    assert is_encrypted(tmp_path / "a")
    swtpm.convert(tmp_path / "a", tmp_path / "b", old=first, new=second)
    assert is_encrypted(tmp_path / "b")
    swtpm.convert(tmp_path / "b", tmp_path / "c", old=second, new=None)
    assert not is_encrypted(tmp_path / "c")


def test_wrong_key_is_refused_and_the_state_stays(plain: Path, tmp_path: Path) -> None:
    swtpm.convert(plain, tmp_path / "a", old=None, new=Secret(b"1" * 64))
    before = swtpm.state_file(tmp_path / "a").read_bytes()
    with pytest.raises(swtpm.SwtpmFailed):
        swtpm.convert(tmp_path / "a", tmp_path / "b", old=Secret(b"2" * 64), new=None)
    assert swtpm.state_file(tmp_path / "a").read_bytes() == before


def test_a_folder_without_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(swtpm.SwtpmFailed, match="no vTPM state"):
        swtpm.convert(tmp_path, tmp_path / "b", old=None, new=None)
