"""VMs found with keys that this console does not know: taken over from their definitions, or locked with the cause."""

from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.test import Client
from django.urls import reverse

from encryption.models import Key, KmsCluster, LockCause, StoragePolicy, VmSecurity, WrappedSecret
from encryption.services import adoption, key_providers, kms_state, unlock, vm_metadata
from encryption.services.release import keep_keyed_rows
from inventory.engine.hypervisor import Power
from inventory.errors import Conflict, Invalid, Refused
from inventory.models import Event, Host, JobStatus, Severity, VirtualMachine
from inventory.services import sync, virtual_machines
from inventory.services.definitions import set_metadata
from tests.encryption.file_host import FileHost, MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.real_kms import run
from tests.encryption.services.starts import security, start, try_unlock
from tests.encryption.services.test_job_refusals import refused
from tests.encryption.world import Disk, Shape, World, provider

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
PARTS = ["nvram", "vda", "vtpm"]


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None) -> World:
    """A VM encrypted by a console that has then lost its database."""
    made = make_world(Shape((Disk("vda", "raw"),)))
    made.succeed(made.all_disks())
    made.hypervisor.put.clear()
    return made


def forget(world: World, *, provider_too: bool = False) -> tuple[UUID, dict[str, WrappedSecret]]:
    """A rebuilt console: hosts and VMs are read anew, nothing is known of keys. What there was."""
    rows, cluster = world.secrets, KmsCluster.objects.get()
    identity = cluster.pk
    WrappedSecret.objects.all().delete()
    VmSecurity.objects.all().delete()
    Key.objects.all().delete()
    Event.objects.all().delete()
    if provider_too:
        cluster.delete()
    return identity, rows


def assert_locked(world: World, cause: LockCause, parts: list[str] = PARTS) -> VmSecurity:
    found = security(world)
    assert (found.locked_at is not None, found.lock_cause, found.lock_parts) == (True, cause, parts), found.lock_detail
    return found


def test_a_rebuilt_console_with_the_same_provider_has_its_keys_again(world: World) -> None:
    _, before = forget(world)
    assert adoption.adopt_found() == 1
    found = world.secrets
    assert found.keys() == before.keys()
    for part, row in found.items():
        was = before[part]
        for name in ("secret_uuid", "purpose", "target", "path", "plain_format", "size_bytes", "stage"):
            if name != "plain_format" or part != "vtpm":
                assert getattr(row, name) == getattr(was, name), (part, name)
        assert bytes(row.wrapped) == bytes(was.wrapped)
        assert row.key.key_id == was.key.key_id
    assert Key.objects.get().state == Key.State.ACTIVE
    assert security(world).locked_at is None and security(world).policy.encrypts
    (event,) = Event.objects.filter(kind="vm.adopted")
    assert (event.data["parts"], event.actor) == (PARTS, "Bartizan")
    assert adoption.adopt_found() == 0, "done once"
    assert start(world).status == JobStatus.SUCCEEDED
    world.hypervisor.power_off(world.uuid)
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    world.succeed(world.nothing())
    facts = world.hypervisor._facts(world.uuid)
    assert not any(disk.is_encrypted for disk in facts.disks) and facts.nvram_secret_uuid is None


def test_a_host_is_looked_at_when_its_rows_change(
    world: World, sent: list[tuple[str, list[str], str]], django_capture_on_commit_callbacks: object
) -> None:
    forget(world)
    sent.clear()
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]
        world.hypervisor.xml[world.uuid] = world.hypervisor.xml[world.uuid].replace("</name>", "-2</name>")
        sync.refresh_virtual_machine(world.vm, world.hypervisor)
    assert ("encryption.adopt_found", [], "attestation") in sent
    adoption.adopt_found()
    sent.clear()
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]
        world.hypervisor.xml[world.uuid] = world.hypervisor.xml[world.uuid].replace("-2</name>", "-3</name>")
        sync.refresh_virtual_machine(world.vm, world.hypervisor)
    assert "encryption.adopt_found" not in {name for name, *_ in sent}, "its keys are known"


def test_without_the_provider_it_is_locked_and_says_which_one(world: World, keys: MemoryKeyServer) -> None:
    identity, before = forget(world, provider_too=True)
    adoption.adopt_found()
    found = assert_locked(world, LockCause.PROVIDER_UNKNOWN)
    assert (found.foreign_kms, found.foreign_kms_name) == (identity, "KMS")
    assert str(identity) in found.lock_detail and "identity" in found.lock_remedy
    assert adoption.foreign_providers(actor=world.actor) == [adoption.ForeignProvider(identity, "KMS", 1)]
    (event,) = Event.objects.filter(kind="vm.locked")
    assert (event.severity, event.data["cause"]) == (Severity.ERROR, "provider_unknown")

    job = start(world)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "vm_locked")
    assert "not known here" in job.message and world.hypervisor._facts(world.uuid).power is Power.OFF
    assert try_unlock(world).error_code == "key_provider_unknown"
    assert Event.objects.filter(kind="vm.locked").count() == 1, "told once"

    made = key_providers.add_provider(name="Again", host="kms", port=5696, actor=world.actor, identity=identity)
    assert made.pk == identity
    unlock.unlock_of_provider(str(identity))  # what the server's return causes
    assert world.secrets.keys() == before.keys()
    assert security(world).locked_at is None and security(world).foreign_kms is None
    assert adoption.foreign_providers(actor=world.actor) == []
    assert start(world).status == JobStatus.SUCCEEDED


