"""A rebuilt console at a real key server: with the old identity it is the same client there, by its certificate's name.

NOT shown: that another name is refused; the lab's key server gives a key to every client that it trusts.
"""

from uuid import UUID

import pytest
from django.contrib.auth.models import User

from encryption.models import Key, KmsCluster
from encryption.services import certificates, client_keys, key_providers
from encryption.services.key_access import fetched_key, make_key
from inventory import jobs
from inventory.models import Cluster, Job
from lab import kms
from tests.encryption.adapters.conftest import RunningKms
from tests.encryption.services.real_kms import connected, run, some_vm

pytestmark = pytest.mark.django_db


def rebuilt(actor: User, server: RunningKms, identity: UUID) -> KmsCluster:
    made = key_providers.add_provider(
        name="Rebuilt", host="127.0.0.1", port=server.port, identity=identity, actor=actor
    )
    key_providers.trust_server(cluster_id=made.pk, certificate_pem=server.ca_pem.decode(), actor=actor)
    run(key_providers.request_client_key(cluster_id=made.pk, actor=actor), client_keys.create_client_key)
    made.refresh_from_db()
    signed = kms.sign_client_csr(server.layout, made.client_csr_pem.encode())
    return key_providers.install_client_certificate(cluster_id=made.pk, certificate_pem=signed.decode(), actor=actor)


def test_keys_of_the_earlier_console(alice: User, cluster: Cluster, kms_server: RunningKms) -> None:
    owner = connected(alice, kms_server)
    vm, identity = some_vm(cluster), owner.pk
    job = jobs.start(key_providers.CHECK, target=owner, actor=alice)
    key = make_key(owner, vm, name=f"bartizan/{vm.uuid}/{job.pk}", job=job)
    with fetched_key(key) as kek:
        before = kek.reveal()
    key_id = key.key_id
    Job.objects.all().delete()
    Key.objects.all().delete()
    owner.delete()

    made = rebuilt(alice, kms_server, identity)
    assert f"Bartizan {identity}" in certificates.describe(made.client_certificate_pem)[0].subject
    known = Key.objects.create(cluster=made, key_id=key_id)
    with fetched_key(known) as kek:
        assert kek.reveal() == before
