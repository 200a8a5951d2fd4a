"""Two data centers, each with one row of everything that an address can name, and what belongs to no place."""

from dataclasses import dataclass
from uuid import UUID, uuid4

from django.contrib.auth.models import User
from django.db.models import Model
from django.utils import timezone

from attestation.engine.reference import ReferenceValues
from attestation.engine.reference_json import to_json
from attestation.models import PendingRegistration, ReferenceSet, TpmIdentity, TrustAnchor, Verdict
from console.models import ApiToken, SyslogTarget
from encryption.models import (
    Bundle,
    CryptoInventory,
    Key,
    KmsCluster,
    KmsServer,
    Leftover,
    Purpose,
    Stage,
    StoragePolicy,
    VmSecurity,
    WrappedSecret,
)
from inventory import events
from inventory.alarms import raise_alarm
from inventory.authorize import Role
from inventory.models import (
    Cluster,
    Datacenter,
    Datastore,
    Disk,
    Host,
    JobStatus,
    PowerState,
    RoleAssignment,
    VirtualMachine,
)
from tests import sample
from tests.encryption.certificates import LEAF

SECRET = "planted"  # in every name below the foreign data center


@dataclass(frozen=True, slots=True)
class Subtree:
    """What stands in a data center; `ids` by the names that addresses and bodies have for them."""

    datacenter: Datacenter
    cluster: Cluster
    host: Host
    datastore: Datastore
    vm: VirtualMachine
    ids: dict[str, object]

    def place(self, kind: str) -> Model:
        found = {
            "datacenter": self.datacenter, "cluster": self.cluster, "host": self.host, "datastore": self.datastore,
            "vm": self.vm,
        }  # fmt: skip
        return found[kind]


def everywhere() -> dict[str, object]:
    """What belongs to no place, by the names that addresses have for it."""
    provider = KmsCluster.objects.create(name="KMS", is_default=True)
    server = KmsServer.objects.create(cluster=provider, position=0, host="kms.example")
    key = Key.objects.create(cluster=provider, key_id="kmip-7", state=Key.State.ACTIVE)
    policy = StoragePolicy.objects.create(name="Own policy", encrypts=True)
    anchor = TrustAnchor.objects.create(
        name="maker", certificate_pem=LEAF, spki_sha256="0", fingerprint="0", not_after=timezone.now()
    )
    waiting = PendingRegistration.objects.create(
        agent_id="b", expected_auth_tag="t", source_address="127.0.0.1", expires_at=timezone.now(), ek_public=b"",
        ak_public=b"", activated_at=timezone.now(), ek_name="1",
    )  # fmt: skip
    collector = SyslogTarget.objects.create(slot=1, host="logs.example", port=6514, protocol="tls")
    made = CryptoInventory.objects.create(asked_by="alice", made_at=timezone.now(), content="{}")
    bundle = Bundle.objects.create(folder="app-01", vm_name="app-01", state=Bundle.State.COMPLETE, key_id="kmip-7")
    return {
        "provider_id": provider.pk, "server_id": server.pk, "key_id": key.pk, "policy_id": policy.pk,
        "anchor_id": anchor.pk, "registration_id": waiting.pk, "bundle_id": bundle.pk, "home_policy_id": policy.pk,
        "syslog_target_id": collector.pk,
        "inventory_id": made.pk,
    }  # fmt: skip


def subtree(name: str, shared: dict[str, object]) -> Subtree:
    """The VM is encrypted, powered off, and its host disconnected: what is allowed ends in a refusal of another kind,
    or in a job that nobody runs."""
    datacenter = Datacenter.objects.create(name=f"{name}-dc")
    cluster = Cluster.objects.create(datacenter=datacenter, name=f"{name}-cluster")
    host = Host.objects.create(
        cluster=cluster, name=f"{name}-host", uri=f"qemu+tls://{name}/system", state=Host.State.DISCONNECTED
    )
    store = Datastore.objects.create(host=host, name=f"{name}-store", kind="dir", path=f"/{name}", is_active=True)
    vm = VirtualMachine.objects.create(
        host=host, uuid=uuid4(), name=f"{name}-vm", power_state=PowerState.OFF, firmware="uefi", tpm_model="tpm-crb",
        tpm_version="2.0",
    )  # fmt: skip
    Disk.objects.create(
        virtual_machine=vm, target="vda", format="raw", source=f"/{name}/vda.luks", is_encrypted=True,
        capacity_bytes=2**30,
    )  # fmt: skip
    key = Key.objects.get()
    VmSecurity.objects.create(virtual_machine=vm, policy=StoragePolicy.objects.filter(encrypts=True)[0], key=key)
    WrappedSecret.objects.create(
        virtual_machine=vm, purpose=Purpose.DISK, target="vda", key=key, wrapped=b"w", path=f"/{name}/vda.luks"
    )
    detached = WrappedSecret.objects.create(
        virtual_machine=vm, purpose=Purpose.DISK, target="vdb", key=key, wrapped=b"w", path=f"/{name}/vdb.luks",
        stage=Stage.DETACHED,
    )  # fmt: skip
    leftover = Leftover.objects.create(
        host=host, path=f"/{name}/old.raw", kind=Leftover.Kind.ORIGINAL, fingerprint="x", virtual_machine=vm
    )
    TpmIdentity.objects.create(
        host=host, agent_id=name, ek_name=name, enrolled_by="alice", activated_at=timezone.now(), ek_public=b"",
        ak_public=b"",
    )  # fmt: skip
    verdict = Verdict.objects.create(
        host=host, status="passed", message=f"{name} passed", reason="demand", checked_at=timezone.now()
    )
    reference = ReferenceSet.objects.create(
        cluster=cluster,
        version=1,
        body=to_json(ReferenceValues(secure_boot=False)).decode(),
        reason="x",
        made_by="alice",
    )
    job = sample.job_of(vm, "inventory.power_on", JobStatus.RUNNING)
    asked = sample.job_of(vm, "encryption.apply_options", JobStatus.WAITING, approval_right="encryption.decrypt_vm")
    told = events.record("vm.powered_on", f"{name}-vm started", target=vm, actor="alice")
    alarm = raise_alarm("host.disconnected", f"{name}-host is lost", target=host)
    other = User.objects.get_or_create(username="holder")[0]
    assignment = RoleAssignment.objects.create(user=other, role=Role.AUDITOR, cluster=cluster, assigned_by="alice")
    ids: dict[str, object] = shared | {
        "datacenter_id": datacenter.pk, "cluster_id": cluster.pk, "host_id": host.pk, "target_host_id": host.pk,
        "datastore_id": store.pk, "vm_id": vm.pk, "virtual_machines": [vm.pk], "disk_id": detached.pk,
        "secret_uuid": detached.pk, "leftover_id": leftover.pk, "verdict_id": verdict.pk,
        "reference_id": reference.pk, "job_id": job.pk, "waiting_id": asked.pk, "event_id": told.pk,
        "alarm_id": alarm.pk, "assignment_id": assignment.pk,
    }  # fmt: skip
    return Subtree(datacenter, cluster, host, store, vm, ids)


def token_of(user: User) -> UUID:
    made = ApiToken.objects.create(
        user=user, name="own", prefix="bartizan_x", sha256=uuid4().hex, expires_at=timezone.now()
    )
    return made.pk
