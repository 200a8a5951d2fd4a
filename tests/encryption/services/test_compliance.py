"""Compliance on real files: what a change leaves is compliant, every drift is an alarm with evidence until repaired."""

import struct
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from lxml import etree

from encryption.models import Compliance
from encryption.services import compliance
from inventory.alarms import raise_alarm
from inventory.engine.domain_xml import parse_document, serialize
from inventory.engine.hypervisor import OperationRefused
from inventory.models import Alarm, Event, Host, Job, JobStatus, VirtualMachine
from inventory.services import sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.real_kms import run
from tests.encryption.world import World, content

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("quick_tpm", "sent")]


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    made = make_world()
    made.succeed(made.wish("vda"))
    return made


def edit(world: World, change: Callable[[etree._Element], None]) -> None:
    """As somebody with virsh does."""
    root = parse_document(world.hypervisor.xml[world.uuid])
    change(root)
    world.hypervisor.xml[world.uuid] = serialize(root)
    world.hypervisor.change(world.uuid, memory_bytes=world.hypervisor.vms[world.uuid].memory_bytes + 1)
    sync.refresh_virtual_machine(world.vm, world.hypervisor)


def disk(root: etree._Element, target: str) -> etree._Element:
    return next(one for one in root.iterfind("devices/disk") if one.find("target").get("dev") == target)  # type: ignore[union-attr]


def look(world: World) -> Compliance:
    job = run(compliance.check_vm(vm_id=world.vm.pk, actor=world.actor), compliance.run_check)
    assert job.status == JobStatus.SUCCEEDED, job.message
    return Compliance.objects.get(virtual_machine=world.vm)


def codes(found: Compliance) -> list[tuple[str, str]]:
    return [(one["code"], one["part"]) for one in found.findings]


def live() -> list[Alarm]:
    return list(Alarm.objects.filter(kind="vm.noncompliant", cleared_at=None))


def test_what_a_change_leaves_is_compliant_and_said_so_at_once(world: World) -> None:
    found = Compliance.objects.get(virtual_machine=world.vm)
    assert (found.state, found.findings, live()) == ("compliant", [], [])
    told = {one["part"]: (one["state"], one["evidence"]) for one in found.observations}
    assert {part: state for part, (state, _) in told.items()} == {
        "nvram": "encrypted", "vtpm": "encrypted", "vda": "encrypted", "vdb": "plain",
    }  # fmt: skip
    assert "aes-xts-plain64" in told["vda"][1] and "256-bit key" in told["vtpm"][1]
    assert not Event.objects.filter(kind="vm.compliance_changed").exists()


def test_a_saved_state_is_one_alarm(world: World) -> None:
    world.hypervisor.change(world.uuid, has_managed_save=True)
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    assert codes(look(world)) == [("managed_save_present", "vm")]
    assert [alarm.kind for alarm in Alarm.objects.filter(cleared_at=None)] == ["vm.memory_in_clear"]


def test_a_plain_vm_has_nothing_to_comply_with(world: World) -> None:
    raise_alarm("vm.noncompliant", "odd", target=world.vm)
    world.succeed(world.nothing())
    assert not Compliance.objects.exists() and live() == []


def _drop_encryption(root: etree._Element) -> None:
    source = disk(root, "vda").find("source")
    assert source is not None
    source.remove(source[0])


def _add_disk(world: World, root: etree._Element) -> None:
    path = world.folder / "extra.raw"
    path.write_bytes(content("extra", 4096))
    added = etree.fromstring(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>"
        "<target dev='vdz' bus='virtio'/></disk>"
    )
    devices = root.find("devices")
    assert devices is not None
    devices.append(added)


def _foreign_secret(root: etree._Element) -> None:
    secret = disk(root, "vda").find("source/encryption/secret")
    assert secret is not None
    secret.set("uuid", "11111111-2222-3333-4444-555555555555")


def _drop_metadata(root: etree._Element) -> None:
    element = root.find("metadata")
    assert element is not None
    root.remove(element)


