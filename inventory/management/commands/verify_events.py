"""`manage verify-events`: is the history what it was? See docs/events.md.

Ends with 0 where it is whole, 1 where something is wrong with it, 2 where that could not be found out.
"""

import json
import re
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NoReturn

from django.core.management.base import BaseCommand
from django.db import DatabaseError
from typing_extensions import override

from inventory.authorize import SYSTEM
from inventory.engine.checkpoint import Checkpoint, find_all
from inventory.errors import Invalid, ServiceError
from inventory.services import checkpoints
from inventory.services.event_chain import seal
from inventory.services.verification import Report, verify

_BROKEN, _UNUSABLE = 1, 2
_MOST_BYTES: Final = 256 * 2**20
_FINGERPRINT: Final = re.compile("[0-9a-f]{64}")


class Command(BaseCommand):
    help = "Verify that no event of the history was changed, removed, inserted or moved since it was sealed."

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one object")
        parser.add_argument(
            "--checkpoint", type=Path, action="append", default=[], metavar="FILE",
            help="a file with checkpoints that were kept elsewhere, in any form: a collector's log, an export; "
            "may be given several times",
        )  # fmt: skip
        parser.add_argument(
            "--key", action="append", default=[], metavar="FINGERPRINT",
            help="believe only signatures of this key; may be given several times",
        )  # fmt: skip
        parser.add_argument("--sign", action="store_true", help="write a new checkpoint besides, where all is well")

    @override
    def handle(self, *args: Any, **options: Any) -> None:
        try:
            elsewhere = [one for path in options["checkpoint"] for one in _checkpoints_in(path)]
            trusted = [_fingerprint(key) for key in options["key"]]
            seal()
            report = verify(actor=SYSTEM, elsewhere=elsewhere, trusted=trusted)
            signed = checkpoints.sign(actor=SYSTEM) if options["sign"] and not report.problems else None
        except (ServiceError, DatabaseError) as exc:
            self._refuse(exc, as_json=options["json"])
        if options["json"]:
            self.stdout.write(json.dumps(asdict(report) | {"checkpoint": signed.text if signed else None}))
        else:
            self.stdout.write("\n".join([*_lines(report), *([f"new checkpoint: {signed.text}"] if signed else [])]))
        if report.problems:
            sys.exit(_BROKEN)

    def _refuse(self, exc: ServiceError | DatabaseError, *, as_json: bool) -> NoReturn:
        code, text, hint = (
            (exc.code, exc.message, exc.hint)
            if isinstance(exc, ServiceError)
            else ("database_unusable", f"the database cannot be read ({type(exc).__name__})", "is it migrated?")
        )
        if as_json:
            self.stdout.write(json.dumps({"code": code, "message": text, "hint": hint}))
        else:
            self.stderr.write(f"{text} ({code})" + (f"\n  {hint}" if hint else ""))
        sys.exit(_UNUSABLE)


def _lines(report: Report) -> Sequence[str]:
    lines = [f"{report.events} sealed events, {report.checkpoints} checkpoints"]
    lines.append(
        f"signed up to event {report.signed_to}" if report.signed_to else "no checkpoint vouches for any event"
    )
    believed = "proven" if report.are_keys_proven else "NOT proven: no console key here and no --key given"
    lines += [f"key {key} ({believed})" for key in report.keys]
    lines += [f"{problem.code}: {problem.text}" for problem in report.problems]
    return [*lines, "the history is whole" if not report.problems else f"{len(report.problems)} problems"]


def _checkpoints_in(path: Path) -> list[Checkpoint]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as exc:
        raise Invalid("file_unreadable", f"{path} cannot be read: {type(exc).__name__}") from exc
    if len(content) > _MOST_BYTES:
        raise Invalid("file_too_large", f"{path} has more than {_MOST_BYTES >> 20} MiB", hint="cut out the checkpoints")
    found = find_all(content.decode("utf-8", "replace"))
    if not found:
        raise Invalid(
            "checkpoint_missing", f"there is no checkpoint in {path}", hint="look for bartizan-checkpoint-1 in the log"
        )
    return found


def _fingerprint(text: str) -> str:
    if not _FINGERPRINT.fullmatch(text.lower()):
        raise Invalid("fingerprint_invalid", f"{text[:70]} is no fingerprint", hint="64 hexadecimal digits")
    return text.lower()