def test_a_server_that_is_back_has_waiting_vms_tried(world: World) -> None:
    identity, _ = forget(world, provider_too=True)
    adoption.adopt_found()
    made = key_providers.add_cluster(name="Again", actor=world.actor, identity=identity)
    assert kms_state._has_locked_vms(made)
    assert not kms_state._has_locked_vms(key_providers.add_cluster(name="Other", actor=world.actor))


def test_taken_over_onto_a_named_provider(world: World) -> None:
    identity, before = forget(world, provider_too=True)
    adoption.adopt_found()
    other = provider("Renamed")
    job = run(adoption.adopt_keys(cluster_id=other.pk, identity=identity, actor=world.actor), adoption.run_adopt_keys)
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert world.secrets.keys() == before.keys()
    assert security(world).key is not None and security(world).key.cluster == other  # type: ignore[union-attr]
    assert str(other.pk) in world.hypervisor.xml[world.uuid] and str(identity) not in world.hypervisor.xml[world.uuid]
    assert start(world).status == JobStatus.SUCCEEDED


def test_a_named_provider_without_the_keys_takes_nothing_over(world: World, keys: MemoryKeyServer) -> None:
    identity, _ = forget(world, provider_too=True)
    adoption.adopt_found()
    keys.keys.clear()
    before = world.hypervisor.xml[world.uuid]
    other = provider("Wrong")
    asked = adoption.adopt_keys(cluster_id=other.pk, identity=identity, actor=world.actor)
    job = run(asked, adoption.run_adopt_keys)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "some_failed")
    assert not world.secrets and world.hypervisor.xml[world.uuid] == before
    assert_locked(world, LockCause.KEY_MISSING)


def test_a_key_that_is_gone_locks_it_and_unlock_finds_it_again(world: World, keys: MemoryKeyServer) -> None:
    forget(world)
    kept = dict(keys.keys)
    keys.keys.clear()
    adoption.adopt_found()
    assert_locked(world, LockCause.KEY_MISSING)
    assert len(world.secrets) == 3 and Key.objects.get().state == Key.State.MISSING
    assert start(world).error_code == "kms_key_not_found"
    keys.keys.update(kept)
    assert try_unlock(world).status == JobStatus.SUCCEEDED
    assert security(world).locked_at is None


def test_a_damaged_wrapped_key_does_not_unwrap(world: World) -> None:
    forget(world)
    xml = world.hypervisor.xml[world.uuid]
    head, tail = xml.split('purpose="nvram"', 1)
    begin = tail.index(">") + 1
    swapped = "B" if tail[begin] != "B" else "C"
    world.hypervisor.xml[world.uuid] = head + 'purpose="nvram"' + tail[:begin] + swapped + tail[begin + 1 :]
    adoption.adopt_found()
    assert_locked(world, LockCause.SECRET_DAMAGED, ["nvram"])


@pytest.mark.parametrize("element", ["<x:bad xmlns:x='{ns}'/>", "<x:protected-vm xmlns:x='{ns}' version='9'/>"])
def test_metadata_that_cannot_be_read(world: World, element: str) -> None:
    forget(world)
    xml = world.hypervisor.xml[world.uuid]
    told = set_metadata(xml, vm_metadata.NAMESPACE, element.format(ns=vm_metadata.NAMESPACE))
    world.hypervisor.xml[world.uuid] = told
    adoption.adopt_found()
    found = assert_locked(world, LockCause.SECRET_DAMAGED)
    assert "cannot be read" in found.lock_detail
    world.hypervisor.xml[world.uuid] = xml
    assert try_unlock(world).status == JobStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("element", "keeps_provider", "code"),
    [("<x:bad xmlns:x='{ns}'/>", True, "metadata_damaged"), (None, False, "key_provider_unknown")],
)
def test_unlock_from_the_page_tells_why_not(
    admin: Client, world: World, element: str | None, keeps_provider: bool, code: str
) -> None:
    forget(world, provider_too=not keeps_provider)
    if element is not None:
        told = element.format(ns=vm_metadata.NAMESPACE)
        world.hypervisor.xml[world.uuid] = set_metadata(world.hypervisor.xml[world.uuid], vm_metadata.NAMESPACE, told)
    adoption.adopt_found()
    assert refused(admin, world, reverse("encryption:vm-unlock", args=[world.vm.pk]), {}) == code


