"""A vTPM is removed and added in the browser, and a guest uses it: a TPM 2.0 whose state no file shows in clear. It
goes to another host with the guest, past the death of the worker that sent them, and starts there."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from encryption.engine import vtpm_state
from lab import disks, guests, images
from lab.domains import UEFI, Guest, domain_xml
from lab.user import ensure_user
from tests.e2e.conftest import ROOT, Installation, wait_until
from tests.e2e.test_copy_vm import DEFINE, SECRET, WRITE, endorsement_key, nv_content, succeeded, tpm

pytestmark = pytest.mark.lab
GUEST = Guest("tpm-01", "a", 256, UEFI, boots_from_disk=False, vtpm=True, started=False)
NAME = GUEST.name
SLOW, UNLIMITED = 4, 8796093022207  # MiB/s; the second is libvirt's own limit
# TPM2_GetCapability (part 3, 30.2): TPM_PT_FAMILY_INDICATOR of the TPM's properties.
GET_FAMILY = "8001 00000016 0000017a 00000006 00000100 00000001"
# What the wrapped secret opens is put aside, another one in its place.
SWAP = """
from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.models import WrappedSecret
from encryption.services.key_access import fetched_key
row = WrappedSecret.objects.select_related("key__cluster", "virtual_machine").get(
    virtual_machine__name="tpm-01", purpose="vtpm")
before = bytes(row.wrapped).hex()
with fetched_key(row.key) as kek:
    row.wrapped = keywrap.wrap(kek, Secret.generate(32))
row.save(update_fields=["wrapped"])
result = before
"""
PUT_BACK = """
from encryption.models import WrappedSecret
row = WrappedSecret.objects.get(virtual_machine__name="tpm-01", purpose="vtpm")
row.wrapped = bytes.fromhex("{}")
row.save(update_fields=["wrapped"])
result = True
"""


@pytest.fixture
def vm(installation: Installation) -> Iterator[Path]:
    """A VM of its own on host-a, powered off, its files in the folder that both hosts see."""
    lab, user = installation.lab, ensure_user()
    folder = lab.host("a").shared_datastore / NAME
    user.folder(folder)
    for disk in disks.data_disks(NAME):
        disks.make(disk, folder, user)
    shutil.copyfile(UEFI.variables, folder / ".nvram")
    disks.adopt(folder / ".nvram", folder / "nvram.fd", user)
    made = images.prepare(ROOT / "var" / "cache", lab.images, user)
    with guests.connected(lab.host("a")) as connection:
        connection.defineXML(domain_xml(lab, GUEST, made, folder=folder))
    wait_until("the console discovers the VM", lambda: installation.rows(
        "SELECT 1 FROM inventory_virtualmachine WHERE name = %s", NAME))  # fmt: skip
    yield folder
    for host in lab.hosts:
        with guests.connected(host) as connection:
            for domain in connection.listAllDomains():
                if domain.name() == NAME:
                    if domain.isActive():
                        domain.destroy()
                    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
    shutil.rmtree(folder)


def page(installation: Installation, name: str = "") -> str:
    return installation.options_path(NAME).replace("/options/", f"/vtpm/{name}")


def ask(installation: Installation, name: str, **values: Any) -> None:
    path = page(installation, name)
    answer = installation.user.submit(installation.user.get(path), path, **values)
    assert answer.status == 200, answer.words()[:500]
    installation.finish_job(NAME)


def state_of(installation: Installation) -> Path:
    swtpm = installation.host_of(NAME).config / "libvirt" / "qemu" / "swtpm"
    return swtpm / installation.lab.uuid_for(NAME) / "tpm2" / "tpm2-00.permall"


def limit_migration(installation: Installation, mib_per_second: int) -> None:
    with guests.connected(installation.lab.host("a")) as connection:
        try:
            connection.lookupByName(NAME).migrateSetMaxSpeed(mib_per_second, 0)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                raise  # else it is there already


def running_on(installation: Installation) -> dict[str, bool]:
    """The lab's hosts that have the VM, and whether it runs there, as their libvirt says."""
    found: dict[str, bool] = {}
    for host in installation.lab.hosts:
        with guests.connected(host) as connection:
            domains = {one.name(): bool(one.isActive()) for one in connection.listAllDomains()}
            found |= {host.name: domains[NAME]} if NAME in domains else {}
    return found


def test_a_vtpm_is_removed_added_and_used_and_never_lies_in_clear(installation: Installation, vm: Path) -> None:
    state = state_of(installation)
    ask(installation, "remove/", confirm=NAME)
    assert not state.parent.exists() and installation.vm(NAME)["tpm_model"] == ""
    assert "has no TPM" in installation.user.get(page(installation)).words()

    ask(installation, "add/")
    assert set(installation.passphrases(NAME)) == {"nvram", "vtpm"}, "the home is encrypted for it, and no disk"
    installation.change_power(NAME, "on")
    client = installation.guest(NAME)
    assert succeeded(tpm(client, GET_FAMILY))[23:27] == b"2.0\0"
    key = endorsement_key(client)
    succeeded(tpm(client, DEFINE))
    succeeded(tpm(client, WRITE.format(data=SECRET.hex())))
    assert nv_content(client) == SECRET

    limit_migration(installation, SLOW)
    installation.ask_migration(NAME, "host-b")
    installation.kill_worker_during(NAME, "transferring")
    limit_migration(installation, UNLIMITED)
    assert installation.finish_job(NAME)["attempts"] == 2
    assert running_on(installation) == {"b": True} and installation.host_of(NAME).name == "b"
    assert not state.parent.exists(), "nothing of it stays behind"
    client = installation.guest(NAME)
    assert nv_content(client) == SECRET and endorsement_key(client) == key

    installation.change_power(NAME, "off")
    state = state_of(installation)
    assert_encrypted(state)
    before = state.read_bytes()
    wrapped = installation.manage(SWAP)
    try:
        job = installation.change_power(NAME, "on", "failed")
        assert job["error_code"] == "vtpm_key_mismatch" and "vTPM key does not fit the state" in job["message"]
        assert state.read_bytes() == before, "nothing is changed"
    finally:
        installation.manage(PUT_BACK.format(wrapped))

    installation.change_power(NAME, "on")
    client = installation.guest(NAME)
    assert nv_content(client) == SECRET and endorsement_key(client) == key
    ask(installation, "read/")
    shown = installation.user.get(page(installation)).words()
    assert "RSA 2048" in shown and "swtpm-localca" in shown and "Encrypted" in shown
    installation.change_power(NAME, "off")
    assert_encrypted(state)

    installation.decrypt(NAME)
    wait_until("the vTPM's state is plain again", lambda: not vtpm_state.parse(state.read_bytes()).encrypted, 5)


def assert_encrypted(state: Path) -> None:
    content = state.read_bytes()
    header = vtpm_state.parse(content, file_bytes=len(content))
    assert header.encrypted and header.key_bits == 256
    assert SECRET not in content
