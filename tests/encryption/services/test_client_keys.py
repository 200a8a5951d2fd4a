"""Ways to a client identity at a real key server; renewal without a moment in which none is usable."""

import base64
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from django.apps import apps
from django.contrib.auth.models import User
from pytest_django.fixtures import Settings

from encryption.adapters.kmip_client import KmipClient
from encryption.engine import transport
from encryption.engine.key_server import NotPermitted
from encryption.engine.secret import Secret
from encryption.models import ClientKeyUpload, KmsCluster, KmsServer, Purpose, TransportKey, WrappedSecret
from encryption.services import certificates, client_keys, key_access, key_providers, key_trust, kms_health
from inventory.models import Cluster, Event, Job, JobStatus
from lab import kms
from lab.pki import Authority, Issued
from tests.encryption.adapters.conftest import RunningKms, other_ca
from tests.encryption.services.real_kms import bare, connected, run, some_vm

__all__ = ["other_ca"]
pytestmark = pytest.mark.django_db


def made(cluster: KmsCluster, method: str, actor: User) -> KmsCluster:
    job = key_trust.request_client_certificate(cluster_id=cluster.pk, method=method, actor=actor)
    assert run(job, client_keys.issue_client_certificate).status == JobStatus.SUCCEEDED
    return KmsCluster.objects.get(pk=cluster.pk)


def used(cluster: KmsCluster, actor: User) -> Job:
    return run(key_trust.use_client_certificate(cluster_id=cluster.pk, actor=actor), client_keys.use_client_certificate)


def uploaded(cluster: KmsCluster, issued: Issued, actor: User) -> Job:
    return key_trust.upload_client_key(
        cluster_id=cluster.pk, certificate_pem=issued.certificate_pem.decode(),
        private_key_pem=issued.key_pem.decode(), actor=actor,
    )  # fmt: skip


def state_of(cluster: KmsCluster) -> tuple[str, str]:
    kms_health.check_cluster(str(cluster.pk))
    server = KmsServer.objects.get(cluster=cluster)
    return server.state, server.state_code


def dump() -> str:
    """Every row of every table, in the writings that bytes could have."""
    found: list[str] = []
    for model in apps.get_models():
        for row in model._default_manager.values():
            for value in row.values():
                raw = bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                found += [raw.decode("latin-1"), raw.hex(), base64.b64encode(raw).decode()]
    return "\n".join(found)


def test_our_ca_is_trusted_once_and_renews_without_a_gap(alice: User, kms_server: RunningKms) -> None:
    provider = made(bare(alice, kms_server), "console_ca", alice)
    assert state_of(provider) == ("untrusted", "kms_client_ca_unknown")
    ca = key_trust.download(cluster_id=provider.pk, what="console-ca", actor=alice)
    kms.trust_client(kms_server.layout, f"ca-{provider.pk}", ca.encode())
    assert state_of(provider) == ("connected", "")
    first = provider.client_certificate_pem
    renewed = made(provider, "console_ca", alice)
    assert (renewed.client_certificate_pem, renewed.client_ca_pem) == (first, ca)
    assert renewed.client_certificate_next_pem not in ("", first)
    assert state_of(provider) == ("connected", "")  # the one in use stays
    assert used(provider, alice).status == JobStatus.SUCCEEDED
    now = KmsCluster.objects.get()
    assert now.client_certificate_pem == renewed.client_certificate_next_pem
    assert (now.client_certificate_next_pem, bytes(now.client_key_next_sealed)) == ("", b"")
    assert state_of(provider) == ("connected", "")
    assert Event.objects.filter(kind="kms.client_certificate_installed").count() == 2


def test_the_ca_issues_clients_only(alice: User, kms_server: RunningKms) -> None:
    provider = made(bare(alice, kms_server), "console_ca", alice)
    ca, leaf = (x509.load_pem_x509_certificate(pem.encode()) for pem in
                (provider.client_ca_pem, provider.client_certificate_pem))  # fmt: skip
    leaf.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_a_self_signed_one_is_not_used_before_the_server_trusts_it(alice: User, kms_server: RunningKms) -> None:
    provider = connected(alice, kms_server)
    before = provider.client_certificate_pem
    staged = made(provider, "self_signed", alice)
    refused = used(provider, alice)
    assert (refused.status, refused.error_code) == (JobStatus.FAILED, "kms_client_ca_unknown")
    assert KmsCluster.objects.get().client_certificate_pem == before
    assert state_of(provider) == ("connected", "")
    pem = key_trust.download(cluster_id=provider.pk, what="next-client-certificate", actor=alice)
    assert pem == staged.client_certificate_next_pem
    kms.trust_client(kms_server.layout, f"self-{provider.pk}", pem.encode())
    assert used(provider, alice).status == JobStatus.SUCCEEDED
    assert KmsCluster.objects.get().client_certificate_pem == pem
    assert state_of(provider) == ("connected", "")


