"""The driver against libvirt's own test driver: a simulated host, but libvirt's real API, XML and events."""

import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import libvirt
import pytest

from inventory.adapters import libvirt_connections, libvirt_errors
from inventory.adapters.libvirt_driver import LibvirtHost, connect
from inventory.engine.hypervisor import (
    BadUri,
    Change,
    DomainMissing,
    HostUnreachable,
    Hypervisor,
    HypervisorError,
    OperationRefused,
    Power,
    SecretMissing,
    WrongKey,
)
from tests.benchmarks.domains import simulated_host, vm_uuid


@pytest.fixture
def host(tmp_path: Path) -> Iterator[LibvirtHost]:
    (tmp_path / "host.xml").write_text(simulated_host(8))
    with connect(f"test://{tmp_path}/host.xml", allow_test=True) as opened:
        yield opened
    libvirt_connections.forget_shared()


def test_it_is_a_hypervisor(host: LibvirtHost) -> None:
    port: Hypervisor = host  # mypy compares all signatures
    assert port.facts().cpu_count == 64


def test_facts_and_datastores(host: LibvirtHost) -> None:
    facts = host.facts()
    assert (facts.hypervisor, facts.cpu_model, facts.host_uuid) == ("TEST", "EPYC", None)
    assert facts.memory_bytes == 512 * 2**30
    (store,) = host.datastores()
    assert (store.name, store.kind, store.path, store.is_active) == ("default", "dir", "/vms", True)


def test_virtual_machines(host: LibvirtHost) -> None:
    found = {facts.name: facts for facts in host.virtual_machines()}
    assert len(found) == 8
    four = found["vm-00004"]
    assert (four.uuid, four.power, four.firmware, four.is_persistent) == (vm_uuid(4), Power.OFF, "uefi", True)
    assert [disk.is_encrypted for disk in four.disks] == [True, True]
    assert four.tpm is not None
    assert four.tpm.is_encrypted
    assert found["vm-00005"].power is Power.ON
    assert found["vm-00003"].firmware == "bios"
    assert host.virtual_machine(vm_uuid(4)) == four


def test_sizes_of_stopped_disks_are_not_asked_for_twice(host: LibvirtHost) -> None:
    first = host.virtual_machine(vm_uuid(4))
    assert first.disks[0].capacity_bytes > 0
    again = {facts.name: facts for facts in host.virtual_machines({first.definition_sha256})}
    assert again["vm-00004"].disks[0].capacity_bytes == 0


def test_power_and_its_events(host: LibvirtHost) -> None:
    changes = host.changes(idle_seconds=5)
    assert next(changes).change is Change.IDLE
    host.power_on(vm_uuid(0))
    change = next(changes)
    assert (change.change, change.vm_uuid) == (Change.VM, vm_uuid(0))
    assert host.virtual_machine(vm_uuid(0)).power is Power.ON
    changes.close()
    with pytest.raises(OperationRefused) as caught:
        host.power_on(vm_uuid(0))
    assert caught.value.code in {"wrong_state", "host_refused"}
    host.power_off(vm_uuid(0))
    assert host.virtual_machine(vm_uuid(0)).power is Power.OFF


def test_redefine(host: LibvirtHost) -> None:
    before = host.virtual_machine(vm_uuid(0)).definition_sha256
    host.redefine(vm_uuid(0), lambda xml: xml.replace("<vcpu placement='static'>1<", "<vcpu placement='static'>3<"))
    after = host.virtual_machine(vm_uuid(0))
    assert (after.vcpus, after.definition_sha256 != before) == (3, True)
    assert host.live_definition(vm_uuid(0)) is None
    assert "vm-00001" in (host.live_definition(vm_uuid(1)) or "")


def test_what_is_missing(host: LibvirtHost) -> None:
    with pytest.raises(DomainMissing):
        host.virtual_machine(uuid4())
    with pytest.raises(OperationRefused) as caught:
        host.console_text(vm_uuid(1), 100)
    assert caught.value.code == "console_not_kept"
    with pytest.raises(OperationRefused) as unsupported:
        host.put_secret(uuid4(), usage="/x", vtpm=False, value=b"never-shown")
    assert unsupported.value.code == "not_supported"
    assert "never-shown" not in str(unsupported.value)


def test_connections_are_shared_by_threads_on_the_test_driver(host: LibvirtHost, tmp_path: Path) -> None:
    seen: list[Power] = []

    def look() -> None:
        with connect(f"test://{tmp_path}/host.xml", allow_test=True) as other:
            seen.append(other.virtual_machine(vm_uuid(0)).power)

    host.power_on(vm_uuid(0))
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [Power.ON]


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("qemu:///session?socket=/nonexistent/libvirt-sock", "socket_missing"),
        ("qemu+tls://127.0.0.1:1/system?pkipath=/nonexistent", "tls_certificate"),
    ],
)
def test_no_connection(uri: str, code: str) -> None:
    with pytest.raises(HostUnreachable) as caught, connect(uri):
        pass
    assert (caught.value.code, bool(caught.value.hint)) == (code, True)


