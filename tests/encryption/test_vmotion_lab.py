"""Encrypted vMotion between the lab's two hosts: a real guest with encrypted disks, NVRAM and vTPM. Slow.

The jobs run in this process as a worker runs them; the key server is in memory.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import libvirt
import pytest
from django.contrib.auth.models import User

from encryption.models import EncryptedVmotion, KmsCluster, KmsServer, MigrationProbe, StoragePolicy
from encryption.services import (
    conversion,
    key_access,
    migration,
    migration_live,
    migration_probes,
    migration_run,
    options,
    vmotion,
)
from encryption.services.migration_files import Move
from inventory import jobs
from inventory.jobs import Progress
from inventory.models import Cluster, Datacenter, Datastore, Event, Host, Job, JobStatus, VirtualMachine
from inventory.services import connections, power, sync
from lab import guests, session
from lab.disks import SECTOR, data_disks
from lab.guest_client import GuestClient
from lab.hosts import CA_NAME
from lab.layout import HostLayout, free_ports
from lab.pki import Authority
from lab.session import RunningLab
from tests.e2e.test_copy_vm import DEFINE, SECRET, WRITE, nv_content, succeeded, tpm
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.relay import Relay
from tests.encryption.world import provider

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.django_db]
CACHE = Path(__file__).parents[2] / "var" / "cache"
NAME = "uefi-01"


RELAYED = "127.0.0.13"
# In every guest's memory: a line of its init script. On every guest's disks: see lab/disks.py.
IN_MEMORY = b"# Sectors as they are on the disk, not as the page cache remembers them."
ON_DISK = data_disks("bios-01")[0].marker_line
ON_ENCRYPTED_DISK = data_disks(NAME)[0].marker_line


@pytest.fixture(scope="module")
def running() -> Iterator[RunningLab]:
    """Host b has a certificate for the relay's address too."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/var/tmp") as name:
        state = Path(name) / "lab"
        Path(name).chmod(0o755)
        try:
            with RunningLab(state, cache=CACHE) as lab:
                b = lab.lab.host("b")
                authority = Authority.create(lab.lab.ca, CA_NAME)
                issued = authority.issue("lab host b", ips=[RELAYED, b.migration_address], server=True)
                lab.lab.user.write(b.qemu_pki / "server-key.pem", issued.key_pem)
                lab.lab.user.write(b.qemu_pki / "server-cert.pem", issued.certificate_pem, 0o644)
                yield lab
        finally:
            session.destroy(state)


