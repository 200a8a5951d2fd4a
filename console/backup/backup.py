"""Use cases of the command line: a backup of the running console, and a restore into an empty one.

NOT in a backup: the console key (without it the sealed rows stay shut), logs, exported VMs, and the keys at the KMS.
"""

import gzip
import hashlib
import hmac
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Final

from django.conf import settings
from django.core.serializers.base import DeserializationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from console.backup import rows
from console.backup.sealed_file import CHUNK, MIN_PASSPHRASE, DoesNotOpen, NotSealed, SealedReader, SealedWriter
from encryption.models import KmsCluster
from inventory import events
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, Invalid
from inventory.models import LIVE_STATUSES, Host, Job, JobStatus, Severity

MANAGE: Final = "console.back_up"
RESTORED: Final = "console_restored"
FORMAT: Final = 1
MAX_LINE: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup holds. `made_at`: when the moment was that it shows."""

    made_at: datetime
    objects: Mapping[str, int]


def back_up(*, target: BinaryIO, passphrase: str, actor: Actor, now: datetime | None = None) -> Contents:
    """Writes all that the console knows, as of one moment, encrypted under the passphrase. Nothing has to stop."""
    authorize(actor, MANAGE)
    if len(passphrase) < MIN_PASSPHRASE:
        raise Invalid(
            "passphrase_too_short", f"the passphrase has fewer than {MIN_PASSPHRASE} characters",
            hint="take a longer one: the backup holds who may do what, and which keys protect what",
        )  # fmt: skip
    made_at = now or timezone.now()
    events.record("console.backed_up", "A backup of the console was made", target=None, actor=actor)
    head = {
        "format": FORMAT, "made_at": made_at.isoformat(), "migrations": rows.migrations(),
        "console_key": _fingerprint(),
    }  # fmt: skip
    with (
        SealedWriter(target, passphrase) as sealed,
        gzip.GzipFile(fileobj=sealed, mode="wb") as packed,
        io.TextIOWrapper(packed, encoding="utf-8", write_through=True) as lines,
        rows.one_moment(),
    ):
        lines.write(json.dumps(head) + "\n")
        written = rows.write(lines)
        lines.write(json.dumps({"end": dict(written)}) + "\n")
    return Contents(made_at, dict(written))


def restore(*, source: BinaryIO, passphrase: str, actor: Actor, any_console_key: bool = False) -> Contents:
    """Puts a backup in the place of all rows of this console, which must have no host and no key provider yet.

    What was at work when the backup was made has failed (`console_restored`): what became of it is not known here.
    `any_console_key`: goes on although this console's key opens nothing that the backup holds sealed.
    """
    authorize(actor, MANAGE)
    if Host.objects.exists() or KmsCluster.objects.exists():
        raise Conflict(
            "console_not_empty", "this console has hosts or key providers of its own",
            hint="restore into a new state folder or an empty database; nothing was changed",
        )  # fmt: skip
    try:
        _check_whole(source, passphrase)
        with gzip.GzipFile(fileobj=io.BufferedReader(SealedReader(source, passphrase))) as packed:
            return _read(packed, actor, any_console_key)
    except NotSealed as exc:
        raise Invalid("backup_unknown", "this file is no backup of this product's version",
                      hint="name a file that `manage backup` wrote") from exc  # fmt: skip
    except DoesNotOpen as exc:
        raise Invalid("backup_does_not_open", "the passphrase is another one, or the backup was changed or cut",
                      hint="nothing was changed; try the passphrase again, or another copy") from exc  # fmt: skip
    except (DeserializationError, IntegrityError, ValueError, EOFError, gzip.BadGzipFile) as exc:
        raise Invalid("backup_unreadable", "the backup opens, but its rows do not fit this console",
                      hint="nothing was changed; is it the same version of Bartizan?") from exc  # fmt: skip


def _check_whole(source: BinaryIO, passphrase: str) -> None:
    """Every tag is checked before the first row counts."""
    reader = SealedReader(source, passphrase)
    while reader.read(CHUNK):
        pass
    source.seek(0)


def _read(packed: gzip.GzipFile, actor: Actor, any_console_key: bool) -> Contents:
    head = _object(packed.readline(MAX_LINE))
    if head.get("format") != FORMAT:
        raise NotSealed
    _check_version(head)
    if head.get("console_key") != _fingerprint() and not any_console_key:
        raise Conflict(
            "backup_other_console_key", "the backup was made with another console key",
            hint="put the old console's key in the place of this one's (STATE/secrets/console_key), or restore with "
            "--any-console-key: client keys of key providers then have to be made anew",
        )  # fmt: skip
    made_at = datetime.fromisoformat(head["made_at"])
    end: dict[str, Any] = {}
    with transaction.atomic():
        read = rows.replace_by(_rows_of(packed, end))
        if Counter(end.get("end", {})) != read:
            raise EOFError
        _end_jobs()
        events.record(
            "console.restored", f"The console was restored from a backup of {made_at:%Y-%m-%d %H:%M:%S} UTC",
            target=None, actor=actor, severity=Severity.WARNING, made_at=made_at.isoformat(),
        )  # fmt: skip
    return Contents(made_at, dict(read))


def _check_version(head: Mapping[str, Any]) -> None:
    theirs, ours = set(head["migrations"]), set(rows.migrations())
    if theirs != ours:
        which = "newer" if theirs - ours else "older"
        raise Conflict(
            "backup_other_version", f"the backup was made by {which} software: {sorted(theirs ^ ours)[0]} differs",
            hint="restore with the version that made it, then upgrade",
        )  # fmt: skip


def _rows_of(packed: gzip.GzipFile, end: dict[str, Any]) -> Iterator[str]:
    while line := packed.readline(MAX_LINE):
        if line.startswith(b'{"end"'):
            end.update(_object(line))
            return
        yield line.decode()


def _object(line: bytes) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise NotSealed
    return found


def _end_jobs() -> None:
    Job.objects.filter(status__in=LIVE_STATUSES).update(
        status=JobStatus.FAILED, ended_at=timezone.now(), error_code=RESTORED,
        message="the console was restored from a backup that was made while this was at work",
    )  # fmt: skip


def _fingerprint() -> str:
    """Tells console keys apart and nothing about them: they are 256 random bits."""
    if not settings.CONSOLE_KEY:
        return ""
    return hmac.new(bytes.fromhex(settings.CONSOLE_KEY), b"which console key", hashlib.sha256).hexdigest()[:32]
