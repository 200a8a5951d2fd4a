"""Refusals of keys, certificates and leftover files that only a worker finds out; as test_job_refusals."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from django.test import Client
from django.urls import reverse

from encryption import tasks
from encryption.adapters import image_files
from encryption.engine import keywrap, transport
from encryption.engine.secret import Secret
from encryption.models import ClientKeyUpload, KmsCluster, Leftover
from encryption.services import client_keys, key_access, leftover_files, leftovers
from inventory import jobs
from inventory.services import sync
from tests.api_client import caller
from tests.encryption.certificates import LEAF, LEAF_KEY, WRONG_CA, private
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.test_job_refusals import HOME, RAW, refused

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_tpm")]
Keyed = Callable[[MemoryKeyServer, pytest.MonkeyPatch], None]


def several(keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        keys.create_key(name="wanted")


def unfit(keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    key_id = keys.create_key(name="wanted")
    found = replace(keys.attributes(key_id), length_bits=128)
    monkeypatch.setattr(keys, "attributes", lambda _: found)


def none(keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there."""


@pytest.mark.parametrize(
    ("spoil", "code"), [(several, "key_name_ambiguous"), (unfit, "key_unfit"), (none, "kms_key_not_found")]
)
def test_existing_key(
    admin: Client,
    make_world: MakeWorld,
    keys: MemoryKeyServer,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Keyed,
    code: str,
) -> None:
    spoil(keys, monkeypatch)
    url = reverse("encryption:kms-adopt-key", args=[KmsCluster.objects.get().pk])
    assert refused(admin, make_world(HOME), url, {"wanted": "wanted"}) == code


@pytest.mark.parametrize("code", ["leftover_changed", "file_not_destroyed"])
def test_leftover(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    world = make_world(RAW)
    world.succeed(world.all_disks())
    world.hypervisor.pools = [replace(world.hypervisor.pools[0], path=str(world.folder))]
    sync.sync_host(world.host, world.hypervisor)
    path = world.folder / "vda.raw"
    path.write_bytes(b"\x33\xc0".ljust(510, b"\0") + b"\x55\xaa" + b"plain content")
    job = leftovers.find_leftovers(host_id=world.host.pk, actor=world.actor)
    jobs.run(str(job.pk), leftover_files.run_find_leftovers)
    row = Leftover.objects.get(path=str(path))
    if code == "leftover_changed":
        path.write_bytes(b"another file")
    else:
        monkeypatch.setattr(image_files, "destroy", _held)
    assert refused(admin, world, reverse("encryption:destroy-leftover", args=[row.pk]), {"confirm": row.name}) == code
    assert path.exists()


def _held(path: str) -> None:
    raise image_files.InUse(f"{path} is in use")


def test_another_certificate_is_staged_while_a_server_is_asked(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIMULATED: jobs of one provider exclude each other, but a worker that was taken for dead may still stage one.
    Neither is put into use, and the new one is not lost."""
    sealed = keywrap.wrap(key_access.console_key(), Secret(private(LEAF_KEY).encode()))
    KmsCluster.objects.update(client_certificate_next_pem=LEAF, client_key_next_sealed=sealed)

    @contextmanager
    def asked(*_: object) -> Iterator[MemoryKeyServer]:
        KmsCluster.objects.update(client_certificate_next_pem=WRONG_CA)
        yield keys

    monkeypatch.setattr(client_keys, "client_with", asked)
    world, owner = make_world(HOME), KmsCluster.objects.get()
    url = reverse("encryption:kms-use-client", args=[owner.pk])
    assert refused(admin, world, url, {}) == "staged_certificate_changed"
    owner.refresh_from_db()
    assert (owner.client_certificate_pem, owner.client_certificate_next_pem) == ("", WRONG_CA)
    assert caller(world.actor).post(f"/key-providers/{owner.pk}/use-client-certificate").status == 202


def test_key_provider_without_a_server(admin: Client, make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    owner = KmsCluster.objects.get()
    owner.servers.all().delete()
    assert refused(admin, make_world(HOME), reverse("encryption:kms-check", args=[owner.pk]), {}) == "no_key_server"


@pytest.mark.parametrize("code", ["upload_gone", "upload_sealed_otherwise"])
def test_upload_that_is_not_what_was_uploaded(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """SIMULATED: between the page and the worker somebody changed the database."""
    row, owner = client_keys.ensure_transport_key(), KmsCluster.objects.get()
    take = tasks.take_client_key

    def late(job_id: str) -> None:
        found = ClientKeyUpload.objects.all()
        if code == "upload_gone":
            found.delete()
        else:
            other = Secret(private(LEAF_KEY).encode())
            found.update(sealed=transport.seal(row.public_pem, other, context=b"another key provider"))
        take(job_id)

    monkeypatch.setattr(tasks, "take_client_key", late)
    form = {"certificate": LEAF, "private_key": private(LEAF_KEY)}
    url = reverse("encryption:kms-upload-client", args=[owner.pk])
    assert refused(admin, make_world(HOME), url, form) == code
    assert not ClientKeyUpload.objects.exists()
