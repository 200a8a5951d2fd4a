"""A powered-off VM on a host whose files no worker reaches: a lab host, registered by its TLS address as a far one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from encryption.engine import luks
from lab.disks import MARKER, data_disks
from tests.e2e.conftest import Installation
from tests.e2e.test_encrypt_vm import assert_cryptsetup_opens, assert_planted, assert_reads_planted, files_with

pytestmark = pytest.mark.lab

NAME = "uefi-01"


@pytest.fixture
def far(installation: Installation) -> Iterator[Installation]:
    host = installation.host_of(NAME)
    set_uri(installation, host.uri, host.peer_uri(host.pki))
    yield installation
    set_uri(installation, host.peer_uri(host.pki), host.uri)


def set_uri(installation: Installation, old: str, new: str) -> None:
    installation.manage(
        f"from inventory.models import Host\nresult = Host.objects.filter(uri={old!r}).update(uri={new!r})"
    )


def test_its_host_copies_a_disk_under_tls(far: Installation) -> None:
    """One disk: libvirt spends half a minute on the key derivation of each."""
    folder = far.folder(NAME)
    raw, qcow2 = data_disks(NAME)
    far.encrypt(NAME, ["vdb"])
    passphrases, sources = far.passphrases(NAME), far.sources(NAME)
    assert set(passphrases) == {"vdb", "nvram", "vtpm"}
    assert_cryptsetup_opens(sources["vdb"], passphrases["vdb"])
    with open(sources["vdb"], "rb") as file:
        header = luks.parse(file.read(luks.HEADER_BYTES))
    assert {slot.iterations for slot in header.keyslots if slot.active} == {1000}
    assert_cryptsetup_opens(far.vm(NAME)["nvram_path"], passphrases["nvram"])
    left = [path.name for path in files_with(folder, MARKER.encode())]
    assert left == [raw.file_name], "planted plaintext is still on the datastore"

    far.change_power(NAME, "on")
    client = far.guest(NAME)
    for disk in (raw, qcow2):
        assert_reads_planted(client, disk)
    assert client.ask("tpm") == "2"
    far.change_power(NAME, "off")

    far.decrypt(NAME)
    assert far.passphrases(NAME) == {}
    source = far.sources(NAME)["vdb"]
    assert Path(source).name == qcow2.file_name
    assert_planted(qcow2, source, "qcow2")
    assert not list(folder.glob("*.luks"))
