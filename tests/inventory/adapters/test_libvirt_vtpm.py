"""A vTPM on a real libvirt daemon: state encrypted from the first byte, and a key that does not fit it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from encryption.engine import vtpm_state
from inventory.adapters.libvirt_driver import LibvirtHost, connect
from inventory.engine.domain_edit import set_tpm_secret
from inventory.engine.domain_tpm import add_tpm, remove_tpm
from inventory.engine.hypervisor import Power, SecretMissing, WrongKey
from tests.inventory.adapters.daemon import session_daemon

pytestmark = pytest.mark.slow

# Nothing to boot from: that its firmware looks for a disk is enough.
DOMAIN = (
    "<domain type='qemu'><name>vtpm</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
    "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><controller type='usb' model='none'/>"
    "<video><model type='none'/></video><memballoon model='none'/></devices></domain>"
)


@dataclass(frozen=True)
class Vm:
    host: LibvirtHost
    states: Path
    uuid: UUID
    secret_uuid: UUID

    @property
    def state(self) -> Path:
        found = self.states.rglob(f"swtpm/{self.uuid}/tpm2/tpm2-00.permall")
        return next(found)

    def start(self, key: bytes) -> None:
        """As the console does: the key goes there before, and is taken back after, good or bad."""
        self.host.put_secret(self.secret_uuid, usage=f"vtpm-{self.uuid}", vtpm=True, value=key)
        try:
            self.host.power_on(self.uuid)
        finally:
            self.host.remove_secret(self.secret_uuid)

    def stop(self) -> None:
        self.host.power_off(self.uuid)


@pytest.fixture
def vm() -> Iterator[Vm]:
    with session_daemon() as (uri, files), connect(uri) as host:
        made = Vm(host, files.parent, uuid4(), uuid4())
        host.define(DOMAIN.format(uuid=made.uuid))
        yield made


def test_from_the_first_start_on(vm: Vm) -> None:
    vm.host.redefine(vm.uuid, lambda xml: set_tpm_secret(add_tpm(xml), vm.secret_uuid))
    tpm = vm.host.virtual_machine(vm.uuid).tpm
    assert tpm is not None and (tpm.model, tpm.version, tpm.secret_uuid) == ("tpm-crb", "2.0", vm.secret_uuid)
    with pytest.raises(SecretMissing):
        vm.host.power_on(vm.uuid)

    vm.start(b"1" * 64)
    assert vm.host.virtual_machine(vm.uuid).power is Power.ON and not vm.host.has_secret(vm.secret_uuid)
    vm.stop()
    before = vm.state.read_bytes()
    header = vtpm_state.parse(before, file_bytes=len(before))
    assert header.encrypted and header.key_bits == 256

    with pytest.raises(WrongKey) as caught:
        vm.start(b"2" * 64)
    assert caught.value.code == "vtpm_key_mismatch" and "vTPM key does not fit the state" in caught.value.message
    assert vm.state.read_bytes() == before and vm.host.virtual_machine(vm.uuid).power is Power.OFF
    vm.host.redefine(vm.uuid, lambda xml: set_tpm_secret(xml, None))
    with pytest.raises(WrongKey):
        vm.host.power_on(vm.uuid)
    vm.host.redefine(vm.uuid, lambda xml: set_tpm_secret(xml, vm.secret_uuid))

    vm.start(b"1" * 64)
    vm.stop()
    vm.host.redefine(vm.uuid, remove_tpm)
    assert vm.host.virtual_machine(vm.uuid).tpm is None
    vm.host.power_on(vm.uuid)
    vm.stop()
