"""As test_job_refusals: what stands against work on a vTPM, which only the worker sees."""

import shutil
from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import reverse

from encryption.adapters import swtpm
from inventory.engine.hypervisor import WrongKey
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.test_job_refusals import refused
from tests.encryption.world import TPM_PLAIN, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("keys", "quick_tpm")]
HOME = Shape(())
Spoil = Callable[[World, pytest.MonkeyPatch], None]


def without_state(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(world.tpm_folder)


def no_state(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `World` has there; the real swtpm cannot tell it from state under another key."""


def unreadable(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIMULATED: as a swtpm that does not come up."""

    def failing(*_: object) -> None:
        raise swtpm.SwtpmFailed("swtpm does not answer")

    monkeypatch.setattr(swtpm, "started", failing)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(without_state, "vtpm_without_state"), (no_state, "vtpm_key_mismatch"), (unreadable, "vtpm_unreadable")],
)
def test_reading_certificates(
    admin: Client, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, code: str
) -> None:
    world = make_world(HOME)
    spoil(world, monkeypatch)
    assert refused(admin, world, reverse("encryption:vtpm-read", args=[world.vm.pk]), {}) == code


def test_adding_over_what_an_earlier_one_left(admin: Client, make_world: MakeWorld) -> None:
    world = make_world(Shape((), tpm=False))
    world.tpm_folder.mkdir(parents=True)
    (world.tpm_folder / "tpm2-00.permall").write_bytes(TPM_PLAIN)
    assert refused(admin, world, reverse("encryption:add-vtpm", args=[world.vm.pk]), {}) == "vtpm_state_left"
    assert (world.tpm_folder / "tpm2-00.permall").read_bytes() == TPM_PLAIN


def test_starting_with_state_of_another(admin: Client, make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(HOME)
    world.succeed(world.wish())
    # What the driver makes of QEMU's words is tested beside it.
    world.hypervisor.failures["power_on"] = WrongKey("vtpm_key_mismatch", "vTPM key does not fit the state")
    assert refused(admin, world, reverse("inventory:power", args=[world.vm.pk, "on"]), {}) == "vtpm_key_mismatch"
    assert world.hypervisor.secrets == {}
