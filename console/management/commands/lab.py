"""`manage lab reboot HOST`: a lab host boots anew, as it should or into something that attestation has to find out."""

import time
from argparse import ArgumentParser
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from typing_extensions import override

from attestation.models import HostAttestation, TpmIdentity, VerdictReason, VerdictStatus
from attestation.services import schedule
from inventory.models import Host
from lab import layout
from lab.boots import Situation
from lab.errors import LabError
from lab.machine import Machine
from lab.user import ensure_user

_WHAT = {
    Situation.SECURE_BOOT_OFF: "somebody switched Secure Boot off in the firmware",
    Situation.CHANGED_KERNEL: "another kernel, with a good signature",
    Situation.SWAPPED_TPM: "the board has another TPM, the disks are the same",
    Situation.EDITED_LOG: "booted without Secure Boot; root then edits the boot log",
    Situation.STOPPED_AGENT: "the agent does not start",
}
_VERDICT_SECONDS = 60.0


class Command(BaseCommand):
    help = "Boots a host of the local lab anew. Without an option: as it should. Its virtual machines run on."

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--state", default=settings.STATE_DIR / "lab", type=Path, help="the lab's state folder")
        verbs = parser.add_subparsers(dest="verb", required=True)
        reboot = verbs.add_parser("reboot")
        reboot.add_argument("host", help="host-a or host-b")
        choice = reboot.add_mutually_exclusive_group()
        for situation, what in _WHAT.items():
            choice.add_argument(
                f"--{situation}", dest="situation", action="store_const", const=situation, help=what,
                default=Situation.NORMAL,
            )  # fmt: skip

    @override
    def handle(self, *args: Any, state: Path, host: str, situation: Situation, **options: Any) -> None:
        try:
            lab = layout.load(state, ensure_user())
            if lab is None:
                raise CommandError(f"there is no lab in {state}")
            machine = Machine(lab, lab.host(host.removeprefix("host-")))
            machine.reboot(situation)
        except LabError as exc:
            raise CommandError(str(exc)) from exc
        self.stdout.write(f"{host} has booted: {_WHAT.get(situation, 'as it should')}")
        self._attest(f"host-{machine.host.name}")

    def _attest(self, name: str) -> None:
        """As after any boot that the console notices, which this one it does not: libvirt was not stopped."""
        host = Host.objects.filter(name=name).first()
        if host is None or not TpmIdentity.objects.filter(host=host).exists():
            self.stdout.write("it is not enrolled, so nobody looks")
            return
        began = timezone.now()
        schedule.void_and_attest(host.pk, reason=VerdictReason.RECONNECT)
        found = _verdict_since(host, began)
        said = "no verdict yet" if found is None else f"{found.get_status_display()}: {found.message}"
        self.stdout.write(f"{name}: {said}")


def _verdict_since(host: Host, began: datetime) -> HostAttestation | None:
    deadline = time.monotonic() + _VERDICT_SECONDS
    while time.monotonic() < deadline:
        found = HostAttestation.objects.filter(host=host).first()
        if found is not None:
            is_new = found.checked_at is not None and found.checked_at > began
            if is_new or (found.status == VerdictStatus.UNREACHABLE and found.claim is None):
                return found
        time.sleep(0.3)
    return None
