"""Key providers with real key servers behind them, and the worker's jobs run at once."""

from collections.abc import Callable
from uuid import uuid4

from django.contrib.auth.models import User

from encryption.models import KmsCluster
from encryption.services import client_keys, key_providers
from inventory import jobs
from inventory.jobs import Progress
from inventory.models import Cluster, Host, Job, VirtualMachine
from lab import kms
from tests.encryption.adapters.conftest import RunningKms


def run(job: Job, work: Callable[[Job, Progress], None]) -> Job:
    jobs.run(str(job.pk), work)
    job.refresh_from_db()
    return job


def bare(actor: User, *servers: RunningKms, name: str = "Real") -> KmsCluster:
    """Servers with the right CA trusted, and no client identity yet."""
    made = key_providers.add_provider(name=name, host="127.0.0.1", port=servers[0].port, actor=actor)
    for server in servers[1:]:
        key_providers.add_server(cluster_id=made.pk, host="127.0.0.1", port=server.port, actor=actor)
    return key_providers.trust_server(cluster_id=made.pk, certificate_pem=servers[0].ca_pem.decode(), actor=actor)


def connected(actor: User, *servers: RunningKms, name: str = "Real") -> KmsCluster:
    """With a client certificate that the KMS administrator signed."""
    made = bare(actor, *servers, name=name)
    run(key_providers.request_client_key(cluster_id=made.pk, actor=actor), client_keys.create_client_key)
    made.refresh_from_db()
    signed = kms.sign_client_csr(servers[0].layout, made.client_csr_pem.encode())
    return key_providers.install_client_certificate(cluster_id=made.pk, certificate_pem=signed.decode(), actor=actor)


def some_vm(place: Cluster, name: str = "app") -> VirtualMachine:
    host = Host.objects.create(cluster=place, name=f"host {uuid4()}", uri="qemu:///system")
    return VirtualMachine.objects.create(host=host, uuid=uuid4(), name=name)
