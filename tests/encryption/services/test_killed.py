"""The worker is killed, or the outside refuses, before every effect of a job; it is cancelled whenever the job looks.

Whatever it was before: the VM's definition always refers to whole parts that open, no key of a part is lost, and the
same job (after a kill) or the same wish (after a failure) ends well, with nothing left over. The changes: a VM is
encrypted, decrypted, gets new volume keys (off, and its disk while it runs), or new passphrases.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from django.db import transaction

from encryption.engine import antiforensic, luks
from encryption.services import options
from inventory.errors import Conflict, Unavailable
from inventory.models import Job, JobStatus
from inventory.services import sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.effects import Effects, Killed
from tests.encryption.services.test_deep_recrypt import start
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("quick_tpm")]

RAW = Shape((Disk("vda", "raw", 96 * 1024),))
QCOW2 = Shape((Disk("vda", "qcow2", 96 * 1024),), nvram=False, tpm=False)


@pytest.fixture(autouse=True)
def _folded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same key material is opened again and again; folding it takes longest, and depends on nothing else."""
    fold = antiforensic._fold

    @functools.lru_cache(maxsize=32)
    def known(stripes: bytes, n_key_bytes: int, algorithm: str) -> bytes:
        assert algorithm == "sha256"
        return fold(stripes, n_key_bytes, hashes.SHA256())

    monkeypatch.setattr(
        antiforensic, "_fold", lambda stripes, n_key_bytes, algorithm: known(stripes, n_key_bytes, algorithm.name)
    )


@pytest.fixture
def effects(monkeypatch: pytest.MonkeyPatch, keys: MemoryKeyServer) -> Effects:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # processes die here, not machines
    return Effects(monkeypatch, keys)


CASES = [
    pytest.param("encrypt", RAW, id="encrypt raw, NVRAM, vTPM"),
    pytest.param("encrypt", QCOW2, id="encrypt qcow2"),
    pytest.param("decrypt", RAW, id="decrypt raw, NVRAM, vTPM"),
    pytest.param("decrypt", QCOW2, id="decrypt qcow2"),
    pytest.param("deepen", RAW, id="new volume keys"),
    pytest.param("deepen running", QCOW2, id="new volume key while it runs"),
    pytest.param("rotate", RAW, id="new passphrases"),
]
# On a host whose files no worker reaches: small raw disks go through the worker's memory, the host copies qcow2 ones.
FAR_RAW, FAR_QCOW2 = replace(RAW, remote=True), replace(QCOW2, remote=True)
FAR = [
    pytest.param("encrypt", FAR_RAW, id="far: encrypt raw, NVRAM, vTPM"),
    pytest.param("encrypt", FAR_QCOW2, id="far: encrypt qcow2"),
    pytest.param("decrypt", FAR_RAW, id="far: decrypt raw, NVRAM, vTPM"),
    pytest.param("decrypt", FAR_QCOW2, id="far: decrypt qcow2"),
    pytest.param("rotate", replace(FAR_RAW, nvram=False, tpm=False), id="far: new passphrases"),
]


def prepared(make_world: MakeWorld, shape: Shape, verb: str) -> tuple[World, Callable[[], Job]]:
    """A VM that is about to be changed, and what asks for the change."""
    world = make_world(shape)
    if verb == "encrypt":
        return world, lambda: world.ask(world.all_disks())
    world.succeed(world.all_disks())
    if verb == "decrypt":
        return world, lambda: world.ask(world.nothing())
    if verb == "deepen running":
        start(world)
    return world, world.rotate if verb == "rotate" else world.deepen


def check_done(world: World, verb: str) -> None:
    if verb == "decrypt":
        world.check_plain()
    else:
        world.check_encrypted("vda")


def opening(world: World) -> dict[str, bytes]:
    """What opens each LUKS image, by its path: it changes with the passphrase, and with the volume key."""
    return {row.path: Path(row.path).read_bytes()[: luks.PREFIX_BYTES] for row in world.secrets.values() if row.target}


def every_effect(effects: Effects, world: World, keys: MemoryKeyServer, *, expected: int = 12) -> Iterator[int]:
    """1, 2, ... until a run has fewer effects; rows, files, host and key server are as they were each time."""
    restore = world.remembered(keys)
    at = 0
    while True:
        at += 1
        point = transaction.savepoint()
        yield at
        transaction.savepoint_rollback(point)
        restore()
        if not effects.struck:
            assert at > expected, "hardly any effect was seen"
            return


def kill(what: str) -> None:
    raise Killed(what)


