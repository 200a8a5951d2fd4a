"""Keys are looked for, in every spelling, in all that the console writes and in every process's command line."""

import base64
import os
from pathlib import Path

import pytest

from tests.e2e.conftest import Installation

pytestmark = pytest.mark.lab


def spellings(passphrase: str) -> list[bytes]:
    key = bytes.fromhex(passphrase)
    found = [passphrase.encode(), passphrase.upper().encode(), key, base64.b64encode(key)]
    return [*found, base64.b64encode(passphrase.encode()), repr(key)[2:-1].encode()]


def test_no_key_is_found_in_database_broker_logs_jobs_events_or_command_lines(installation: Installation) -> None:
    name = "uefi-01"
    installation.encrypt(name, ["vda", "vdb"])
    passphrases = installation.passphrases(name)
    client_key = installation.manage(
        "from encryption.models import KmsCluster\n"
        "from encryption.engine import keywrap\n"
        "from encryption.services.key_access import console_key\n"
        "sealed = bytes(KmsCluster.objects.get(name='Lab KMS').client_key_sealed)\n"
        "result = keywrap.unwrap(console_key(), sealed).reveal().decode()"
    )
    installation.change_power(name, "on")
    command_lines = read_command_lines()
    installation.change_power(name, "off")
    needles = [spelling for passphrase in passphrases.values() for spelling in spellings(passphrase)]
    needles += [line.encode() for line in client_key.splitlines()[1:-1]]
    assert len(passphrases) == 4 and len(needles) > 24

    haystacks = {str(path): content for path, content in written_files(installation)}
    haystacks["command lines"] = command_lines
    assert any(path.endswith("bartizan.sqlite3") for path in haystacks)
    assert any("redis" in path and content for path, content in haystacks.items())
    assert any(path.endswith(".log") and content for path, content in haystacks.items())
    leaks = [
        (place, index) for place, content in haystacks.items() for index, one in enumerate(needles) if one in content
    ]
    assert not leaks
    for path in (
        installation.path(name),
        installation.path(name, "monitor/"),
        installation.options_path(name),
        "/encryption/kms/",
    ):
        text = installation.user.get(path).text.encode()
        assert not [index for index, one in enumerate(needles) if one in text], path

    installation.decrypt(name)


def test_the_search_would_find_a_key(installation: Installation) -> None:
    """The control: what must be there is found by the same means."""
    assert any(b"uefi-01" in content for _, content in written_files(installation))
    assert b"gunicorn" in read_command_lines()


def written_files(installation: Installation) -> list[tuple[Path, bytes]]:
    """All that console and hosts keep, but for the secrets folder itself and images of disks."""
    left_out = {"secrets", "datastores", "cache", "assets", "static", "test-assets", "guests"}
    found = []
    for folder, folders, names in os.walk(installation.state, followlinks=True):
        folders[:] = [one for one in folders if one not in left_out]
        for name in names:
            path = Path(folder) / name
            if path.is_file():
                found.append((path, path.read_bytes()))
    # PyKMIP's own database holds the KEKs (that is its work), and no data key.
    return found


def read_command_lines() -> bytes:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                found.append((process / "cmdline").read_bytes())
            except OSError:
                continue
    return b"\n".join(found)
