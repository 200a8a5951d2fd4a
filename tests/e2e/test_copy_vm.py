"""A VM with a vTPM is cloned, exported, and brought to a second console on another host: locked there without the key
server, and after that one is added it boots with what the guest had put into its TPM."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from lab import guests
from lab.guest_client import GuestClient
from lab.session import guest_client
from tests.e2e.conftest import ROOT, Installation, wait_until
from tests.e2e.worker_side import WorkerSide

pytestmark = pytest.mark.lab

ORIGINAL, TRAVELLER, FRESH = "uefi-01", "travel-01", "fresh-01"
# TPM 2.0 Part 3: NV_DefineSpace (31.3), NV_Write (31.7), NV_Read (31.13) of index 0x01500020 by the owner with an empty
# password; ReadPublic (12.4) of the RSA endorsement key, which swtpm_setup makes persistent at 0x81010001.
AUTH = "00000009 40000009 0000 01 0000"
DEFINE = f"8002 0000002d 0000012a 40000001 {AUTH} 0000 000e 01500020 000b 02060006 0000 0008"
WRITE = f"8002 0000002b 00000137 40000001 01500020 {AUTH} 0008 {{data}} 0000"
READ = f"8002 00000023 0000014e 40000001 01500020 {AUTH} 0008 0000"
READ_EK = "8001 0000000e 00000173 81010001"
SECRET = b"sealed!!"


def tpm(client: GuestClient, command: str) -> bytes:
    return bytes.fromhex(client.ask("tpm-raw " + command.replace(" ", "")))


def succeeded(answer: bytes) -> bytes:
    assert answer[6:10] == bytes(4), answer.hex()
    return answer


def nv_content(client: GuestClient) -> bytes:
    answer = succeeded(tpm(client, READ))
    return answer[16 : 16 + int.from_bytes(answer[14:16], "big")]


def endorsement_key(client: GuestClient) -> bytes:
    """The public area, which no two TPMs share."""
    return succeeded(tpm(client, READ_EK))[10:]


@dataclass(frozen=True)
class SecondConsole:
    """Another console: own database (SQLite), console key, settings and exchange folder, on the same lab.

    SIMULATED: its processes. There is no web server, worker or watcher; a job is run at once by the script that asks
    for it, through the task that a worker would be sent. What was carried is a copy of the bundle's folder.
    """

    place: Path
    lab: Path
    side: WorkerSide

    def run(self, code: str) -> Any:
        return self.side.run(PRELUDE + code)


PRELUDE = """
from pathlib import Path
from django.core.management import call_command
from console.celery import app
from inventory.authorize import SYSTEM
from inventory.models import *
from encryption.models import *
from inventory.services import hosts, places, power
from encryption.services import bundles, import_vm, key_providers, unlock
app.loader.import_default_modules()
app.autodiscover_tasks(force=True)

def finish(job):
    app.tasks[job.kind](str(job.pk))
    job.refresh_from_db()
    return job
"""

SET_UP = """
call_command("migrate", verbosity=0)
datacenter = places.add_datacenter(name="Second", actor=SYSTEM)
cluster = places.add_cluster(datacenter_id=datacenter.pk, name="Second", actor=SYSTEM)
job = finish(hosts.add_host(cluster_id=cluster.pk, name="b", uri={uri!r}, migration_uri="",
                            vtpm_state_path={tpm!r}, actor=SYSTEM))
assert job.status == "succeeded", job.message
assert bundles.look() == 1
bundle = Bundle.objects.get()
store = Datastore.objects.filter(host__name="b", kind="dir").order_by("path")[0]
job = finish(import_vm.import_vm(bundle_id=bundle.pk, host_id=store.host_id, datastore_id=store.pk,
                                 name={name!r}, actor=SYSTEM))
assert job.status == "succeeded", (job.error_code, job.message)
vm = VirtualMachine.objects.get(name={name!r})
security = VmSecurity.objects.get(virtual_machine=vm)
start = finish(power.power_on(vm_id=vm.pk, actor=SYSTEM))
again = finish(unlock.unlock_vm(vm_id=vm.pk, actor=SYSTEM))
vm.refresh_from_db()
result = {{"cause": security.lock_cause, "foreign": str(security.foreign_kms), "bundle": str(bundle.kms_cluster),
          "detail": security.lock_detail, "start": start.error_code, "unlock": again.error_code,
          "power": vm.power_state}}
"""

ADD_PROVIDER = """
from lab import kms
from encryption.services import key_access
layout = kms.KmsLayout.load(Path({kms!r}))
identity = VmSecurity.objects.get().foreign_kms
made = key_providers.add_provider(name="Shared KMS", host=kms.HOST, port=layout.port, identity=identity, actor=SYSTEM)
key_providers.trust_server(cluster_id=made.pk, certificate_pem=(layout.ca / "ca-cert.pem").read_text(), actor=SYSTEM)
finish(key_providers.request_client_key(cluster_id=made.pk, actor=SYSTEM))
made.refresh_from_db()
signed = kms.sign_client_csr(layout, made.client_csr_pem.encode()).decode()
key_providers.install_client_certificate(cluster_id=made.pk, certificate_pem=signed, actor=SYSTEM)
vm = VirtualMachine.objects.get(name={name!r})
job = finish(unlock.unlock_vm(vm_id=vm.pk, actor=SYSTEM))
start = finish(power.power_on(vm_id=vm.pk, actor=SYSTEM))
result = {{"unlock": [job.status, job.message], "start": [start.status, start.message],
          "locked": VmSecurity.objects.get(virtual_machine=vm).locked_at is not None,
          "parts": sorted(row.target or row.purpose for row in WrappedSecret.objects.all())}}
