"""The migration job between two hosts in memory: what is refused before anything is written, what is cleaned up."""

from collections.abc import Iterator
from dataclasses import replace
from threading import Event as Flag
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User

from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.models import KmsCluster, MigrationProbe, StoragePolicy, VmMigration, VmSecurity, WrappedSecret
from encryption.services import migration, migration_live, migration_probes, migration_run, release
from encryption.services.key_access import fetched_key, make_key
from encryption.services.migration_files import Move
from inventory import jobs
from inventory.engine.hypervisor import Power
from inventory.errors import Untrusted
from inventory.models import Cluster, Datastore, Event, Host, Job, JobStatus, VirtualMachine
from inventory.services import sync
from inventory.services.connections import DomainMissing, HypervisorError, OperationRefused
from tests.encryption.file_host import MemoryKeyServer
from tests.fakes import GIB, FakeSite, disk
from tests.fakes import vm as facts_of

pytestmark = pytest.mark.django_db
XML = """<domain type='qemu'><name>app</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><disk type='file' device='disk'>
<driver name='qemu' type='raw'/><source file='/images/vda.img'/><target dev='vda' bus='virtio'/></disk></devices>
</domain>"""


class Pair:
    """A running VM on `a`; `b` sees the same files."""

    def __init__(self, site: FakeSite, cluster: Cluster, actor: User) -> None:
        self.actor = actor
        self.a, self.b = (site.add(f"qemu+tls://kvm-{name}/system") for name in "ab")
        self.b.files = self.a.files  # one storage
        self.hosts = [
            Host.objects.create(cluster=cluster, name=f"kvm-{name}", uri=f"qemu+tls://kvm-{name}/system",
                                state="connected")
            for name in "ab"
        ]  # fmt: skip
        facts = facts_of(
            "app", firmware="bios", nvram_path="", tpm=None, power=Power.ON, disks=(disk(capacity_bytes=GIB),)
        )
        self.uuid = facts.uuid
        self.a.add(facts)
        self.a.xml[facts.uuid] = XML.format(uuid=facts.uuid)
        for host, hypervisor in zip(self.hosts, (self.a, self.b), strict=True):
            sync.sync_host(host, hypervisor)

    @property
    def vm(self) -> VirtualMachine:
        return VirtualMachine.objects.select_related("host").get(uuid=self.uuid)

    def move(self) -> Job:
        job = migration.migrate_vm(vm_id=self.vm.pk, target_id=self.hosts[1].pk, actor=self.actor)
        jobs.run(str(job.pk), migration_run.run_migrate_vm)
        job.refresh_from_db()
        return job

    def set_mode(self, mode: str) -> None:
        VmMigration.objects.update_or_create(virtual_machine=self.vm, defaults={"encrypted": mode})

    def is_only_on(self, name: str) -> bool:
        where = [host.name for host, one in zip(self.hosts, (self.a, self.b), strict=True) if self.uuid in one.vms]
        return where == [name] and self.vm.host.name == name and not self.a.secrets and not self.b.secrets

    def encrypt(self) -> WrappedSecret:
        """Its disk opens with a key of ours from now on."""
        owner = KmsCluster.objects.get()
        job = jobs.start(migration_probes.PROBE, target=self.hosts[0].cluster, actor=self.actor)
        key = make_key(owner, self.vm, name="bartizan/test", job=job)
        Job.objects.all().delete()
        with fetched_key(key) as kek:
            wrapped = keywrap.wrap(kek, Secret.generate(32))
        row = WrappedSecret.objects.create(
            virtual_machine=self.vm, purpose="disk", target="vda", key=key, wrapped=wrapped, path="/images/vda.img",
            stage="in_use",
        )  # fmt: skip
        policy = StoragePolicy.objects.get(name="VM Encryption Policy")
        VmSecurity.objects.create(virtual_machine=self.vm, policy=policy, key=key)
        encrypted = disk(capacity_bytes=GIB, is_encrypted=True, secret_uuid=row.secret_uuid)
        self.a.change(self.uuid, disks=(encrypted,))
        sync.sync_host(self.hosts[0], self.a)
        return row


