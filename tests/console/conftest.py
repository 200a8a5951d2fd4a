"""Disk images for the recovery command, and a real key server, shared with the adapter's tests."""

from pathlib import Path

import pytest

from tests.console.disk_command import DISK_SIZE, KEY, OTHER_KEY, disk, make_raw, write_key
from tests.encryption.adapters.conftest import kms_layout, kms_server

__all__ = ["kms_layout", "kms_server"]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "key", KEY)


@pytest.fixture
def other_key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "other-key", OTHER_KEY)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A sparse disk of an odd size."""
    return make_raw(tmp_path / "disk.raw", DISK_SIZE)


@pytest.fixture
def volume(raw: Path, key: Path, tmp_path: Path) -> Path:
    disk("encrypt", raw, tmp_path / "volume.luks", "--key-file", key, "--verify", "none")
    return tmp_path / "volume.luks"