def test_the_test_driver_is_not_for_everybody(tmp_path: Path) -> None:
    with pytest.raises(BadUri), connect(f"test://{tmp_path}/host.xml"):
        pass


def error(code: int, text: str) -> libvirt.libvirtError:
    made = libvirt.libvirtError(text)
    made.err = (code, libvirt.VIR_FROM_QEMU, text, libvirt.VIR_ERR_ERROR, None, None, None, -1, -1)
    return made


@pytest.mark.parametrize(
    ("number", "text", "kind", "code"),
    [
        (66, "Secret not found: secret 'u' does not have a value", SecretMissing, "secret_missing"),
        (66, "no secret with matching uuid 'u'", SecretMissing, "secret_missing"),
        (1, "qemu unexpectedly closed the monitor: {...}: Invalid password, cannot unlock any keyslot", WrongKey,
         "wrong_disk_key"),
        (1, "internal error: qemu unexpectedly closed the monitor: tpm-emulator: TPM result for CMD_INIT: 0x101 "
         "operation failed", WrongKey, "vtpm_key_mismatch"),
        (42, "Domain not found", DomainMissing, "vm_missing"),
        (1, "internal error: client socket is closed", HostUnreachable, "host_lost"),
        (38, "End of file while reading data: Input/output error", HostUnreachable, "host_lost"),
        (55, "Requested operation is not valid: domain is already running", OperationRefused, "wrong_state"),
        (3, "this function is not supported", OperationRefused, "not_supported"),
        (83, "block copy still active: not ready for pivot yet", OperationRefused, "host_refused"),
    ],
)  # fmt: skip
def test_errors_are_named(number: int, text: str, kind: type[HypervisorError], code: str) -> None:
    told = libvirt_errors.operating(error(number, text), "kvm-a", "VM x")
    assert (type(told), told.code) == (kind, code)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("authentication failed: Failed to verify peer's certificate", "tls_untrusted"),
        ("Certificate does not match the hostname kvm", "tls_name_mismatch"),
        ("unable to connect to server at 'kvm:16514': Connection refused", "connection_refused"),
        ("unable to connect to server at 'kvm:16514': No route to host", "no_route"),
        ("Cannot recv data: Host key verification failed.: Connection reset by peer", "ssh_host_key_unknown"),
        ("Cannot recv data: root@kvm: Permission denied (publickey).: Connection reset", "ssh_denied"),
        ("Failed to connect socket to '/run/libvirt/libvirt-sock': Permission denied", "permission_denied"),
        ("unable to connect to server at 'kvm:16514': Connection timed out", "host_timeout"),
        ("something new", "host_unreachable"),
    ],
)
def test_reasons_for_no_connection(text: str, code: str) -> None:
    told = libvirt_errors.connecting(error(38, text), "kvm")
    assert (told.code, bool(told.hint)) == (code, True)


def test_texts_are_cut() -> None:
    told = libvirt_errors.operating(error(1, "first " + "x" * 900 + "\n<graphics passwd='hunter2'/>"), "h", "VM")
    assert "hunter2" not in told.message
    assert len(told.message) < 400


def test_what_libvirt_keeps_beside_the_xml(host: LibvirtHost) -> None:
    plain = host.virtual_machine(vm_uuid(5))
    assert not plain.is_autostarted and not plain.has_managed_save
    assert (plain.snapshot_count, plain.memory_snapshot_count) == (0, 0)
    domain = host._connection.lookupByUUIDString(str(vm_uuid(5)))
    domain.setAutostart(1)
    domain.snapshotCreateXML("<domainsnapshot><name>running</name></domainsnapshot>", 0)
    domain.managedSave(0)
    domain.snapshotCreateXML("<domainsnapshot><name>off</name></domainsnapshot>", 0)
    found = host.virtual_machine(vm_uuid(5))
    assert found.is_autostarted and found.has_managed_save
    assert (found.snapshot_count, found.memory_snapshot_count) == (2, 1)
    listed = {facts.uuid: facts for facts in host.virtual_machines()}
    assert listed[vm_uuid(5)] == found
    assert not listed[vm_uuid(4)].is_autostarted and listed[vm_uuid(4)].snapshot_count == 0
    assert found.definition_sha256 == plain.definition_sha256, "none of it is part of the definition"