@pytest.fixture
def pair(site: FakeSite, cluster: Cluster, alice: User, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(migration_live, "POLL_SECONDS", 0.01)
    return Pair(site, cluster, alice)


NO_TLS = OperationRefused("migration_tls_unavailable", "no certificates", hint="give both hosts certificates")


def test_a_plain_vm_goes_under_tls(pair: Pair) -> None:
    job = pair.move()
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert pair.is_only_on("kvm-b")
    assert [one.uses_tls for one in pair.a.migrations] == [True, True]  # the probe, the VM
    assert pair.a.migrations[1].copied_disks == () and pair.a.migrations[1].edit is None
    told = Event.objects.get(kind="vm.migrated")
    assert (told.data["encrypted"], told.data["downtime_ms"], told.data["mode"]) == (True, 60, "opportunistic")
    assert MigrationProbe.objects.get().is_ready and not pair.a.probes and not pair.b.probes


def test_opportunistic_falls_back_and_says_so(pair: Pair) -> None:
    pair.a.tls_failure = NO_TLS
    assert pair.move().status == JobStatus.SUCCEEDED
    assert [one.uses_tls for one in pair.a.migrations] == [False]
    told = Event.objects.get(kind="vm.migrated")
    assert told.data["fell_back"] and not told.data["encrypted"] and told.severity == "warning"


def test_a_probe_that_was_good_and_is_no_longer(pair: Pair) -> None:
    """The pair could when it was last tried; the move itself fails, and goes on in clear only if it may."""
    migration_probes.probe(pair.hosts[0], pair.hosts[1], actor=pair.actor)
    pair.a.tls_failure = NO_TLS
    assert pair.move().status == JobStatus.SUCCEEDED
    assert not Event.objects.get(kind="vm.migrated").data["encrypted"]


def test_required_is_refused_before_anything_moves(pair: Pair) -> None:
    pair.set_mode("required")
    pair.a.tls_failure = NO_TLS
    job = pair.move()
    assert (job.status, job.error_code) == (JobStatus.FAILED, "migration_tls_unavailable")
    assert pair.is_only_on("kvm-a") and pair.a.migrations == [] and "layout" not in job.checkpoint


def test_required_does_not_fall_back_on_the_way(pair: Pair) -> None:
    pair.set_mode("required")
    migration_probes.probe(pair.hosts[0], pair.hosts[1], actor=pair.actor)
    pair.a.tls_failure = NO_TLS
    job = pair.move()
    assert (job.status, job.error_code) == (JobStatus.FAILED, "migration_tls_unavailable")
    assert pair.is_only_on("kvm-a")
    assert Event.objects.get(kind="vm.migration_failed").data["code"] == "migration_tls_unavailable"


@pytest.mark.parametrize(
    "error",
    [
        OperationRefused("target_unreachable", "no answer"),
        OperationRefused("cpu_incompatible", "guest CPU doesn't match"),
        OperationRefused("block_job_active", "active block job"),
    ],
)
def test_a_move_that_fails_leaves_it_where_it_is(pair: Pair, error: HypervisorError) -> None:
    pair.set_mode("disabled")
    pair.a.failures["migrate"] = error
    job = pair.move()
    assert (job.status, job.error_code) == (JobStatus.FAILED, error.code)
    assert pair.is_only_on("kvm-a")


def test_storage_that_only_seemed_shared(pair: Pair) -> None:
    pair.b.files = {}
    job = pair.move()
    assert (job.status, job.error_code) == (JobStatus.FAILED, "datastore_needed")
    assert pair.is_only_on("kvm-a") and not pair.a.files


def test_a_target_that_cannot_run_its_machine(pair: Pair) -> None:
    pair.b.unknown_machines = {"q35"}
    assert pair.move().error_code == "machine_unknown"
    assert pair.is_only_on("kvm-a")


@pytest.fixture
def closed_gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def gate(host: Host, purpose: str) -> dict[str, str]:
        if host.name == "kvm-b":
            raise Untrusted("host_untrusted", f"{host} is not trusted for {purpose}")
        return {}

    monkeypatch.setattr(release, "_GATES", [gate])
    yield


def test_keys_go_along_and_away_again(pair: Pair, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "_GATES", [lambda host, purpose: {"asked": f"{host} {purpose}"}])
    row = pair.encrypt()
    job = pair.move()
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert pair.is_only_on("kvm-b") and "put_secret" in pair.b.calls and "put_secret" not in pair.a.calls
    assert Event.objects.get(kind="key.released").data["gate"] == ["asked=kvm-b migration"]
    assert Event.objects.get(kind="vm.migrated").data["mode"] == "required"
    row.refresh_from_db()
    assert row.path == "/images/vda.img"


@pytest.mark.usefixtures("closed_gate")
def test_no_key_past_a_closed_gate(pair: Pair, keys: MemoryKeyServer) -> None:
    pair.encrypt()
    job = pair.move()
    assert (job.status, job.error_code) == (JobStatus.FAILED, "host_untrusted")
    assert pair.is_only_on("kvm-a") and "put_secret" not in pair.b.calls


def test_a_job_that_is_run_again_finds_it_at_the_target(pair: Pair) -> None:
    """As after a kill between the transfer and the row."""
    job = migration.migrate_vm(vm_id=pair.vm.pk, target_id=pair.hosts[1].pk, actor=pair.actor)
    layout = {"disks": {}, "nvram": "", "logs_folder": "", "old": [], "folders": []}
    kept = {"layout": layout, "uses_tls": True, "mode": "required", "is_live": True, "autostart": True}
    Job.objects.filter(pk=job.pk).update(checkpoint=kept)
    pair.b.vms[pair.uuid] = pair.a.vms.pop(pair.uuid)
    pair.b.xml[pair.uuid] = pair.a.xml.pop(pair.uuid)
    sync.sync_host(pair.hosts[1], pair.b)
    assert pair.vm.host.name == "kvm-a", "the watcher waits for the job"
    jobs.run(str(job.pk), migration_run.run_migrate_vm)
    job.refresh_from_db()
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert pair.is_only_on("kvm-b") and not pair.a.migrations
    assert pair.b.vms[pair.uuid].is_autostarted


def test_nothing_is_told_gone_while_its_job_is_late(pair: Pair) -> None:
    """The guest is at the target, and the worker that has to say so is dead: the row stays where it was."""
    job = migration.migrate_vm(vm_id=pair.vm.pk, target_id=pair.hosts[1].pk, actor=pair.actor)
    pair.b.vms[pair.uuid] = pair.a.vms.pop(pair.uuid)
    kept = {"layout": {}, "uses_tls": True, "mode": "required", "is_live": True, "autostart": False}
    late = [(kept, JobStatus.RUNNING), ({**kept, "arrived": True}, JobStatus.RUNNING)]
    for checkpoint, status in (*late, (kept, JobStatus.FAILED)):
        Job.objects.filter(pk=job.pk).update(checkpoint=checkpoint, status=status)
        sync.sync_host(pair.hosts[0], pair.a)
        sync.refresh_uuids(pair.hosts[0], pair.a, [pair.uuid])
        assert (pair.vm.is_present, pair.vm.host.name) == (status == JobStatus.RUNNING, "kvm-a")
    assert Event.objects.filter(kind="vm.gone").count() == 1


def test_a_vm_that_goes_before_it_is_moved_is_gone(pair: Pair) -> None:
    migration.migrate_vm(vm_id=pair.vm.pk, target_id=pair.hosts[1].pk, actor=pair.actor)
    pair.a.undefine(pair.uuid)
    sync.sync_host(pair.hosts[0], pair.a)
    assert not pair.vm.is_present


def test_a_source_that_ends_its_guest_itself(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job looks while the hosts are at the end of it: what it was about to end is off, or gone, by then."""
    job = migration.migrate_vm(vm_id=pair.vm.pk, target_id=pair.hosts[1].pk, actor=pair.actor)
    layout = {"disks": {}, "nvram": "", "logs_folder": "", "old": [], "folders": []}
    kept = {"layout": layout, "uses_tls": True, "mode": "required", "is_live": True, "autostart": False}
    Job.objects.filter(pk=job.pk).update(checkpoint=kept)
    pair.b.add(pair.a.vms[pair.uuid])
    pair.b.xml[pair.uuid] = pair.a.xml[pair.uuid]
    pair.a.change(pair.uuid, power=Power.PAUSED)
    errors: list[HypervisorError] = [
        OperationRefused("wrong_state", "not running"),
        DomainMissing("vm_missing", "gone"),
    ]

    def ended(uuid: UUID) -> None:
        error = errors.pop(0)
        if not errors:
            pair.a.undefine(uuid)
        raise error

    monkeypatch.setattr(pair.a, "power_off", ended)
    jobs.run(str(job.pk), migration_run.run_migrate_vm)
    job.refresh_from_db()
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert pair.is_only_on("kvm-b")


def test_what_stands_against_the_end_of_it_is_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    job = migration.migrate_vm(vm_id=pair.vm.pk, target_id=pair.hosts[1].pk, actor=pair.actor)
    layout = {"disks": {}, "nvram": "", "logs_folder": "", "old": [], "folders": []}
    kept = {"layout": layout, "uses_tls": True, "mode": "required", "is_live": True, "autostart": False}
    Job.objects.filter(pk=job.pk).update(checkpoint=kept)
    pair.b.add(pair.a.vms[pair.uuid])
    pair.a.change(pair.uuid, power=Power.PAUSED)
    pair.a.failures["power_off"] = OperationRefused("host_refused", "cannot end it")
    jobs.run(str(job.pk), migration_run.run_migrate_vm)
    job.refresh_from_db()
    assert (job.status, job.error_code) == (JobStatus.FAILED, "host_refused")
    assert pair.uuid in pair.a.vms and pair.uuid in pair.b.vms


def test_a_cancellation_that_comes_before_there_is_anything_to_break_off(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hosts are still negotiating: it is asked for until they have listened."""
    pair.set_mode("disabled")
    job = migration.migrate_vm(vm_id=pair.vm.pk, target_id=pair.hosts[1].pk, actor=pair.actor)
    asked, is_broken_off = 0, Flag()
    tell = migration_live.tell

    def cancelled(move: Move) -> bool:
        Job.objects.filter(pk=job.pk).update(cancel_requested=True)
        return tell(move)

    def migrate(uuid: UUID, request: object) -> None:
        assert is_broken_off.wait(10)
        raise OperationRefused("cancelled", "canceled by client")

    def abort(uuid: UUID) -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            is_broken_off.set()

    monkeypatch.setattr(migration_live, "tell", cancelled)
    monkeypatch.setattr(pair.a, "migrate", migrate)
    monkeypatch.setattr(pair.a, "abort_migration", abort)
    jobs.run(str(job.pk), migration_run.run_migrate_vm)
    job.refresh_from_db()
    assert (job.status, asked >= 3) == (JobStatus.CANCELLED, True)
    assert pair.is_only_on("kvm-a")


def test_an_off_one_is_defined_there_and_undefined_here(pair: Pair) -> None:
    pair.a.change(pair.uuid, power=Power.OFF)
    sync.sync_host(pair.hosts[0], pair.a)
    define = pair.b.add

    def defined(xml: str) -> None:
        define(replace(pair.a.vms[pair.uuid], definition_sha256=uuid4().hex * 2))
        pair.b.xml[pair.uuid] = xml

    pair.b.define = defined  # type: ignore[method-assign]
    job = pair.move()
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert pair.is_only_on("kvm-b") and pair.a.migrations == []
    assert not Event.objects.get(kind="vm.migrated").data["live"]


@pytest.mark.parametrize(
    ("power", "host", "call"), [(Power.OFF, "b", "upload"), (Power.OFF, "b", "define"), (Power.ON, "a", "migrate")]
)
def test_files_at_the_target_go_where_it_fails(pair: Pair, power: Power, host: str, call: str) -> None:
    """Of storage that is not shared: copied whole, or made empty for a running one."""
    pair.b.files = {}
    pair.a.files["/images/vda.img"] = b"the disk"
    pair.a.change(pair.uuid, power=power)
    for row, hypervisor in zip(pair.hosts, (pair.a, pair.b), strict=True):
        sync.sync_host(row, hypervisor)
    {"a": pair.a, "b": pair.b}[host].failures[call] = OperationRefused("migration_failed", "no")
    store = Datastore.objects.get(host=pair.hosts[1])
    pair.set_mode("disabled")
    job = migration.migrate_vm(vm_id=pair.vm.pk, target_id=pair.hosts[1].pk, datastore_id=store.pk, actor=pair.actor)
    jobs.run(str(job.pk), migration_run.run_migrate_vm)
    job.refresh_from_db()
    assert (job.status, job.error_code) == (JobStatus.FAILED, "migration_failed"), job.message
    assert pair.is_only_on("kvm-a") and pair.b.files == {} and list(pair.a.files) == ["/images/vda.img"]
    assert Event.objects.get(kind="vm.migration_failed").data["code"] == "migration_failed"


def test_a_copied_definition_on_a_third_host_does_not_keep_the_row(pair: Pair, site: FakeSite) -> None:
    third = site.add("qemu+tls://kvm-c/system")
    host = Host.objects.create(
        cluster=pair.hosts[0].cluster, name="kvm-c", uri="qemu+tls://kvm-c/system", state="connected"
    )
    third.add(replace(pair.a.vms[pair.uuid], power=Power.OFF))
    sync.sync_host(host, third)
    moved = VirtualMachine.objects.get(host=pair.hosts[0])
    job = migration.migrate_vm(vm_id=moved.pk, target_id=pair.hosts[1].pk, actor=pair.actor)
    jobs.run(str(job.pk), migration_run.run_migrate_vm)
    job.refresh_from_db()
    assert job.status == JobStatus.SUCCEEDED, job.message
    moved.refresh_from_db()
    assert moved.host == pair.hosts[1] and moved.is_present
    assert VirtualMachine.objects.filter(host=host, is_present=True).count() == 1
    assert VirtualMachine.objects.count() == 2
