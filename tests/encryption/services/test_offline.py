"""A powered-off VM is encrypted and decrypted: the ways that are meant, over real files."""

import pytest

from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_tpm")]


def test_encrypted_and_decrypted(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world()
    world.succeed(world.all_disks())
    world.check_encrypted("vda", "vdb")
    world.succeed(world.nothing())
    world.check_plain()
