"""Many VMs in one job, with two real key servers that replicate: the first is lost within a batch."""

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from encryption.adapters.kmip_client import KmipClient
from encryption.engine.key_server import KmsError
from encryption.models import KmsServer, VmSecurity
from encryption.services import recrypt, recrypt_many
from encryption.services.key_access import KeySession
from encryption.services.release import open_secrets
from inventory.models import Cluster, Event, Host, JobStatus
from lab.kms import KmsLayout
from tests.encryption.adapters.conftest import RunningKms, serving
from tests.encryption.file_host import FileHost
from tests.encryption.many_vms import any_job, encrypted_vm
from tests.encryption.services.real_kms import connected, run
from tests.fakes import FakeSite

pytestmark = [pytest.mark.django_db, pytest.mark.slow]


def test_a_server_that_dies_with_a_batch_half_made_loses_no_key(
    kms_layout: KmsLayout,
    kms_server: RunningKms,
    cluster: Cluster,
    site: FakeSite,
    alice: User,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hypervisor = FileHost()
    host = Host.objects.create(
        cluster=cluster, name="a", uri="qemu+tls://a/system", state=Host.State.CONNECTED, last_seen_at=timezone.now()
    )
    site.add(host.uri, hypervisor)
    with serving(kms_layout, "first") as first:
        provider = connected(alice, first, kms_server)
        with KeySession(provider) as session:
            vms = [
                encrypted_vm(host, hypervisor, session, any_job(provider), f"vm-{number:02}") for number in range(23)
            ]
            before = {vm.pk: vm.security.key_id for vm in vms}
            activate_keys, batches = KmipClient.activate_keys, 0

            def dying(client: KmipClient, key_ids: list[str]) -> tuple[KmsError | None, ...]:
                nonlocal batches
                batches += 1
                if batches == 2:  # the last three, asked for ahead
                    first.process.kill()
                    first.process.wait()
                return activate_keys(client, key_ids)

            monkeypatch.setattr(KmipClient, "activate_keys", dying)
            job = run(recrypt.recrypt_provider(cluster_id=provider.pk, actor=alice), recrypt_many.run_recrypt_vms)
            assert job.status == JobStatus.SUCCEEDED, job.message
            names = [f"bartizan/{vm.uuid}/{job.pk}" for vm in vms]
            with kms_server.client() as client:
                made = {name: client.locate(name=name) for name in names}
        after = {row.virtual_machine_id: row.key for row in VmSecurity.objects.select_related("key")}
        for vm, name in zip(vms, names, strict=True):
            key = after[vm.pk]
            assert key is not None and key.pk != before[vm.pk]
            assert made[name] == (key.key_id,), "made once, under the name of its VM"
            assert len(open_secrets(vm.wrapped_secrets.select_related("key__cluster", "virtual_machine"))) == 2
    states = dict(KmsServer.objects.values_list("port", "state"))
    assert states == {first.port: "unreachable", kms_server.port: "connected"}
    assert not Event.objects.filter(kind="key.unused").exists()