@pytest.fixture
def relay(running: RunningLab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """Whatever goes to host b goes through it: libvirt is told an address at which b does not listen itself."""
    b = running.lab.host("b")
    ports = free_ports(12)
    unused = iter(ports)  # libvirt gives a port that it was told back to nobody, so each migration has its own
    migrate = libvirt.virDomain.migrateToURI3

    def diverted(domain: libvirt.virDomain, uri: str, parameters: dict[str, Any], flags: int) -> int:
        if f":{b.tls_port}/" in uri:
            parameters = {
                **parameters,
                libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{RELAYED}:{next(unused)}",
                libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS: b.migration_address,
            }
            if flags & libvirt.VIR_MIGRATE_NON_SHARED_DISK:
                parameters[libvirt.VIR_MIGRATE_PARAM_DISKS_PORT] = next(unused)
        return int(migrate(domain, uri, parameters, flags))

    monkeypatch.setattr(libvirt.virDomain, "migrateToURI3", diverted)
    with Relay(RELAYED, b.migration_address, ports, (IN_MEMORY, ON_DISK, ON_ENCRYPTED_DISK)) as found:
        yield found


class Site:
    """The lab's hosts as rows, and what a person asks of the console."""

    def __init__(self, running: RunningLab, actor: User) -> None:
        self.running, self.actor, self.name = running, actor, NAME
        place = Cluster.objects.create(datacenter=Datacenter.objects.create(name="Lab"), name="Lab Cluster")
        self.cluster = place
        self.hosts = {
            layout.name: Host.objects.create(
                cluster=place, name=f"host-{layout.name}", uri=layout.uri, state=Host.State.CONNECTED,
                migration_uri=layout.peer_uri(layout.pki),
                vtpm_state_path=str(layout.config / "libvirt" / "qemu" / "swtpm"),
            )
            for layout in running.lab.hosts
        }  # fmt: skip
        self.sync()

    def sync(self) -> None:
        for host in self.hosts.values():
            with connections.open_host(host) as hypervisor:
                sync.sync_host(host, hypervisor)

    @property
    def vm(self) -> VirtualMachine:
        return VirtualMachine.objects.select_related("host").get(name=self.name, is_present=True)

    def store(self, host: str) -> Datastore:
        return Datastore.objects.get(host=self.hosts[host], name="default")

    def run(self, job: Job, work: Callable[[Job, Progress], None], status: str = JobStatus.SUCCEEDED) -> Job:
        jobs.run(str(job.pk), work)
        job.refresh_from_db()
        assert job.status == status, (job.status, job.error_code, job.message)
        return job

    def encrypt(self) -> None:
        policy = StoragePolicy.objects.get(name="VM Encryption Policy").pk
        wish = options.Wish(policy, dict.fromkeys(("vda", "vdb"), policy))
        self.run(options.apply_options(vm_id=self.vm.pk, wish=wish, actor=self.actor), conversion.apply_options)

    def start(self) -> GuestClient:
        self.run(power.power_on(vm_id=self.vm.pk, actor=self.actor), power.run_power_on)
        return self.guest()

    def guest(self) -> GuestClient:
        """Once it answers: it may be starting yet, and right after a migration a question may be lost."""
        client = self.running.guest(self.name)
        client.wait(timeout=180)
        return client

    def beats(self) -> int:
        """Seconds that the guest has counted."""
        return int(self.guest().ask("heartbeat"))

    def stop(self) -> None:
        self.run(power.power_off(vm_id=self.vm.pk, actor=self.actor), power.run_power_off)

    def ask(self, to: str, *, copies: bool = True) -> Job:
        store = self.store(to).pk if copies else None
        return migration.migrate_vm(vm_id=self.vm.pk, target_id=self.hosts[to].pk, datastore_id=store, actor=self.actor)

    def move(self, to: str, status: str = JobStatus.SUCCEEDED, *, copies: bool = True) -> Job:
        return self.run(self.ask(to, copies=copies), migration_run.run_migrate_vm, status)

    # What is, past the console

    def has(self, host: str) -> bool:
        with guests.connected(self.layout(host)) as connection:
            return self.name in [domain.name() for domain in connection.listAllDomains()]

    def layout(self, host: str) -> HostLayout:
        return self.running.lab.host(host)

    def check_only_on(self, host: str) -> None:
        other = "b" if host == "a" else "a"
        assert self.has(host) and not self.has(other)
        assert self.vm.host == self.hosts[host]
        for layout in self.running.lab.hosts:
            with guests.connected(layout) as connection:
                assert connection.listSecrets() == []
        folder = self.layout(other).datastore / self.name
        assert not folder.exists() or {path.name for path in folder.iterdir()} <= {"console.log"}
        assert not (self.layout(other).config / "libvirt" / "qemu" / "swtpm" / str(self.vm.uuid)).exists()


def check_disks(client: GuestClient, name: str = NAME) -> None:
    for disk in data_disks(name):
        for offset, content in disk.planted():
            seen = client.ask(f"sha256 {disk.name} {offset // SECTOR} {len(content) // SECTOR}", timeout=60)
            assert seen == hashlib.sha256(content).hexdigest(), (disk.name, offset)


@pytest.fixture
def place(running: RunningLab, relay: Relay, alice: User, sent: object, monkeypatch: pytest.MonkeyPatch) -> Site:
    server = MemoryKeyServer()
    provider()

    def client(cluster: KmsCluster, address: KmsServer, *_: float) -> MemoryKeyServer:
        return server

    monkeypatch.setattr(key_access, "open_client", client)
    return Site(running, alice)


@pytest.fixture
def plain(place: Site) -> Site:
    """The BIOS guest, which runs: nothing of it is encrypted. On host a, whoever had it."""
    place.name = "bios-01"
    place.sync()
    if place.vm.host.name == "host-b":
        place.move("a")
        Event.objects.filter(kind="vm.migrated").delete()
    return place


def test_a_guest_with_disks_and_vtpm_goes_and_comes_back(place: Site, relay: Relay) -> None:
    place.encrypt()
    client = place.start()
    succeeded(tpm(client, DEFINE))
    succeeded(tpm(client, WRITE.format(data=SECRET.hex())))
    beats = int(client.ask("heartbeat"))
    row_id: UUID = place.vm.pk

    relay.reset()
    place.move("b")

    check_is_tls(relay)
    assert place.vm.pk == row_id
    place.check_only_on("b")
    client = place.guest()
    assert int(client.ask("heartbeat")) >= beats
    assert nv_content(client) == SECRET
    check_disks(client)
    told = Event.objects.get(kind="vm.migrated")
    assert told.data["encrypted"] and told.data["live"] and told.data["mode"] == "required", told.data

    place.stop()
    client = place.start()
    assert nv_content(client) == SECRET
    check_disks(client)

    place.stop()
    place.move("a")
    place.check_only_on("a")
    client = place.start()
    assert nv_content(client) == SECRET
    check_disks(client)


def check_is_tls(relay: Relay) -> None:
    """Memory and disks went through the relay, and nothing of them could be read there."""
    assert relay.seen.moved > 64 * 2**20, relay.seen.moved
    assert len(relay.seen.first) >= 2, "one connection for the memory, one at least for disks"
    # NBD speaks before it begins TLS: its server first, then the client's flags and NBD_OPT_STARTTLS (5).
    for first in relay.seen.first:
        assert first.startswith((b"\x16\x03", b"\x00\x00\x00\x03")), relay.seen.first
    assert any(first.startswith(b"\x16\x03") for first in relay.seen.first)
    assert set(relay.seen.found.values()) == {0}, relay.seen.found


def test_a_plain_guest_in_clear_and_under_tls(plain: Site, relay: Relay) -> None:
    """The control: in clear the relay reads memory and disks of the same guest. Then under TLS, and nothing."""
    beats = plain.beats()
    vmotion.set_encrypted_vmotion(vm_id=plain.vm.pk, mode=EncryptedVmotion.DISABLED, actor=plain.actor)
    relay.reset()
    plain.move("b")
    assert relay.seen.found[IN_MEMORY] > 0 and relay.seen.found[ON_DISK] > 1000, relay.seen.found
    assert any(first.startswith(b"QEVM") for first in relay.seen.first), relay.seen.first
    told = Event.objects.get(kind="vm.migrated")
    assert (told.data["encrypted"], told.data["fell_back"], told.severity) == (False, False, "info")
    plain.check_only_on("b")

    plain.move("a")
    vmotion.set_encrypted_vmotion(vm_id=plain.vm.pk, mode=EncryptedVmotion.REQUIRED, actor=plain.actor)
    relay.reset()
    plain.move("b")
    check_is_tls(relay)
    assert plain.beats() >= beats
    check_disks(plain.guest(), "bios-01")


@contextmanager
def without_certificates(site: Site, host: str) -> Iterator[None]:
    ca = site.layout(host).qemu_pki / "ca-cert.pem"
    ca.rename(ca.with_suffix(".away"))
    try:
        yield
    finally:
        ca.with_suffix(".away").rename(ca)


def test_a_host_without_certificates(plain: Site) -> None:
    """*required* is refused before anything moves; *opportunistic* goes in clear, and says so."""
    with without_certificates(plain, "b"):
        vmotion.set_encrypted_vmotion(vm_id=plain.vm.pk, mode=EncryptedVmotion.REQUIRED, actor=plain.actor)
        job = plain.move("b", JobStatus.FAILED)
        assert job.error_code == "migration_tls_unavailable"
        assert "layout" not in job.checkpoint, "refused before anything was written"
        plain.check_only_on("a")
        plain.guest()

        vmotion.set_encrypted_vmotion(vm_id=plain.vm.pk, mode=EncryptedVmotion.OPPORTUNISTIC, actor=plain.actor)
        plain.move("b")
    told = Event.objects.get(kind="vm.migrated")
    assert (told.data["encrypted"], told.data["fell_back"], told.severity) == (False, True, "warning")
    assert "NOT encrypted" in told.message
    plain.check_only_on("b")


def test_probes_of_both_directions(plain: Site) -> None:
    def result() -> dict[str, str]:
        plain.run(
            migration_probes.probe_cluster(cluster_id=plain.cluster.pk, actor=plain.actor),
            migration_probes.run_probe_cluster,
        )
        return {row.source.name: row.code for row in MigrationProbe.objects.all()}

    assert result() == {"host-a": "", "host-b": ""}
    with without_certificates(plain, "b"):
        assert result() == {"host-a": "migration_tls_unavailable", "host-b": "migration_tls_unavailable"}
    foreign = Authority.create(Path(plain.running.lab.state) / "foreign", "some other CA")
    ca = plain.layout("b").qemu_pki / "ca-cert.pem"
    kept = ca.read_bytes()
    plain.running.lab.user.write(ca, foreign.certificate_pem, 0o644)
    try:
        assert set(result().values()) <= {"migration_tls_untrusted", "migration_tls_unavailable"}
    finally:
        plain.running.lab.user.write(ca, kept, 0o644)
    plain.sync()
    assert not VirtualMachine.objects.filter(name__startswith="bartizan-probe").exists()


def slow_down(site: Site, mib_per_second: int) -> None:
    with guests.connected(site.layout("a")) as connection:
        connection.lookupByName(site.name).migrateSetMaxSpeed(mib_per_second, 0)


def test_a_cancelled_one_stays(plain: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    vmotion.set_encrypted_vmotion(vm_id=plain.vm.pk, mode=EncryptedVmotion.REQUIRED, actor=plain.actor)
    slow_down(plain, 1)
    job = plain.ask("b")
    tell = migration_live.tell

    def cancelled(move: Move) -> bool:
        if move.here.migration(move.vm.uuid) is not None:
            Job.objects.filter(pk=job.pk).update(cancel_requested=True)
        return tell(move)

    monkeypatch.setattr(migration_live, "tell", cancelled)
    try:
        plain.run(job, migration_run.run_migrate_vm, JobStatus.CANCELLED)
    finally:
        slow_down(plain, 8796093022207)
    plain.check_only_on("a")
    plain.guest()
    assert Event.objects.get(kind="vm.migration_failed").data["code"] == "cancelled"


class Killed(BaseException):
    """The worker is dead; nothing of it runs any more."""


def test_the_job_of_a_dead_worker_finds_the_guest(plain: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIMULATED: the death, by what no code of a worker catches. The daemons go on; e2e kills a real worker."""
    vmotion.set_encrypted_vmotion(vm_id=plain.vm.pk, mode=EncryptedVmotion.REQUIRED, actor=plain.actor)
    slow_down(plain, 4)
    job = plain.ask("b")
    tell = migration_live.tell

    def killed(move: Move) -> bool:
        if move.here.migration(move.vm.uuid) is not None:
            raise Killed
        return tell(move)

    monkeypatch.setattr(migration_live, "tell", killed)
    with pytest.raises(Killed):
        jobs.run(str(job.pk), migration_run.run_migrate_vm)
    monkeypatch.setattr(migration_live, "tell", tell)
    assert plain.has("a") and plain.vm.host.name == "host-a"
    plain.sync()  # as the watchers do: what is arriving is no VM of its own
    assert VirtualMachine.objects.filter(name="bios-01").count() == 1
    slow_down(plain, 8796093022207)
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    plain.run(Job.objects.get(pk=job.pk), migration_run.run_migrate_vm)
    plain.check_only_on("b")
    plain.guest()
