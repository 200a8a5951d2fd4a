"""A new VM on a real libvirt daemon: made encrypted, with a vTPM, over the API; started; what lies on the host then."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from encryption import tasks
from encryption.engine import vtpm_state
from encryption.models import StoragePolicy, WrappedSecret
from inventory import tasks as inventory_tasks
from inventory.models import Cluster, Datastore, Host, Job, PowerState, VirtualMachine
from inventory.services import connections, hosts
from tests.api_client import caller
from tests.encryption.file_host import MemoryKeyServer
from tests.inventory.adapters.daemon import session_daemon

pytestmark = [pytest.mark.slow, pytest.mark.django_db]
MIB = 2**20


@pytest.fixture
def store(cluster: Cluster) -> Iterator[Datastore]:
    with session_daemon() as (uri, files):
        states = files.parent / "cfg" / "libvirt" / "qemu" / "swtpm"
        host = Host.objects.create(cluster=cluster, name="real", uri=uri, vtpm_state_path=str(states))
        with connections.open_host(host) as hypervisor:
            hosts.connected(host, hypervisor)
            hypervisor.make_folder(str(files))
        yield Datastore.objects.create(
            host=host, name="files", kind="dir", path=str(files), is_active=True, available_bytes=2**40
        )


def succeeded(job_id: str) -> None:
    job = Job.objects.get(pk=job_id)
    app, _, task = job.kind.partition(".")
    getattr({"encryption": tasks, "inventory": inventory_tasks}[app], task)(job_id)
    job.refresh_from_db()
    assert job.status == "succeeded", (job.error_code, job.message)


def made(store: Datastore, alice: User, **wanted: Any) -> VirtualMachine:
    """And started."""
    ask = caller(alice)
    answer = ask.post(f"/datastores/{store.pk}/virtual-machines", {"memory_bytes": 256 * MIB, "vcpus": 1, **wanted})
    assert answer.status == 202, answer.text
    succeeded(answer.body["id"])
    vm = VirtualMachine.objects.get(name=wanted["name"])
    assert vm.power_state == PowerState.OFF
    started = ask.post(f"/virtual-machines/{vm.pk}/power-on")
    assert started.status == 202, started.text
    succeeded(started.body["id"])
    vm.refresh_from_db()
    assert vm.power_state == PowerState.ON
    with connections.open_host(store.host) as hypervisor:
        hypervisor.power_off(vm.uuid)
    return vm


def test_made_and_started(store: Datastore, alice: User, keys: MemoryKeyServer) -> None:
    encrypting, plain = (str(StoragePolicy.objects.get(is_builtin=True, encrypts=one).pk) for one in (True, False))
    vm = made(
        store, alice, name="new-01", guest="windows", policy_id=encrypting, vtpm=True, secure_boot=True,
        disks=[{"size_bytes": 8 * MIB, "policy_id": encrypting}],
    )  # fmt: skip
    assert (vm.has_secure_boot, vm.tpm_version, vm.disks.get().target) == (True, "2.0", "sda")
    assert {row.part for row in WrappedSecret.objects.all()} == {"sda", "NVRAM", "vTPM state"}
    content = (Path(store.host.vtpm_state_path) / str(vm.uuid) / "tpm2" / "tpm2-00.permall").read_bytes()
    assert vtpm_state.parse(content, file_bytes=len(content)).encrypted
    for path in (vm.disks.get().source, vm.nvram_path):
        assert Path(path).read_bytes()[:6] == b"LUKS\xba\xbe"

    vm = made(store, alice, name="new-02", policy_id=plain, disks=[{"size_bytes": 8 * MIB, "policy_id": plain}])
    assert (vm.firmware, vm.has_secure_boot, vm.disks.get().target) == ("uefi", False, "vda")
    assert not vm.is_nvram_encrypted and not vm.wrapped_secrets.exists()
