"""A VM is encrypted, started, refused elsewhere, and decrypted: on real hosts, with a real key server, over HTTP."""

import hashlib
import subprocess
import time
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from lab import guests
from lab.disks import AREAS, MARKER, SECTOR, DataDisk, data_disks
from lab.guest_client import GuestClient
from tests.e2e.conftest import Installation, wait_until

pytestmark = pytest.mark.lab


def test_a_powered_off_uefi_vm_is_encrypted_runs_and_is_decrypted(installation: Installation) -> None:
    name = "uefi-01"
    folder = installation.folder(name)
    assert {path.name for path in folder.glob("data-*")} == {"data-raw.raw", "data-qcow2.qcow2"}

    installation.encrypt(name, ["vda", "vdb"])

    passphrases, sources = installation.passphrases(name), installation.sources(name)
    assert set(passphrases) == {"vda", "vdb", "nvram", "vtpm"}
    for target in ("vda", "vdb"):
        assert_cryptsetup_opens(sources[target], passphrases[target])
    assert_cryptsetup_opens(installation.vm(name)["nvram_path"], passphrases["nvram"])
    assert not files_with(folder, MARKER.encode()), "planted plaintext is still on the datastore"
    definition = etree.fromstring(installation.domain_xml(name).encode())
    assert definition.find("metadata")[0].get("policy") == "VM Encryption Policy"  # type: ignore[index]
    assert definition.find("memory").get("dumpCore") == "off"  # type: ignore[union-attr]

    # A new key wraps the same data keys; the start below needs it.
    before = installation.key_of(name)
    installation.recrypt(name, "key")
    assert installation.key_of(name) != before
    assert installation.passphrases(name) == passphrases

    # New passphrases open the same volume keys, new volume keys take a new KEK; the start below needs them.
    digests = {target: volume_key_digest(path) for target, path in sources.items()}
    installation.recrypt(name, "passphrases")
    rotated = installation.passphrases(name)
    assert installation.sources(name) == sources and rotated["vtpm"] == passphrases["vtpm"]
    assert {target: volume_key_digest(path) for target, path in sources.items()} == digests
    for target, path in sources.items():
        assert_cryptsetup_opens(path, rotated[target], not_by=passphrases[target])
    before = installation.key_of(name)
    installation.recrypt(name, "volume_keys", ["vda", "vdb", "nvram", "vtpm"])
    assert installation.key_of(name) != before
    fresh, sources = installation.passphrases(name), installation.sources(name)
    assert set(fresh) == set(rotated) and not set(fresh.values()) & set(rotated.values())
    for target, path in sources.items():
        assert_cryptsetup_opens(path, fresh[target], not_by=rotated[target])
        assert volume_key_digest(path) != digests[target]
    assert {path.name for path in folder.glob("*.luks")} >= {Path(path).name for path in sources.values()}
    assert len(list(folder.glob("data-*.luks"))) == 2, "an image under an old key is left"

    # Plain libvirt has no secret, so nothing starts.
    with guests.connected(installation.host_of(name)) as connection:
        with pytest.raises(libvirt.libvirtError) as refused:
            connection.lookupByName(name).create()
        assert refused.value.get_error_code() == libvirt.VIR_ERR_NO_SECRET

    installation.change_power(name, "on")
    client = installation.guest(name)
    for disk in data_disks(name):
        assert_reads_planted(client, disk)
    assert client.ask("tpm") == "2"
    with guests.connected(installation.host_of(name)) as connection:
        assert connection.listSecrets() == [], "keys stay on the host after the start"

    installation.change_power(name, "off")
    installation.decrypt(name)
    assert installation.passphrases(name) == {}
    sources = installation.sources(name)
    formats = {"vda": "raw", "vdb": "qcow2"}
    for target, disk in zip(("vda", "vdb"), data_disks(name), strict=True):
        assert Path(sources[target]).name == disk.file_name
        assert_planted(disk, sources[target], formats[target])
    assert not list(folder.glob("*.luks"))
    assert etree.fromstring(installation.domain_xml(name).encode()).find("metadata") is None

    installation.change_power(name, "on")
    assert installation.guest(name).ask("tpm") == "2"
    installation.change_power(name, "off")


