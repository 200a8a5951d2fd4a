"""Secrets that replace others: how deep recrypt and the rotation of passphrases begin.

The new secret's row stands beside the old one's, and refers to it, before a byte is encrypted under it. What the VM's
definition opens decides which of the two counts (`change.settled`); the old row goes last, with what it opened.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from django.db import transaction

from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.models import Key, Purpose, Stage, WrappedSecret
from encryption.services import change as changes
from encryption.services import conversion, recrypt, vtpm_files
from encryption.services.change import DATA_KEY_BYTES, Change
from encryption.services.key_access import fetched_key
from encryption.services.options import Wish
from encryption.services.parts import opens, path_in
from inventory.errors import Conflict
from inventory.jobs import Progress
from inventory.models import Job, VirtualMachine


def wish_of(vm: VirtualMachine) -> Wish:
    """What is wanted of the VM stays what it is: its policy is all that such a change reads."""
    return Wish(recrypt.keyed_vm(vm).security.policy_id, {})


def part_name(row: WrappedSecret) -> str:
    """As in plans and parameters: vda ..., nvram, vtpm."""
    return row.target or str(row.purpose)


@contextmanager
def replacing(job: Job, progress: Progress, start: Callable[[Change], None]) -> Iterator[Change]:
    """A change of secrets, begun, for what is left to do. `start` is called once a job, however often that is run:
    afterwards the rows say what is left."""
    with conversion.changing(job, progress, wish_of) as change:
        changes.destroy_originals(change)  # of a change that was interrupted
        conversion.check_power(change)
        if not job.checkpoint.get("begun"):
            start(change)
            progress.checkpoint(begun=True)
        change.vm.security = recrypt.keyed_vm(change.vm).security
        yield change


def begin(change: Change, parts: frozenset[str], key: Key, *, in_place: bool) -> None:
    """A new secret for each of these parts that has none of this job's yet, all or none of them.

    `in_place`: for the image that there is (another keyslot). Else for a copy beside it.
    """
    rows = [row for row in change.rows(Stage.IN_USE) if part_name(row) in parts]
    for row in rows:
        if not opens(change.facts, row):
            raise Conflict(
                "part_replaced",
                f"{change.vm}: its {row.part} is not the one that was encrypted, which is {row.path}",
                hint="attach the encrypted one again, or leave this part out",
            )
    if not rows:
        return
    with fetched_key(key) as kek, transaction.atomic():
        for row in rows:
            row.path = path_in(change.facts, row)
            row.stage, row.job_id = Stage.REPLACED, change.job.pk
            row.save(update_fields=["path", "stage", "job_id"])
            _create_replacement(change, row, kek, key, in_place=in_place)


def _create_replacement(change: Change, old: WrappedSecret, kek: Secret, key: Key, *, in_place: bool) -> None:
    secret_uuid = uuid.uuid4()
    stays = in_place or old.purpose == Purpose.VTPM
    is_vtpm = old.purpose == Purpose.VTPM
    WrappedSecret.objects.create(
        secret_uuid=secret_uuid,
        virtual_machine=change.vm,
        purpose=old.purpose,
        target=old.target,
        key=key,
        wrapped=keywrap.wrap(kek, Secret.generate(DATA_KEY_BYTES)),
        path=old.path if stays else _beside(old, secret_uuid),
        plain_path=vtpm_files.put_aside(old.path, secret_uuid) if is_vtpm else old.plain_path,
        plain_format=old.plain_format,
        size_bytes=old.size_bytes,
        stage=Stage.ENCRYPTING,
        replaces=old,
        job_id=change.job.pk,
    )


def _beside(old: WrappedSecret, secret_uuid: uuid.UUID) -> str:
    """A name in the same folder, with the new secret's mark in the place of the old one's."""
    pure = PurePosixPath(old.path)
    stem = pure.stem.removesuffix(f"-{old.secret_uuid.hex[:8]}")
    return str(pure.with_name(f"{stem}-{secret_uuid.hex[:8]}.luks"))