def resumed(job: Job) -> Job:
    """As `jobs.resume_interrupted` leaves the job of a dead worker."""
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    return job


@pytest.mark.parametrize(("verb", "shape"), [*CASES, *FAR])
def test_killed_before_every_effect_and_resumed(
    make_world: MakeWorld, keys: MemoryKeyServer, effects: Effects, verb: str, shape: Shape
) -> None:
    world, ask = prepared(make_world, shape, verb)
    for at in every_effect(effects, world, keys):
        known = len(keys.keys)
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
        assert len(keys.keys) - known == (0 if verb in ("decrypt", "rotate") else 1), (
            "one KEK, however often it was killed"
        )


# What is left of a qcow2 disk is as of a raw one: its conversion begins anew in both cases.
@pytest.mark.parametrize(("verb", "shape"), [CASES[0], CASES[2], *CASES[4:]])
def test_killed_and_then_cancelled_before_a_worker_took_it_up(
    make_world: MakeWorld, keys: MemoryKeyServer, effects: Effects, verb: str, shape: Shape
) -> None:
    world, ask = prepared(make_world, shape, verb)
    for at in every_effect(effects, world, keys):
        job = ask()
        with effects.armed(at, kill), contextlib.suppress(Killed):
            world.run(job)
        if effects.struck:
            Job.objects.filter(pk=job.pk).update(status=JobStatus.CANCELLED, claim=None)
            apply_again(world, ask, effects.last)
        check_done(world, verb)


def apply_again(world: World, ask: Callable[[], Job], where: str) -> None:
    """The same wish; where nothing is left to do, the panel says so."""
    world.host.refresh_from_db()
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    try:
        job = world.run(ask())
    except Conflict as exc:
        assert exc.code == "nothing_to_do", (where, str(exc))
        return
    assert job.status == JobStatus.SUCCEEDED, (where, job.error_code, job.message)


HOST_FOLDER = "/images/"


def refuse(what: str) -> None:
    """The outside says no, the worker's own files in their words. A database that does so is a bug's matter (internal
    error), see test_jobs."""
    if what.startswith("os."):
        raise OSError(28, "No space left on device")
    refuse_far(what)


def refuse_far(what: str) -> None:
    """The same where the host's files are not the worker's."""
    if what.startswith("os.") and HOST_FOLDER not in what:
        raise OSError(28, "No space left on device")
    raise Unavailable("planted", "the outside is down")


# Running, its files are the host's: see test_live.
@pytest.mark.parametrize(("verb", "shape"), [*CASES[:5], CASES[6], FAR[0], FAR[3]])
def test_refused_at_every_effect(
    make_world: MakeWorld, keys: MemoryKeyServer, effects: Effects, verb: str, shape: Shape
) -> None:
    world, ask = prepared(make_world, shape, verb)
    for at in every_effect(effects, world, keys, expected=5):
        job = ask()
        with effects.armed(at, refuse_far if shape.remote else refuse, database=False):
            world.run(job)
        if effects.struck:
            assert job.status in (JobStatus.FAILED, JobStatus.SUCCEEDED), (effects.last, job.message)
            world.check_parts()
            apply_again(world, ask, effects.last)
        check_done(world, verb)


@pytest.mark.parametrize(("verb", "shape"), [case for case in CASES if case.values[0] != "deepen running"] + FAR[:2])
def test_cancelled_whenever_it_looks(
    make_world: MakeWorld, keys: MemoryKeyServer, effects: Effects, verb: str, shape: Shape
) -> None:
    """Between two looks for a cancellation it makes no difference when it was asked for."""
    world, ask = prepared(make_world, shape, verb)
    for at in every_effect(effects, world, keys, expected=3):
        before, opened = world.files(), opening(world)
        job = ask()

        def cancel(what: str, job: Job = job) -> None:
            if threading.current_thread() is threading.main_thread():  # others have no part in this transaction
                Job.objects.filter(pk=job.pk).update(cancel_requested=True)

        with effects.armed(at, cancel, looks=True):
            world.run(job)
        world.check_parts()
        if job.status == JobStatus.CANCELLED:
            switched = options.observe(world.vm).leftovers
            if not switched:
                assert world.files() == before, effects.last
                if verb == "encrypt":
                    world.check_plain()
                else:
                    world.check_encrypted("vda")
                assert opening(world) == opened, effects.last
            apply_again(world, ask, effects.last)
        else:
            assert job.status == JobStatus.SUCCEEDED, (effects.last, job.error_code, job.message)
        check_done(world, verb)
