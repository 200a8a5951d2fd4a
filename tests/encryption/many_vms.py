"""Encrypted VMs in numbers: rows and a definition each, no files behind them. For what asks only for their keys."""

from uuid import uuid4

from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.models import Key, KmsCluster, Purpose, StoragePolicy, VmSecurity, WrappedSecret
from encryption.services import key_access
from encryption.services.key_access import KeySession
from inventory.models import Host, Job, VirtualMachine
from tests.encryption.file_host import FileHost


def definition(name: str, uuid: object) -> str:
    return (
        f"<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices/></domain>"
    )


def encrypted_vm(host: Host, hypervisor: FileHost, session: KeySession, job: Job, name: str) -> VirtualMachine:
    """One VM on the fake host, with a KEK of its own."""
    uuid = uuid4()
    hypervisor.add_xml(definition(name, uuid))
    vm = VirtualMachine.objects.create(host=host, uuid=uuid, name=name, is_present=True)
    key_them(vm, session, job)
    return vm


def key_them(vm: VirtualMachine, session: KeySession, job: Job) -> Key:
    """A KEK for the VM, and the data keys of two disks under it."""
    key = key_access.session_key(session, vm, name=f"bartizan/{vm.uuid}/first", job=job)
    kek = session.fetch(key)
    policy = StoragePolicy.objects.filter(encrypts=True, is_builtin=True)[0]
    VmSecurity.objects.create(virtual_machine=vm, policy=policy, key=key)
    WrappedSecret.objects.bulk_create(
        WrappedSecret(
            virtual_machine=vm, purpose=Purpose.DISK, target=target, key=key, stage="in_use",
            wrapped=keywrap.wrap(kek, Secret.generate(32)), path=f"/images/{vm.uuid}-{target}.luks",
        )
        for target in ("vda", "vdb")
    )  # fmt: skip
    return key


def any_job(target: KmsCluster) -> Job:
    """A row for what must name a job."""
    return Job.objects.create(
        kind="test", target_kind="kms_cluster", target_id=target.pk, target_name=str(target), actor="alice",
        status="succeeded",
    )  # fmt: skip
