"""As test_killed, on a host whose files no worker reaches."""

import contextlib
from dataclasses import replace

import pytest

from inventory.models import JobStatus
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.effects import Effects, Killed
from tests.encryption.services.test_killed import (
    QCOW2,
    RAW,
    apply_again,
    check_done,
    effects,
    every_effect,
    kill,
    prepared,
    refuse,
    resumed,
)
from tests.encryption.world import Shape

__all__ = ["effects"]

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("quick_tpm")]

# The small raw disk goes through the worker's memory, the qcow2 one is copied by its host.
FAR_RAW, FAR_QCOW2 = replace(RAW, remote=True), replace(QCOW2, remote=True)
FAR_DISK = replace(FAR_RAW, nvram=False, tpm=False)
CASES = [
    pytest.param("encrypt", FAR_RAW, id="encrypt raw, NVRAM, vTPM"),
    pytest.param("encrypt", FAR_QCOW2, id="encrypt qcow2"),
    pytest.param("decrypt", FAR_RAW, id="decrypt raw, NVRAM, vTPM"),
    pytest.param("decrypt", FAR_QCOW2, id="decrypt qcow2"),
    pytest.param("rotate", FAR_DISK, id="new passphrases"),
]


@pytest.mark.parametrize(("verb", "shape"), CASES)
def test_killed_before_every_effect_and_resumed(
    make_world: MakeWorld, keys: MemoryKeyServer, effects: Effects, verb: str, shape: Shape
) -> None:
    world, ask = prepared(make_world, shape, verb)
    for at in every_effect(effects, world, keys):
        job = ask()
        with effects.armed(at, kill), contextlib.suppress(Killed):
            world.run(job)
        if effects.struck:
            try:
                world.check_parts()
                world.run(resumed(job))
            except Exception as exc:
                raise AssertionError(f"killed before {effects.last}") from exc
        assert job.status == JobStatus.SUCCEEDED, (effects.seen[-1], job.error_code, job.message)
        check_done(world, verb)


@pytest.mark.parametrize(("verb", "shape"), [CASES[0], CASES[3]])
def test_refused_at_every_effect(
    make_world: MakeWorld, keys: MemoryKeyServer, effects: Effects, verb: str, shape: Shape
) -> None:
    world, ask = prepared(make_world, shape, verb)
    for at in every_effect(effects, world, keys, expected=5):
        job = ask()
        with effects.armed(at, refuse, database=False):
            world.run(job)
        if effects.struck:
            assert job.status in (JobStatus.FAILED, JobStatus.SUCCEEDED), (effects.last, job.message)
            world.check_parts()
            apply_again(world, ask, effects.last)
        check_done(world, verb)
