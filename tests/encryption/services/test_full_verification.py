"""Copies that are compared wholly before their originals are destroyed, where somebody asks for that."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from encryption.engine import luks, verify
from encryption.engine.image import Target
from encryption.models import StoragePolicy
from inventory.models import Job, JobStatus
from tests.api_client import caller
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import KIB, Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
ONE = Shape((Disk("vda", "raw", 192 * KIB),), nvram=False, tpm=False)
FAR = Shape((Disk("vda", "raw", 192 * KIB),), nvram=False, tpm=False, remote=True)


@pytest.fixture
def one_byte_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last block of each copy; samples are drawn from the first one only."""
    compare = verify.verify

    def spoiled(conversion: Any, source: Any, target: Target, **how: Any) -> verify.Verification:
        byte, at = bytearray(1), luks.PREFIX_BYTES + 190 * KIB
        target.read(at, memoryview(byte))
        target.write(at, memoryview(bytes([byte[0] ^ 1])))
        return compare(conversion, source, target, **how)

    monkeypatch.setattr(verify, "_sampled_offsets", lambda *_: [0])
    monkeypatch.setattr(verify, "verify", spoiled)


def asked(world: World, admin: Client, by: str, way: str, *, full: bool) -> Job:
    """Asked for by the page or the API, and done."""
    Job.objects.all().delete()
    path = f"/virtual-machines/{world.vm.pk}"
    if way == "encrypt":
        policy = str(StoragePolicy.objects.get(name="VM Encryption Policy").pk)
        page, form = reverse("encryption:vm-options", args=[world.vm.pk]), {"policy": policy, "disk-vda": policy}
        path, body = f"{path}/options", {"policy_id": policy, "disks": {"vda": policy}}
    else:
        page, form = reverse("encryption:vm-recrypt", args=[world.vm.pk]), {"way": "volume_keys", "parts": "vda"}
        path, body = f"{path}/recrypt/deep", {"parts": ["vda"]}
    if by == "page":
        assert admin.post(page, form | ({"full_verification": "on"} if full else {})).status_code == 302
    else:
        assert caller(world.actor).post(path, body | {"full_verification": full}).status == 202
    return world.run(Job.objects.get())


@pytest.mark.parametrize("by", ["page", "API"])
@pytest.mark.parametrize("shape", [ONE, FAR], ids=["files of a worker", "files of a host"])
def test_what_samples_do_not_show(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, one_byte_wrong: None, shape: Shape, by: str
) -> None:
    world = make_world(shape)
    refused = asked(world, admin, by, "encrypt", full=True)
    assert (refused.status, refused.error_code) == (JobStatus.FAILED, "verification_failed")
    assert str(190 * KIB) in refused.message
    world.check_plain()
    assert asked(world, admin, by, "encrypt", full=False).status == JobStatus.SUCCEEDED


@pytest.mark.parametrize("by", ["page", "API"])
def test_under_new_volume_keys(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, request: pytest.FixtureRequest, by: str
) -> None:
    world = make_world(ONE)
    assert asked(world, admin, by, "encrypt", full=True).status == JobStatus.SUCCEEDED
    request.getfixturevalue("one_byte_wrong")
    assert asked(world, admin, by, "recrypt", full=True).error_code == "verification_failed"
    world.check_encrypted("vda")
    assert asked(world, admin, by, "recrypt", full=False).status == JobStatus.SUCCEEDED
