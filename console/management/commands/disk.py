"""Disk images and keys by hand, for the day on which there is no console: see docs/recovery.md.

Needs no database, broker, web process or secrets, and runs as whoever calls it: `./bartizan manage disk` comes with
settings of its own (console/recovery_settings.py).
"""

import dataclasses
import json
import resource
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, get_args

from django.core.management.base import BaseCommand, CommandError
from typing_extensions import override

from console.management.progress_line import ProgressLine, in_words, printable
from encryption.recovery import definition, disk_copy, disk_facts, kms_config
from encryption.recovery.disk_copy import DiskCopy
from encryption.recovery.disk_facts import DiskFacts
from encryption.recovery.key_file import read_passphrase
from encryption.recovery.side_file import Operation
from inventory.errors import Invalid, ServiceError

_REFUSED, _USAGE, _INTERRUPTED = 1, 2, 130
_KEY_FILE = "the passphrase as text; one line end at its end is not part of it"


class Command(BaseCommand):
    help = "Encrypt, decrypt and look at disk image files, and get a VM's keys, without the console."
    requires_system_checks: list[str] = []
    suppressed_base_arguments = {
        "--version", "--verbosity", "--settings", "--pythonpath", "--traceback", "--no-color", "--force-color",
    }  # fmt: skip

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

        looking = actions.add_parser("info", help="what an image file is, without a key")
        looking.add_argument("path", metavar="PATH")
        looking.add_argument("--json", action="store_true")

        for action, text in (
            ("encrypt", "a raw image into a LUKS volume"),
            ("decrypt", "a LUKS volume into a raw image"),
            ("recrypt", "a LUKS volume into another, under a new volume key and passphrase"),
        ):
            copying = actions.add_parser(action, help=text)
            copying.add_argument("source", metavar="SOURCE", help="is only read")
            copying.add_argument("target", metavar="TARGET", help="is made; an interrupted run goes on with its own")
            copying.add_argument("--key-file", required=True, type=Path, metavar="FILE", help=_KEY_FILE)
            if action == "recrypt":
                copying.add_argument("--new-key-file", required=True, type=Path, metavar="FILE", help="the target's")
            if action != "encrypt":
                copying.add_argument("--size", type=int, metavar="BYTES", help="the disk's exact size, where known")
            copying.add_argument(
                "--verify", choices=("full", "sample", "none"), default="sample", help="at the end (default: sample)"
            )

        unlocking = actions.add_parser("unlock-key", help="a VM's passphrases from its definition and the KMS")
        unlocking.add_argument("--domain-xml", required=True, type=Path, metavar="FILE", help="as virsh dumpxml prints")
        unlocking.add_argument("--kms-config", required=True, type=Path, metavar="FILE", help="see docs/recovery.md")
        unlocking.add_argument("--target", metavar="NAME", help="one part alone: vda, nvram, vtpm, ...")
        where = unlocking.add_mutually_exclusive_group(required=True)
        where.add_argument("--output", type=Path, metavar="DIR", help="for NAME.key, mode 0600, one for each part")
        where.add_argument("--print", action="store_true", help="show the passphrases instead")

    @override
    def handle(self, *args: Any, action: str, **options: Any) -> None:
        # A dump of this process would hold keys.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        progress = ProgressLine(self.stderr)
        try:
            match action:
                case "info":
                    self._info(**options)
                case "unlock-key":
                    self._unlock_key(progress, **options)
                case _:
                    self._copy(progress, action, **options)
        except ServiceError as exc:
            raise CommandError(_told(exc), returncode=_USAGE if isinstance(exc, Invalid) else _REFUSED) from exc
        except KeyboardInterrupt:
            goes_on = "; the same command again goes on" if action in get_args(Operation) else ""
            raise CommandError(f"interrupted{goes_on}", returncode=_INTERRUPTED) from None
        finally:
            progress.end()

    def _info(self, *, path: str, **options: Any) -> None:
        facts = disk_facts.look(path)
        if options["json"]:
            self.stdout.write(json.dumps(dataclasses.asdict(facts)))
            return
        for name, value in _described(facts):
            self.stdout.write(printable(f"{name:<16}{value}"))

    def _copy(self, progress: ProgressLine, action: str, **options: Any) -> None:
        new_key_file = options.get("new_key_file")
        outcome = disk_copy.run(
            DiskCopy(
                operation=action,  # type: ignore[arg-type]  # one of the parser's
                source=options["source"],
                target=options["target"],
                passphrase=read_passphrase(options["key_file"], progress),
                new_passphrase=None if new_key_file is None else read_passphrase(new_key_file, progress),
                size=options.get("size"),
                thoroughness=options["verify"],
            ),
            progress,
        )
        progress.end()
        went_on = f", went on from byte {outcome.start}" if outcome.start else ""
        verified = f"verified {outcome.compared} of them" if outcome.compared else "not verified"
        self.stdout.write(printable(f"{options['target']}: {outcome.size} bytes{went_on}, {verified}"))

    def _unlock_key(self, progress: ProgressLine, *, output: Path | None, **options: Any) -> None:
        from encryption.recovery import unlock  # here: images are not to depend on PyKMIP, nor wait for its import

        parts = definition.wanted_keys(definition.read_protected_vm(options["domain_xml"]), options["target"])
        config = kms_config.load(options["kms_config"], progress)
        if output is not None:
            unlock.check_free(output, parts)
        result = unlock.unlock(parts, config)
        for key in result.opened:
            passphrase = key.passphrase.reveal().decode("ascii")
            if output is not None:
                path = unlock.write_key(output, key)
                part = key.part
                facts = f"{part.target}  secret {part.secret_uuid}  was {part.source_format}, {part.size} bytes"
                self.stdout.write(printable(f"{facts}  {path}"))
            else:
                self.stdout.write(passphrase if options["target"] else f"{key.part.target} {passphrase}")
        if result.locked:
            raise CommandError(
                "\n".join(f"{each.part.target}: {_told(each.error)}" for each in result.locked), returncode=_REFUSED
            )