def _dump_core(root: etree._Element) -> None:
    memory = root.find("memory")
    assert memory is not None
    memory.set("dumpCore", "on")


def _drop_tpm_secret(root: etree._Element) -> None:
    backend = root.find("devices/tpm/backend")
    assert backend is not None
    backend.remove(backend[0])


@pytest.mark.parametrize(
    ("drift", "expected"),
    [
        (_drop_encryption, ("definition_differs", "vda")),
        (None, ("disk_plain_unknown", "vdz")),
        (_foreign_secret, ("secret_unknown", "vda")),
        (_drop_metadata, ("metadata_differs", "vm")),
        (_dump_core, ("dump_core_on", "vm")),
        (_drop_tpm_secret, ("definition_differs", "vtpm")),
    ],
)
def test_a_definition_changed_outside_is_an_alarm_until_it_is_back(
    world: World, drift: Callable[[etree._Element], None] | None, expected: tuple[str, str]
) -> None:
    before = world.hypervisor.xml[world.uuid]
    edit(world, drift or (lambda root: _add_disk(world, root)))
    found = look(world)
    assert (found.state, codes(found)) == ("noncompliant", [expected])
    (alarm,) = live()
    assert alarm.evidence[0].startswith(f"{expected[0]}: ") and alarm.remedy and alarm.severity == "error"
    events = Event.objects.filter(kind="vm.compliance_changed")
    look(world)
    assert events.count() == 1, "a second sighting is no news"
    world.hypervisor.xml[world.uuid] = before
    world.hypervisor.change(world.uuid, memory_bytes=1)
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    assert look(world).state == "compliant" and live() == []
    assert list(events.order_by("id").values_list("severity", flat=True)) == ["warning", "info"]


def test_files_replaced_outside_are_seen_in_their_headers(world: World) -> None:
    row = world.secrets["vda"]
    path, state = Path(row.path), world.tpm_folder / "tpm2-00.permall"
    kept, kept_state = path.read_bytes(), state.read_bytes()
    path.write_bytes(content("plain", len(kept)))
    state.write_bytes(kept_state[:4] + struct.pack(">H", 0) + kept_state[6:])
    found = look(world)
    assert codes(found) == [("vtpm_plain", "vtpm"), ("header_missing", "vda")]
    assert str(path) in live()[0].evidence[1] and "no LUKS header" in live()[0].evidence[1]
    path.write_bytes(kept[:208] + struct.pack(">I", 0xDEAD) + kept[212:])
    state.write_bytes(kept_state)
    assert codes(look(world)) == [("header_weak", "vda")]
    path.write_bytes(kept)
    assert look(world).state == "compliant" and live() == []


def test_what_cannot_be_read_is_not_known_and_leaves_the_alarm_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(world.secrets["vda"].path)
    kept = path.read_bytes()
    path.write_bytes(b"x" * len(kept))
    assert look(world).state == "noncompliant"
    path.unlink()
    found = look(world)
    assert (found.state, codes(found)) == ("unknown", [("file_missing", "vda")])
    assert len(live()) == 1, "not known is not over"
    path.write_bytes(kept)
    monkeypatch.setattr("encryption.services.observation.reaches_files", lambda host: False)
    world.hypervisor.failures["read_file"] = OperationRefused("host_refused", "permission denied")
    found = look(world)
    assert found.state == "unknown" and set(codes(found)) == {
        (code, part) for code in ["not_readable"] for part in ("nvram", "vtpm", "vda", "vdb")
    }
    assert "permission denied" in found.findings[0]["evidence"]


