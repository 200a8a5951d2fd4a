"""The lab enters itself into the inventory and the key providers, through the services that a user's clicks call.

Runs inside Django (`manage.py lab_register`), with the workers up: they test the connections and make the client key.
It can be run again: what is there stays, addresses that have changed are corrected.
"""

import time
from pathlib import Path
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from attestation.services import verifier_identity
from encryption.models import KmsCluster, KmsServer, VmSecurity, WrappedSecret
from encryption.services import key_providers
from inventory import events
from inventory.authorize import SYSTEM
from inventory.models import Cluster, Datacenter, Host, Job, JobStatus, Severity, VirtualMachine
from inventory.services import hosts, places
from lab import kms, machine, register_tpms
from lab.errors import LabError
from lab.layout import HOST_NAMES, HostLayout, Lab

DATACENTER = "Lab"
CLUSTER = "Lab Cluster"
KEY_PROVIDER = "Lab KMS"
_HOSTS = [f"host-{name}" for name in HOST_NAMES]
_PATIENCE_SECONDS = 120.0


def register(lab: Lab, key_server: kms.KmsLayout) -> list[str]:
    """Enters hosts, key server, TPMs; a line for each thing done. Raises LabError where something does not end well."""
    forget_removed_lab(_authority(key_server))
    # First of all: agents start when they have it, and register while the rest is entered.
    machine.trust_console(lab, verifier_identity.ca_pem())
    return [*_register_hosts(lab), *_register_key_server(key_server), *register_tpms.register(lab)]


def forget_removed_lab(authority: str) -> None:
    """Drops what an earlier lab left, which `down` has destroyed: its hosts, its VMs, and keys that are lost.

    The CA of the key server tells one lab from the next. The key provider itself stays where a VM outside the lab has
    its key there.
    """
    provider = KmsCluster.objects.filter(name=KEY_PROVIDER, is_lab=True).first()
    if provider is None or provider.trusted_pem in ("", authority):
        return
    with transaction.atomic():
        vms = VirtualMachine.objects.filter(
            host__cluster__name=CLUSTER, host__cluster__datacenter__name=DATACENTER, host__name__in=_HOSTS
        )
        WrappedSecret.objects.filter(virtual_machine__in=vms).delete()
        VmSecurity.objects.filter(virtual_machine__in=vms).delete()
        Host.objects.filter(cluster__name=CLUSTER, cluster__datacenter__name=DATACENTER, name__in=_HOSTS).delete()
        if not WrappedSecret.objects.filter(key__cluster=provider).exists():
            provider.keys.all().delete()
            provider.delete()
        else:
            provider.name = f"{KEY_PROVIDER} (removed {timezone.now():%Y-%m-%d %H:%M:%S})"
            provider.save(update_fields=["name"])
        events.record(
            "lab.forgotten", "The lab was made anew; hosts, VMs and keys of the earlier one are forgotten",
            target=None, actor=SYSTEM, severity=Severity.WARNING,
        )  # fmt: skip


def _register_hosts(lab: Lab) -> list[str]:
    said: list[str] = []
    datacenter = Datacenter.objects.filter(name=DATACENTER).first() or places.add_datacenter(
        name=DATACENTER, actor=SYSTEM
    )
    cluster = Cluster.objects.filter(datacenter=datacenter, name=CLUSTER).first() or places.add_cluster(
        datacenter_id=datacenter.pk, name=CLUSTER, actor=SYSTEM
    )
    for layout in lab.hosts:
        name = f"host-{layout.name}"
        found = Host.objects.filter(name=name).first()
        wanted = {
            "uri": layout.uri,
            "migration_uri": layout.peer_uri(layout.pki),
            "vtpm_state_path": str(_vtpm_states(layout)),
        }
        job: Job | None
        if found is None:
            job = hosts.add_host(cluster_id=cluster.pk, name=name, actor=SYSTEM, **wanted)
        elif any(getattr(found, field) != value for field, value in wanted.items()):
            job = hosts.edit_host(host_id=found.pk, name=name, actor=SYSTEM, **wanted)
        else:
            continue
        if job is not None:
            _wait(job.pk)
        said.append(f"{name} registered")
    return said


def _vtpm_states(layout: HostLayout) -> Path:
    """Where a session daemon of libvirt 9 keeps swtpm state; it tells nobody."""
    return layout.config / "libvirt" / "qemu" / "swtpm"


def _register_key_server(layout: kms.KmsLayout) -> list[str]:
    cluster = KmsCluster.objects.filter(name=KEY_PROVIDER).first()
    if cluster is None:
        cluster = key_providers.add_cluster(name=KEY_PROVIDER, actor=SYSTEM, is_lab=True)
    server = cluster.servers.first()
    if server is None or server.port != layout.port:
        if server is not None:
            KmsServer.objects.filter(pk=server.pk).update(port=layout.port)
        else:
            key_providers.add_server(cluster_id=cluster.pk, host=kms.HOST, port=layout.port, actor=SYSTEM)
    authority = _authority(layout)
    if cluster.trusted_pem != authority:
        key_providers.trust_server(cluster_id=cluster.pk, certificate_pem=authority, actor=SYSTEM)
        _wait(key_providers.request_client_key(cluster_id=cluster.pk, actor=SYSTEM).pk)
        cluster.refresh_from_db()
        certificate = kms.sign_client_csr(layout, cluster.client_csr_pem.encode()).decode()
        key_providers.install_client_certificate(cluster_id=cluster.pk, certificate_pem=certificate, actor=SYSTEM)
    _wait(key_providers.check(cluster_id=cluster.pk, actor=SYSTEM).pk)
    return [f"{KEY_PROVIDER} connected"]


def _authority(layout: kms.KmsLayout) -> str:
    return (layout.ca / "ca-cert.pem").read_text()


def _wait(job_id: UUID) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        job = Job.objects.get(pk=job_id)
        if job.status == JobStatus.SUCCEEDED:
            return
        if not job.is_live:
            raise LabError(f"{job.kind} of {job.target_name}: {job.message}")
        time.sleep(0.3)
    raise LabError(f"job {job_id} does not end; are the workers running?")
