"""As test_job_refusals: what only the migration job finds out, asked for in the dialog, told by the API's job."""

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.services import migration_live, migration_place
from encryption.services.migration_files import Move
from inventory.engine.hypervisor import OperationRefused, Power, TpmFacts
from inventory.models import Cluster, VirtualMachine
from inventory.services import connections, sync
from tests.encryption.services.test_job_refusals import refused
from tests.encryption.services.test_migration_run import Pair
from tests.fakes import FakeSite

pytestmark = pytest.mark.django_db
NVRAM = "/nvram/app_VARS.fd"
NO_DISKS = """<domain type='qemu'><name>app</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='q35'>hvm</type><nvram>/nvram/app_VARS.fd</nvram></os><devices/></domain>"""


@pytest.fixture
def pair(site: FakeSite, cluster: Cluster, alice: User, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(migration_live, "POLL_SECONDS", 0)
    return Pair(site, cluster, alice)


def powered_off(pair: Pair, **changes: object) -> None:
    pair.a.change(pair.uuid, power=Power.OFF, **changes)
    sync.sync_host(pair.hosts[0], pair.a)


def moved(admin: Client, pair: Pair) -> str:
    form = {"target": str(pair.hosts[1].pk), "datastore": "stay"}
    return refused(admin, pair, reverse("encryption:vm-migrate", args=[pair.vm.pk]), form)


def test_variables_of_somebody_else_at_the_target(admin: Client, pair: Pair) -> None:
    pair.b.files = {NVRAM: b"of another VM"}
    pair.a.files[NVRAM] = b"variables"
    pair.a.xml[pair.uuid] = NO_DISKS.format(uuid=pair.uuid)
    powered_off(pair, disks=(), firmware="uefi", nvram_path=NVRAM)
    assert moved(admin, pair) == "file_exists"
    assert pair.is_only_on("kvm-a") and pair.b.files == {NVRAM: b"of another VM"}


def test_vtpm_state_of_an_earlier_stay(admin: Client, pair: Pair) -> None:
    state = f"{connections.SYSTEM_VTPM_STATE}/{pair.uuid}/tpm2/tpm2-00.permall"
    pair.b.files = {state: b"earlier"}
    pair.a.files[state] = b"state"
    pair.a.xml[pair.uuid] = NO_DISKS.format(uuid=pair.uuid)
    tpm = TpmFacts("tpm-crb", "2.0", is_encrypted=False, secret_uuid=None)
    powered_off(pair, disks=(), firmware="uefi", nvram_path=NVRAM, tpm=tpm)
    assert moved(admin, pair) == "vtpm_state_exists"
    assert pair.is_only_on("kvm-a") and pair.b.files == {state: b"earlier"}


def test_both_hosts_keep_it(admin: Client, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt gave up half-way, and neither of the two guests is one to end unasked."""
    monkeypatch.setattr(migration_place, "_SETTLE_SECONDS", -1)

    def stuck(uuid: object, request: object) -> None:
        pair.b.add(pair.a.vms[pair.uuid])
        pair.b.change(pair.uuid, power=Power.PAUSED)
        raise OperationRefused("migration_failed", "lost connection to destination host")

    monkeypatch.setattr(pair.a, "migrate", stuck)
    pair.set_mode("disabled")
    assert moved(admin, pair) == "migration_unsettled"
    assert pair.uuid in pair.a.vms and pair.uuid in pair.b.vms and pair.vm.host.name == "kvm-a"


def test_defined_again_on_the_source_meanwhile(admin: Client, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest runs at the target; whose record it is cannot be told while the source has one of its UUID, too."""
    withdraw = migration_live.withdraw

    def defined_again(move: Move) -> None:
        withdraw(move)
        pair.a.add(pair.b.vms[pair.uuid])
        pair.a.change(pair.uuid, power=Power.OFF)

    monkeypatch.setattr(migration_live, "withdraw", defined_again)
    assert moved(admin, pair) == "row_elsewhere"
    assert VirtualMachine.objects.get(host=pair.hosts[0]).is_present and pair.uuid in pair.b.vms