def test_through_libvirt_where_no_worker_reaches_the_files(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encryption.services.observation.reaches_files", lambda host: False)
    asked: list[tuple[str, int]] = []

    def read_file(path: str, *, offset: int, length: int) -> bytes:
        asked.append((path, length))
        return Path(path).read_bytes()[offset : offset + length]

    monkeypatch.setattr(world.hypervisor, "read_file", read_file)
    assert look(world).state == "compliant"
    assert len(asked) == 4 and max(length for _, length in asked) == 592, "headers only"


def test_a_host_that_does_not_answer(world: World) -> None:
    world.hypervisor.is_reachable = False
    job = run(compliance.check_vm(vm_id=world.vm.pk, actor=world.actor), compliance.run_check)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "connection_refused")
    found = Compliance.objects.get()
    assert (found.state, codes(found)) == ("unknown", [("not_observed", "vm")])
    assert compliance.check_of_host(str(world.host.pk)) == 1
    job = run(compliance.check_host(host_id=world.host.pk, actor=world.actor), compliance.run_check)
    assert job.status == JobStatus.SUCCEEDED
    event = Event.objects.get(kind="compliance.checked")
    assert (event.data["unknown"], event.data["compliant"]) == (1, 0)


def test_a_host_that_is_lost_in_the_middle_leaves_no_answer_behind_that_is_not_true(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    world.succeed(world.wish("vda"))
    monkeypatch.setattr("encryption.services.observation.reaches_files", lambda host: False)

    def read_file(path: str, *, offset: int, length: int) -> bytes:
        world.hypervisor.is_reachable = False
        world.hypervisor._ask("read_file")
        return b""

    monkeypatch.setattr(world.hypervisor, "read_file", read_file)
    assert compliance.check_of_host(str(world.host.pk)) == 1
    assert Compliance.objects.get().state == "unknown"


def test_a_vm_that_its_host_no_longer_has_is_not_known(world: World) -> None:
    del world.hypervisor.vms[world.uuid]
    found = look(world)
    assert (found.state, codes(found)) == ("unknown", [("not_observed", "vm")])


def test_what_was_seen_of_a_vm_that_is_gone_does_not_stand(world: World) -> None:
    del world.hypervisor.vms[world.uuid]
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    found = Compliance.objects.get()
    assert (found.state, codes(found)) == ("unknown", [("not_observed", "vm")])


def test_a_busy_vm_is_left_to_its_job(world: World) -> None:
    Compliance.objects.all().delete()
    job = world.ask(world.nothing())
    assert compliance.check_of_host(str(world.host.pk)) == 0
    assert not Compliance.objects.exists()
    Job.objects.filter(pk=job.pk).update(status=JobStatus.CANCELLED)
    assert compliance.check_of_host(str(world.host.pk)) == 1


def test_sync_asks_for_a_look_at_what_has_changed(
    world: World, sent: list[tuple[str, list[str], str]], django_capture_on_commit_callbacks: object
) -> None:
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]
        edit(world, _dump_core)
    assert ("encryption.check_compliance_of_changed", [str(world.host.pk)]) in [one[:2] for one in sent]
    assert compliance.check_of_changed(str(world.host.pk)) == 1
    assert Compliance.objects.get().state == "noncompliant"
    assert compliance.check_of_changed(str(world.host.pk)) == 0


def test_the_schedule_asks_once_for_each_host_with_protected_vms(
    world: World, sent: list[tuple[str, list[str], str]]
) -> None:
    Host.objects.create(cluster=world.host.cluster, name="bare", uri="qemu+tls://bare/system")
    sent.clear()
    assert compliance.check_all() == 1
    assert sent == [("encryption.check_compliance_of_host", [str(world.host.pk)], "attestation")]
    compliance.after_reconnect(world.host, world.hypervisor)
    assert len(sent) == 2


def test_many_vms_are_read_in_a_fixed_number_of_queries(world: World) -> None:
    """The rows of the expectation; what is written grows with the number of VMs, as it must."""

    def reading() -> int:
        with CaptureQueriesContext(connection) as queries:
            for vm in compliance._protected():
                compliance._expectation(vm)
        return len(queries)

    few = reading()
    for number in range(20):
        other = VirtualMachine.objects.get(pk=world.vm.pk)
        security = other.security
        other.pk, other.uuid, other.name = uuid4(), uuid4(), f"vm {number}"
        other._state.adding = True
        other.save()
        security.pk, security.virtual_machine = None, other
        security.save()
    assert reading() == few
