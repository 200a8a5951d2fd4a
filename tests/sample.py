"""A small inventory in the database, as pages show it: no host stands behind it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from django.utils import timezone

from inventory import events
from inventory.engine.abilities import HostAbilities
from inventory.engine.platform import Platform
from inventory.models import (
    Cluster,
    Datacenter,
    Datastore,
    Disk,
    Firmware,
    Host,
    Job,
    JobStatus,
    PowerState,
    Severity,
    TargetKind,
    VirtualMachine,
)

GIB = 2**30
ABILITIES = HostAbilities(
    virtualization="kvm", cpu_vendor="AMD", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True,
    nested_in_cpu="svm", hyperv=("frequencies", "ipi", "relaxed", "reset", "spinlocks", "synic", "vapic", "vpindex"),
    secure_loader="/usr/share/OVMF/OVMF_CODE_4M.ms.fd", plain_loader="/usr/share/OVMF/OVMF_CODE_4M.fd",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    datacenter: Datacenter
    cluster: Cluster
    host: Host
    lost_host: Host
    datastore: Datastore
    vm: VirtualMachine
    off_vm: VirtualMachine


def make() -> Sample:
    """Two data centers; in the first a cluster with two hosts and six VMs, with jobs and events."""
    datacenter = Datacenter.objects.create(name="DC-East")
    Datacenter.objects.create(name="DC-West")
    cluster = Cluster.objects.create(datacenter=datacenter, name="Prod-Cluster")
    Cluster.objects.create(datacenter=datacenter, name="Edge-Cluster")
    host, lost = (_host(cluster, f"kvm0{n}.corp.example", n) for n in (1, 2))
    lost.state, lost.state_reason = Host.State.DISCONNECTED, "kvm02.corp.example refused the connection on port 16514"
    lost.save()
    datastore = Datastore.objects.create(
        host=host, name="images", kind="dir", path="/var/lib/libvirt/images", is_active=True,
        capacity_bytes=500 * GIB, available_bytes=180 * GIB,
    )  # fmt: skip
    vms = [
        _vm(host, name, n) for n, name in enumerate(("app-db01", "app-db02", "app-web01", "app-web02", "vtpm-win11"))
    ]
    _vm(lost, "legacy-erp", 5)
    _history(vms[0], vms[1], host)
    return Sample(datacenter, cluster, host, lost, datastore, vms[0], vms[1])


def _host(cluster: Cluster, name: str, number: int) -> Host:
    return Host.objects.create(
        cluster=cluster, name=name, uri=f"qemu+tls://{name}/system", state=Host.State.CONNECTED, hostname=name,
        host_uuid=UUID(int=number), hypervisor="QEMU", hypervisor_version="7.2.22", libvirt_version="9.0.0",
        cpu_model="EPYC-Milan", cpu_count=64, memory_bytes=512 * GIB, memory_free_bytes=190 * GIB,
        is_encrypted_connection=True, last_seen_at=datetime(2026, 11, 23, 10, 0, tzinfo=UTC),
        abilities=ABILITIES.as_row(), abilities_checked_at=datetime(2026, 11, 23, 9, 0, tzinfo=UTC),
    )  # fmt: skip


def _vm(host: Host, name: str, number: int) -> VirtualMachine:
    encrypted, uefi = number in (0, 4), number != 2
    vm = VirtualMachine.objects.create(
        host=host, uuid=uuid4(), name=name, machine="pc-q35-7.2", vcpus=4 + number, memory_bytes=(8 + number) * GIB,
        power_state=PowerState.OFF if number in (1, 3) else PowerState.ON,
        firmware=Firmware.UEFI if uefi else Firmware.BIOS, has_secure_boot=number == 4,
        nvram_path=f"/var/lib/libvirt/qemu/nvram/{name}_VARS.fd" if uefi else "", is_nvram_encrypted=encrypted,
        tpm_model="tpm-crb" if number in (0, 4) else "", tpm_version="2.0" if number in (0, 4) else "",
        is_tpm_encrypted=encrypted, platform=Platform(domain_type="kvm", arch="x86_64", chipset="q35").as_text(),
    )  # fmt: skip
    for target, size in (("vda", 80), ("vdb", 500)):
        Disk.objects.create(
            virtual_machine=vm, target=target, bus="virtio", format="qcow2" if target == "vda" else "raw",
            source=f"/var/lib/libvirt/images/{name}-{target}.img", is_encrypted=encrypted, capacity_bytes=size * GIB,
            allocation_bytes=size * GIB // 2,
        )  # fmt: skip
    return vm


def job_of(vm: VirtualMachine | Host, kind: str, status: JobStatus, *, seconds: int = 0, **values: object) -> Job:
    target_kind = TargetKind.HOST if isinstance(vm, Host) else TargetKind.VIRTUAL_MACHINE
    job = Job.objects.create(
        kind=kind, target_kind=target_kind, target_id=vm.pk, target_name=vm.name, actor="admin", status=status, **values
    )
    Job.objects.filter(pk=job.pk).update(created_at=timezone.now() - timedelta(seconds=seconds))
    return job


def _history(busy: VirtualMachine, other: VirtualMachine, host: Host) -> None:
    job_of(busy, "encryption.apply_options", JobStatus.RUNNING, step="vdb: encrypting", done=62, total=100)
    job_of(other, "inventory.power_off", JobStatus.SUCCEEDED, seconds=40)
    job_of(other, "inventory.power_on", JobStatus.FAILED, seconds=90, error_code="key_missing",
           message="app-db02: its key 4f1c09d2 is not at the key provider; bring it back there")  # fmt: skip
    job_of(host, "inventory.refresh_host", JobStatus.SUCCEEDED, seconds=300)
    events.record("vm.powered_on", "app-db01 powered on", target=busy, actor="admin")
    events.record("vm.changed", "app-db01 changed outside this console: vcpus", target=busy, actor="Bartizan",
                  severity=Severity.WARNING)  # fmt: skip
    events.record("host.disconnected", "kvm02.corp.example: connection refused", target=host, actor="Bartizan",
                  severity=Severity.ERROR)  # fmt: skip
