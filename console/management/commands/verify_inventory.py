"""`manage verify-inventory`: is a crypto inventory what a console signed? See docs/events.md.

Needs no database, broker, web process or secrets. Ends with 0 where the signature fits a key that was named, 1 where it
does not, 2 where the file cannot be read or no key was named.
"""

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from django.core.management.base import BaseCommand
from typing_extensions import override

from encryption.engine.crypto_inventory import MAX_BYTES, BadInventory, verify
from inventory.engine.checkpoint import BadKey, fingerprint

_WRONG, _UNUSABLE = 1, 2
_FORGED = frozenset({"signature_wrong", "key_unknown"})


class Command(BaseCommand):
    help = "Verify the signature of a crypto inventory, without the console."
    requires_system_checks: list[str] = []
    suppressed_base_arguments = {
        "--version", "--verbosity", "--settings", "--pythonpath", "--traceback", "--no-color", "--force-color",
    }  # fmt: skip

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, metavar="FILE")
        parser.add_argument("--key", action="append", default=[], metavar="FINGERPRINT", help="of the console's key")
        parser.add_argument(
            "--public-key", action="append", default=[], type=Path, metavar="PEM", help="the key itself"
        )
        parser.add_argument("--json", action="store_true", help="print one object")

    @override
    def handle(self, *args: Any, **options: Any) -> None:
        try:
            known = {key.lower() for key in options["key"]} | {_fingerprint_of(path) for path in options["public_key"]}
            found = verify(_read(options["file"]), known=known)
        except BadInventory as exc:
            self._refuse(exc, as_json=options["json"])
        if options["json"]:
            self.stdout.write(json.dumps({"code": "signature_fits", **asdict(found)}))
        else:
            self.stdout.write(
                f"signed by key {found.key}\nmade at {found.made_at} by {found.made_by}: {found.virtual_machines} VMs, "
                f"{found.encrypted_parts} encrypted parts"
            )
        if not found.is_known:
            self.stderr.write("whose key that is cannot be said: name the console's with --key or --public-key")
            sys.exit(_UNUSABLE)

    def _refuse(self, exc: BadInventory, *, as_json: bool) -> NoReturn:
        if as_json:
            self.stdout.write(json.dumps({"code": exc.code, "message": str(exc), "hint": exc.hint}))
        else:
            self.stderr.write(f"{exc} ({exc.code})" + (f"\n  {exc.hint}" if exc.hint else ""))
        sys.exit(_WRONG if exc.code in _FORGED else _UNUSABLE)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise BadInventory("file_unreadable", f"{path} cannot be read: {type(exc).__name__}") from exc


def _fingerprint_of(path: Path) -> str:
    try:
        return fingerprint(_read(path).decode("ascii"))
    except (BadKey, UnicodeDecodeError) as exc:
        raise BadInventory("key_unreadable", f"{path} holds no public key of ECDSA over P-256 in PEM") from exc