def test_disks_of_a_running_vm_are_encrypted_and_decrypted_without_a_pause(installation: Installation) -> None:
    name = "bios-01"
    client = installation.guest(name)
    beats = [int(client.ask("heartbeat"))]
    started = time.monotonic()

    installation.encrypt(name, ["vda", "vdb"])
    beats.append(int(client.ask("heartbeat")))
    sources, passphrases = installation.sources(name), installation.passphrases(name)
    for target in ("vda", "vdb"):
        assert sources[target].endswith(".luks")
        assert_cryptsetup_opens(sources[target], passphrases[target])
    for disk in data_disks(name):
        assert_reads_planted(client, disk)
    assert not files_with(installation.folder(name), MARKER.encode())

    installation.recrypt(name, "volume_keys", ["vda", "vdb"])
    beats.append(int(client.ask("heartbeat")))
    fresh = installation.passphrases(name)
    for target, path in installation.sources(name).items():
        if target in fresh:
            assert path != sources[target] and not Path(sources[target]).exists()
            assert_cryptsetup_opens(path, fresh[target], not_by=passphrases[target])
    for disk in data_disks(name):
        assert_reads_planted(client, disk)

    installation.decrypt(name)
    beats.append(int(client.ask("heartbeat")))
    for disk in data_disks(name):
        assert_reads_planted(client, disk)
    # A guest that was stopped or reset would count from one again; one that froze would be far behind the clock.
    assert beats == sorted(beats)
    assert beats[-1] - beats[0] > (time.monotonic() - started) / 3
    said = (installation.folder(name) / "console.log").read_text(errors="replace")
    counted = [int(line.split()[2]) for line in said.splitlines() if line.startswith(f"heartbeat {name} ")]
    assert counted == list(range(counted[0], counted[0] + len(counted)))
    assert counted[-1] >= beats[-1] and "cannot-write" not in said


def test_the_serial_console_of_a_guest_is_read(installation: Installation) -> None:
    path = installation.path("bios-01", "console/")
    wait_until("the guest's lines", lambda: "heartbeat bios-01" in installation.user.get(path).words(), 60)


def test_the_home_of_a_running_vm_is_refused_with_the_reason(installation: Installation) -> None:
    refused = installation.set_encryption("secureboot-01", "VM Encryption Policy", ["vda"])
    assert refused.status == 409
    assert "is running, and its home files (NVRAM and vTPM state) are open" in refused.words()
    shown = installation.user.submit(
        installation.user.get(installation.options_path("secureboot-01")), "/options/", button=("preview", "1")
    )
    assert shown.status == 200


def test_a_missing_key_server_stops_the_start_and_nothing_else(installation: Installation) -> None:
    name = "uefi-01"
    installation.encrypt(name, ["vda"])
    try:
        installation.supervise("stop", "lab:kms")
        try:
            job = installation.change_power(name, "on", "failed")
            assert job["error_code"] == "kms_unreachable"
            assert "uefi" in installation.vm(name)["name"]
            assert installation.vm(name)["power_state"] == "off"
        finally:
            installation.supervise("start", "lab:kms")
        wait_until("the key server listens", lambda: installation.key_server_listens())
        installation.change_power(name, "on")
        installation.change_power(name, "off")
    finally:
        installation.decrypt(name)


def volume_key_digest(path: str) -> str:
    """The header's digest of the volume key, with its salt and UUID: the same for as long as that key is the same."""
    dump = subprocess.run(["cryptsetup", "luksDump", path], check=True, capture_output=True, text=True).stdout
    found = dump[dump.index("MK digest:") : dump.index("Key Slot 0")]
    assert "UUID:" in found
    return found


def assert_cryptsetup_opens(path: str, passphrase: str, not_by: str = "0" * 64) -> None:
    dump = subprocess.run(["cryptsetup", "luksDump", path], check=True, capture_output=True, text=True).stdout
    assert "xts-plain64" in dump and "512" in dump
    opened = subprocess.run(
        ["cryptsetup", "luksOpen", "--test-passphrase", "--key-file=-", path],
        input=passphrase.encode(), check=False, capture_output=True,
    )  # fmt: skip
    assert opened.returncode == 0, opened.stderr
    wrong = subprocess.run(
        ["cryptsetup", "luksOpen", "--test-passphrase", "--key-file=-", path],
        input=not_by.encode(), check=False, capture_output=True,
    )  # fmt: skip
    assert wrong.returncode == 2


def files_with(folder: Path, needle: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def assert_reads_planted(client: GuestClient, disk: DataDisk) -> None:
    """The guest's own view of every planted area."""
    for offset, content in disk.planted():
        first, count = offset // SECTOR, len(content) // SECTOR
        assert client.ask(f"sha256 {disk.name} {first} {count}", timeout=90) == hashlib.sha256(content).hexdigest()


def assert_planted(disk: DataDisk, path: str, image_format: str) -> None:
    """An image's planted areas, read with qemu-img."""
    content = raw_content(path, image_format)
    for offset, planted in disk.planted():
        assert content[offset : offset + len(planted)] == planted
    assert len(AREAS) == 4


def raw_content(path: str, image_format: str) -> bytes:
    if image_format == "raw":
        return Path(path).read_bytes()
    target = Path(path).with_suffix(".compare")
    try:
        subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", path, str(target)], check=True)
        return target.read_bytes()
    finally:
        target.unlink(missing_ok=True)


def content_of(path: str, target: str) -> str:
    return hashlib.sha256(raw_content(path, "qcow2" if path.endswith("qcow2") else "raw")).hexdigest()