def _described(facts: DiskFacts) -> list[tuple[str, str]]:
    lines = [
        ("path", facts.path),
        ("format", facts.format),
        ("file size", f"{facts.file_bytes} bytes ({in_words(facts.file_bytes)})"),
        ("allocated", f"{facts.allocated_bytes} bytes ({in_words(facts.allocated_bytes)})"),
    ]
    if facts.unfinished:
        lines.append(("unfinished", "yes: an interrupted copy; run the same command again"))
    if facts.luks is not None:
        luks = facts.luks
        keyslots = ", ".join(f"{number} ({iterations} iterations)" for number, iterations in luks.keyslots.items())
        lines += [
            ("disk size", f"{luks.disk_bytes} bytes ({in_words(luks.disk_bytes)})"),
            ("uuid", luks.uuid),
            ("cipher", f"{luks.cipher}, {luks.key_bits} bits, {luks.hash}"),
            ("payload offset", f"{luks.payload_offset} bytes"),
            ("keyslots", keyslots or "none is in use: nothing opens it"),
        ]
    if facts.qcow2 is not None:
        qcow2 = facts.qcow2
        lines.append(("disk size", f"{qcow2.disk_bytes} bytes ({in_words(qcow2.disk_bytes)})"))
        if qcow2.backing_file:
            lines.append(("backing file", f"{qcow2.backing_file}: the rest of the disk"))
        if qcow2.has_data_file:
            lines.append(("data file", "yes: the disk's content is in another file"))
        if qcow2.snapshots:
            lines.append(("snapshots", str(qcow2.snapshots)))
        if qcow2.is_encrypted:
            lines.append(("encrypted", "yes, by the format's own means, not by Bartizan"))
    return lines


def _told(error: ServiceError) -> str:
    hint = f"\n  {error.hint}" if error.hint else ""
    return printable(f"{error.message} ({error.code}){hint}")