"""


@pytest.fixture
def second(installation: Installation) -> Iterator[SecondConsole]:
    place = Path(tempfile.mkdtemp(prefix="bz-second-", dir="/var/tmp"))
    for folder in ("db", "assets", "static"):
        (place / folder).mkdir()
    environment = {
        "PATH": os.environ["PATH"],  # noqa: TID251
        "HOME": str(place),
        "PYTHONPATH": str(ROOT),
        "DJANGO_SETTINGS_MODULE": "console.settings",
        "BARTIZAN_STATE_DIR": str(place),
        "BARTIZAN_SECRET_KEY": "second-" + "0" * 40,
        "BARTIZAN_CONSOLE_KEY": "c7" * 32,
        "BARTIZAN_REDIS_URL": installation.servers.redis_url(2),
        "BARTIZAN_LOG_LEVEL": "ERROR",
    }
    side = WorkerSide([sys.executable, str(ROOT / "manage.py")], environment)
    try:
        yield SecondConsole(place, installation.state / "lab", side)
    finally:
        side.end()
        shutil.rmtree(place, ignore_errors=True)


def ask(installation: Installation, vm: str, action: str, **values: Any) -> None:
    path = installation.options_path(vm).replace("/options/", f"/{action}/")
    answer = installation.user.submit(installation.user.get(path), path, **values)
    assert answer.status == 200, answer.words()[:500]
    installation.finish_job(vm)


def wait_for_vm(installation: Installation, name: str) -> None:
    wait_until(f"{name} is known", lambda: installation.rows(
        "SELECT 1 FROM inventory_virtualmachine WHERE name = %s AND is_present", name))  # fmt: skip


def drop(installation: Installation, host: str, name: str) -> None:
    """Past the console: power, definition, TPM and files of one VM."""
    layout = installation.lab.host(host)
    with guests.connected(layout) as connection:
        try:
            domain = connection.lookupByName(name)
        except libvirt.libvirtError:
            return
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
    shutil.rmtree(layout.datastore / name, ignore_errors=True)


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_vm_with_a_tpm_goes_to_another_console(installation: Installation, second: SecondConsole) -> None:
    try:
        identity = _clone(installation)
        _travel(installation, second)
        client = installation.guest(FRESH)
        assert tpm(client, READ)[6:10] != bytes(4), "the replaced TPM knows nothing of the old one's data"
        assert endorsement_key(client) != identity
    finally:
        for host, name in (("a", FRESH), ("a", TRAVELLER), ("b", TRAVELLER)):
            drop(installation, host, name)


def _clone(installation: Installation) -> bytes:
    """Two clones of a VM whose guest wrote into its TPM: with a copy of that TPM, and with another one, which runs
    then. The TPM's identity."""
    installation.encrypt(ORIGINAL, ["vda", "vdb"])
    installation.change_power(ORIGINAL, "on")
    client = installation.guest(ORIGINAL)
    succeeded(tpm(client, DEFINE))
    succeeded(tpm(client, WRITE.format(data=SECRET.hex())))
    assert nv_content(client) == SECRET
    identity = endorsement_key(client)
    installation.change_power(ORIGINAL, "off")

    ask(installation, ORIGINAL, "clone", name=TRAVELLER, key="new", vtpm="copy")
    ask(installation, ORIGINAL, "clone", name=FRESH, key="same", vtpm="replace")
    for name in (TRAVELLER, FRESH):
        wait_for_vm(installation, name)
        ours, theirs = installation.sources(ORIGINAL), installation.sources(name)
        assert ours.keys() == theirs.keys() and not set(ours.values()) & set(theirs.values())
        assert all(digest(ours[target]) == digest(theirs[target]) for target in ours)
        assert installation.vm(name)["uuid"] != installation.vm(ORIGINAL)["uuid"]
    assert installation.key_of(TRAVELLER) != installation.key_of(ORIGINAL) == installation.key_of(FRESH)

    installation.change_power(FRESH, "on")  # it boots while the other travels
    installation.decrypt(ORIGINAL)
    return identity


def _travel(installation: Installation, second: SecondConsole) -> None:
    ask(installation, TRAVELLER, "export")
    (bundle,) = [path for path in (installation.state / "exchange").iterdir() if path.name.startswith(TRAVELLER)]
    folder = installation.folder(TRAVELLER)
    assert installation.user.get("/encryption/exports/").words().count(bundle.name) == 1
    shutil.copytree(bundle, second.place / "exchange" / bundle.name)
    drop(installation, "a", TRAVELLER)
    assert not folder.exists()

    host = installation.lab.host("b")
    found = second.run(SET_UP.format(uri=host.uri, tpm=str(host.config / "libvirt" / "qemu" / "swtpm"), name=TRAVELLER))
    assert found["cause"] == "provider_unknown" and found["foreign"] == found["bundle"], found
    assert (found["start"], found["unlock"], found["power"]) == ("vm_locked", "key_provider_unknown", "off")

    found = second.run(ADD_PROVIDER.format(kms=str(second.lab / "kms"), name=TRAVELLER))
    assert found["unlock"][0] == found["start"][0] == "succeeded", found
    assert found["parts"] == ["nvram", "vda", "vdb", "vtpm"] and not found["locked"]
    client = guest_client(installation.lab, TRAVELLER)
    client.wait()
    assert nv_content(client) == SECRET, "the guest finds what it had put into its TPM"
