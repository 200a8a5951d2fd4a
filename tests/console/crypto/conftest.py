"""The FIPS provider as set-up has prepared it beside this checkout's packages."""

import shutil
from pathlib import Path

import pytest

from console.launch import crypto

ROOT = Path(__file__).resolve().parent.parent.parent.parent


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the prepared folder that a test may spoil; its configuration names the copy's own files."""
    prepared = crypto.folder_of(ROOT)
    if not (prepared / crypto.RECORD).exists():
        pytest.skip("no FIPS provider could be prepared here")
    folder = tmp_path_factory.mktemp("provider") / "crypto"
    shutil.copytree(prepared, folder)
    for file in folder.glob("*/*.cnf"):
        file.write_text(file.read_text().replace(str(prepared), str(folder)))
    return folder
