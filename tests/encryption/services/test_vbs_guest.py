"""VBS and Secure Boot on a real host with guests that boot: what the guest itself says, and what shim does. Slow.

The altered kernel is the measure: with Secure Boot it is refused, without it boots, with the same keys enrolled.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from encryption.models import StoragePolicy
from encryption.services import conversion, options
from encryption.services.options import Wish
from inventory import jobs
from inventory.errors import Conflict
from inventory.jobs import Progress
from inventory.models import Cluster, Host, Job, JobStatus, VirtualMachine
from inventory.services import connections, hosts, power
from lab import disks, guests, images, session
from lab.domains import UEFI, Guest, domain_xml
from lab.layout import HostLayout
from lab.session import RunningLab
from tests.encryption.file_host import MemoryKeyServer

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.django_db]
CACHE = Path(__file__).parents[3] / "var" / "cache"
BOOT_SECONDS = 120.0
BIOS = Guest("bios-02", "a", 128, None, boots_from_disk=False, vtpm=False, started=False)
# Through shim and GRUB, on firmware without Secure Boot; its variables are not made yet.
EFI = Guest("uefi-02", "a", 384, UEFI, boots_from_disk=True, vtpm=False, started=False)


@pytest.fixture
def running() -> Iterator[RunningLab]:
    with tempfile.TemporaryDirectory(prefix="b", dir="/var/tmp") as name:
        state = Path(name) / "lab"
        try:
            with RunningLab(state, cache=CACHE, define_guests=False) as lab:
                yield lab
        finally:
            session.destroy(state)


@pytest.fixture
def place(running: RunningLab) -> HostLayout:
    """The host, with both guests defined and off."""
    lab, host = running.lab, running.lab.host("a")
    made = images.prepare(CACHE, lab.images, lab.user)
    for guest in (BIOS, EFI):
        home = guest.folder(host)
        lab.user.folder(home)
        for disk in disks.data_disks(guest.name):
            disks.make(disk, home, lab.user)
        if guest.boots_from_disk:
            shutil.copyfile(made.boot_disk, home / ".system")
            disks.adopt(home / ".system", home / "system.raw", lab.user)
        with guests.connected(host) as connection:
            connection.defineXML(domain_xml(lab, guest, made))
    return host


def alter_kernel(system: Path) -> None:
    """One letter of the version that the kernel's set-up code holds for show (the x86 boot protocol's kernel_version,
    at 0x20E): the kernel works as before, and its signature does not fit."""
    with tempfile.TemporaryDirectory() as name:
        kernel = Path(name) / "vmlinuz"
        subprocess.run(["mcopy", "-i", str(system), "::/vmlinuz", str(kernel)], check=True)
        content = bytearray(kernel.read_bytes())
        assert content[0x202:0x206] == b"HdrS"
        place = 0x200 + int.from_bytes(content[0x20E:0x210], "little")
        content[place] ^= 1
        kernel.write_bytes(content)
        subprocess.run(["mcopy", "-o", "-i", str(system), str(kernel), "::/vmlinuz"], check=True)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_set_refused_and_proven(
    place: HostLayout, running: RunningLab, cluster: Cluster, alice: User, keys: MemoryKeyServer
) -> None:
    host = Host.objects.create(cluster=cluster, name="host-a", uri=place.uri, state=Host.State.CONNECTED)
    policies = {one.encrypts: one.pk for one in StoragePolicy.objects.filter(is_builtin=True)}
    as_it_is, encrypted = Wish(policies[False], {}), Wish(policies[True], {})
    with connections.open_host(host) as hypervisor:
        hosts.connected(host, hypervisor)
    rows = {vm.name: vm for vm in VirtualMachine.objects.all()}
    bios, efi = rows[BIOS.name], rows[EFI.name]
    console = EFI.folder(place) / "console.log"

    def run(job: Job, work: Callable[[Job, Progress], None]) -> None:
        jobs.run(str(job.pk), work)
        job.refresh_from_db()
        efi.refresh_from_db()
        assert job.status == JobStatus.SUCCEEDED, (job.error_code, job.message)

    def apply(wish: Wish) -> None:
        run(options.apply_options(vm_id=efi.pk, wish=wish, actor=alice), conversion.apply_options)

    def power_on() -> None:
        run(power.power_on(vm_id=efi.pk, actor=alice), power.run_power_on)

    def power_off() -> None:
        run(power.power_off(vm_id=efi.pk, actor=alice), power.run_power_off)

    def boots_with(secure_boot: str) -> None:
        power_on()
        client = running.guest(EFI.name)
        client.wait(timeout=BOOT_SECONDS)
        assert client.ask("secureboot") == secure_boot

    with pytest.raises(Conflict) as caught:
        options.apply_options(vm_id=bios.pk, wish=replace(as_it_is, vbs=True), actor=alice)
    assert (caught.value.code, "mbr2gpt" in caught.value.hint) == ("vbs_needs_uefi", True)

    apply(replace(as_it_is, vbs=True))
    assert (efi.has_vbs, efi.has_secure_boot, efi.known_platform.remembers_vbs) == (True, True, True)
    boots_with("on")
    assert efi.has_vbs  # as the running domain has it
    power_off()

    alter_kernel(EFI.folder(place) / "system.raw")

    # Off, in the variables that the guest has written, and these encrypted by the same change.
    apply(replace(encrypted, vbs=False, secure_boot=False))
    assert (efi.has_vbs, efi.has_secure_boot, efi.is_nvram_encrypted) == (False, False, True)
    boots_with("off")
    power_off()

    # On again, inside their LUKS image.
    apply(replace(encrypted, secure_boot=True))
    assert (efi.has_secure_boot, efi.is_nvram_encrypted) == (True, True)
    power_on()
    wait_for(lambda: b"bad shim signature" in console.read_bytes())
    power_off()