def test_one_that_loses_the_keys_in_use_is_not_put_into_use(
    alice: User, kms_server: RunningKms, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lab's key server lets every console read; many give a key to its owner only."""
    provider, vm = connected(alice, kms_server), some_vm(cluster)
    job = key_providers.check(cluster_id=provider.pk, actor=alice)
    key = key_access.make_key(provider, vm, name=f"bartizan/{provider.pk}", job=job)
    run(job, kms_health.check_key_provider)
    WrappedSecret.objects.create(virtual_machine=vm, purpose=Purpose.NVRAM, key=key, wrapped=b"x", path="/x")

    def strict(client: KmipClient, key_id: str) -> Secret:
        raise NotPermitted(client.address, "get", key_id)

    client_keys.ensure_transport_key()
    other = kms.issue_client(kms_server.layout, "somebody else")
    assert run(uploaded(provider, other, alice), client_keys.take_client_key).status == JobStatus.SUCCEEDED
    with monkeypatch.context() as patch:
        patch.setattr(KmipClient, "get_key", strict)
        refused = used(provider, alice)
    assert (refused.status, refused.error_code) == (JobStatus.FAILED, "kms_not_permitted")
    with key_access.fetched_key(key):
        assert KmsCluster.objects.get().client_certificate_pem == provider.client_certificate_pem
    assert used(provider, alice).status == JobStatus.SUCCEEDED


def test_an_uploaded_key_is_nowhere_in_clear(
    alice: User, kms_server: RunningKms, sent: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    provider = bare(alice, kms_server)
    client_keys.ensure_transport_key()
    issued = kms.issue_client(kms_server.layout, "uploaded")
    private = serialization.load_pem_private_key(issued.key_pem, None)
    der = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    scalar = private.private_numbers().private_value.to_bytes(32, "big")  # type: ignore[union-attr]
    body = "".join(issued.key_pem.decode().splitlines()[1:-1])
    traces = (scalar.hex(), scalar.decode("latin-1"), der.hex(), body[:60], body[-40:], "BEGIN PRIVATE KEY")

    job = uploaded(provider, issued, alice)
    waiting = dump()
    assert ClientKeyUpload.objects.exists() and not any(one in waiting for one in traces)
    assert run(job, client_keys.take_client_key).status == JobStatus.SUCCEEDED
    assert not ClientKeyUpload.objects.exists()
    taken = dump() + json.dumps(sent) + caplog.text
    assert not any(one in taken for one in traces)
    # The search would find it, and what was kept is that very key.
    Event.objects.create(kind="x", target_kind="console", target_name="x", actor="x", message=body)
    assert body[:60] in dump()
    assert state_of(provider) == ("connected", "")


def test_an_upload_under_another_console_key(alice: User, kms_server: RunningKms, settings: Settings) -> None:
    provider = bare(alice, kms_server)
    old = client_keys.ensure_transport_key()
    assert client_keys.ensure_transport_key().public_pem == old.public_pem
    job = uploaded(provider, kms.issue_client(kms_server.layout, "uploaded"), alice)
    settings.CONSOLE_KEY = "6b" * 32
    run(job, client_keys.take_client_key)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "upload_sealed_otherwise")
    assert not ClientKeyUpload.objects.exists()
    assert client_keys.ensure_transport_key().public_pem != old.public_pem
    assert TransportKey.objects.count() == 1


def test_what_was_put_in_the_uploads_place_is_checked_again(
    alice: User, kms_server: RunningKms, other_ca: Authority
) -> None:
    """The database is written by the web process: neither another key, nor one sealed for another cluster, passes."""
    provider = bare(alice, kms_server)
    row = client_keys.ensure_transport_key()
    issued, stranger = kms.issue_client(kms_server.layout, "uploaded"), other_ca.issue("stranger", client=True)
    cases = (
        (key_trust.upload_context(provider), stranger.key_pem, "certificate_of_another_key"),
        (b"bartizan client key " + b"0" * 16, issued.key_pem, "upload_sealed_otherwise"),
        (key_trust.upload_context(provider), b"no key at all", "client_key_invalid"),
    )
    for context, pem, code in cases:
        job = uploaded(provider, issued, alice)
        ClientKeyUpload.objects.update(sealed=transport.seal(row.public_pem, Secret(pem), context=context))
        run(job, client_keys.take_client_key)
        assert (job.status, job.error_code) == (JobStatus.FAILED, code)
        assert not ClientKeyUpload.objects.exists()
    assert KmsCluster.objects.get().client_certificate_pem == ""
    long = uploaded(provider, issued, alice)
    ClientKeyUpload.objects.update(certificate_pem="x" * (certificates.MAX_PEM_CHARACTERS + 1))
    assert run(long, client_keys.take_client_key).error_code == "certificate_too_long"
    gone = uploaded(provider, issued, alice)
    ClientKeyUpload.objects.all().delete()
    assert run(gone, client_keys.take_client_key).error_code == "upload_gone"


def test_a_new_signing_request_gives_up_what_is_staged(alice: User, kms_server: RunningKms) -> None:
    provider = connected(alice, kms_server)
    assert made(provider, "self_signed", alice).client_certificate_next_pem
    run(key_providers.request_client_key(cluster_id=provider.pk, actor=alice), client_keys.create_client_key)
    provider.refresh_from_db()
    assert provider.client_csr_pem and not provider.client_certificate_next_pem
    assert made(provider, "self_signed", alice).client_csr_pem == ""