class TestWithoutMetadata:
    @pytest.fixture(autouse=True)
    def _bare(self, world: World) -> None:
        forget(world)
        xml = set_metadata(world.hypervisor.xml[world.uuid], vm_metadata.NAMESPACE, None)
        world.hypervisor.xml[world.uuid] = xml

    def test_locked_where_the_host_has_no_such_secrets(self, world: World) -> None:
        adoption.adopt_found()
        assert_locked(world, LockCause.KEY_MISSING_ON_HOST)
        assert start(world).error_code == "vm_locked"
        for secret in named(world):
            world.hypervisor.secrets[secret] = b"x"
        assert try_unlock(world).status == JobStatus.SUCCEEDED
        assert not VmSecurity.objects.exists()

    def test_somebody_elses_while_the_host_has_them(self, world: World) -> None:
        for secret in named(world):
            world.hypervisor.secrets[secret] = b"x"
        adoption.adopt_found()
        assert not VmSecurity.objects.exists() and not Event.objects.filter(kind="vm.locked").exists()
        assert start(world).status == JobStatus.SUCCEEDED

    def test_its_row_may_go(self, world: World) -> None:
        adoption.adopt_found()
        VirtualMachine.objects.update(is_present=False)
        virtual_machines.remove_from_inventory(vm_id=world.vm.pk, actor=world.actor)
        assert not VirtualMachine.objects.exists()


def named(world: World) -> list[UUID]:
    return list(adoption._secrets_of(world.hypervisor._facts(world.uuid)).values())


class TestCopies:
    """The definition of an encrypted VM, defined on another host too."""

    @pytest.fixture
    def other(self, world: World, cluster: object, site: object) -> FileHost:
        hypervisor = FileHost()
        uri = "qemu+tls://kvm-b/system"
        site.add(uri, hypervisor)  # type: ignore[attr-defined]
        self.host = Host.objects.create(cluster=world.host.cluster, name="kvm-b", uri=uri, state=Host.State.CONNECTED)
        return hypervisor

    def found(self, other: FileHost, xml: str) -> VirtualMachine:
        other.add_xml(xml)
        sync.sync_host(self.host, other)
        adoption.adopt_found()
        return VirtualMachine.objects.get(host=self.host)

    def test_the_same_secrets_are_never_taken(self, admin: Client, world: World, other: FileHost) -> None:
        before = list(WrappedSecret.objects.order_by("pk").values())
        copy = self.found(other, world.hypervisor.xml[world.uuid])
        found = VmSecurity.objects.get(virtual_machine=copy)
        assert found.lock_cause == LockCause.COPY and world.host.name in found.lock_detail
        assert refused(admin, world, reverse("encryption:vm-unlock", args=[copy.pk]), {}) == "vm_is_copy"
        assert list(WrappedSecret.objects.order_by("pk").values()) == before
        assert security(world).locked_at is None

    def test_the_same_wrapped_keys_under_other_secrets_need_somebody_to_ask(
        self, world: World, other: FileHost
    ) -> None:
        xml = world.hypervisor.xml[world.uuid].replace(str(world.uuid), str(uuid4()))
        for secret in named(world):
            xml = xml.replace(str(secret), str(uuid4()))
        copy = self.found(other, xml)
        assert VmSecurity.objects.get(virtual_machine=copy).lock_cause == LockCause.COPY
        job = run(unlock.unlock_vm(vm_id=copy.pk, actor=world.actor), unlock.run_unlock_vm)
        assert job.status == JobStatus.SUCCEEDED, job.message
        assert copy.wrapped_secrets.count() == 3 and len(world.secrets) == 3


def test_refused(world: World, charlie: User) -> None:
    identity, _ = forget(world, provider_too=True)
    adoption.adopt_found()
    other = provider("Other")
    for who in (charlie, AnonymousUser()):
        with pytest.raises(Refused):
            adoption.adopt_keys(cluster_id=other.pk, identity=identity, actor=who)
    with pytest.raises(Invalid) as refused:
        adoption.adopt_keys(cluster_id=other.pk, identity=uuid4(), actor=world.actor)
    assert refused.value.code == "identity_unknown"
    with pytest.raises(Conflict) as taken:
        key_providers.add_cluster(name="Twice", identity=other.pk, actor=world.actor)
    assert taken.value.code == "identity_taken"


def test_a_host_that_does_not_answer_waits(world: World) -> None:
    forget(world)
    world.hypervisor.is_reachable = False
    assert adoption.adopt_found() == 0
    assert not VmSecurity.objects.exists()
    keep_keyed_rows(VirtualMachine.objects.all())
    assert StoragePolicy.objects.count() == 2
