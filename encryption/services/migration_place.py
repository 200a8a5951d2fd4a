"""On which of its two hosts a VM that was to move is, as both of them say."""

import time
from enum import StrEnum
from typing import Final

from encryption.services import migration_live
from encryption.services.migration_files import Move
from inventory.errors import Conflict
from inventory.jobs import Cancelled
from inventory.models import VirtualMachine
from inventory.services.connections import DomainMissing, Hypervisor, OperationRefused, VmFacts

RUNNING: Final = frozenset({"on", "paused"})
_SETTLE_SECONDS: Final = 60.0


class Place(StrEnum):
    SOURCE = "source"
    TARGET = "target"


def facts_of(hypervisor: Hypervisor, vm: VirtualMachine) -> VmFacts | None:
    try:
        return hypervisor.virtual_machine(vm.uuid)
    except DomainMissing:
        return None


def where(move: Move) -> Place:
    """On which of the two hosts the VM is, once that is settled; what the other one has left of it is removed."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            is_moving = migration_live.tell(move)
        except Cancelled:  # asked of a job that was resumed, or again of one that is ending because of it
            move.here.abort_migration(move.vm.uuid)
            is_moving = move.here.migration(move.vm.uuid) is not None
        if not is_moving:
            place = _settled_now(move)
            if place is not None:
                return place
            if time.monotonic() > deadline:
                raise Conflict(
                    "migration_unsettled", f"both {move.source} and {move.target} have {move.vm}",
                    hint="see on both hosts which one runs, and end the other with virsh destroy",
                )  # fmt: skip
        time.sleep(migration_live.POLL_SECONDS)


def _settled_now(move: Move) -> Place | None:
    with move.at_target():
        there = facts_of(move.there, move.vm)
    try:
        return _settled(move, facts_of(move.here, move.vm), there)
    except DomainMissing:
        return None
    except OperationRefused as exc:
        if exc.code != "wrong_state":
            raise
        return None  # the source has ended its guest itself meanwhile


def _settled(move: Move, here: VmFacts | None, there: VmFacts | None) -> Place | None:
    """None: both have it, and the hosts are still at it."""
    if there is None:
        return Place.SOURCE
    if here is None:
        return Place.TARGET
    if there.power == "on" and here.power != "on":
        # The guest goes on there; here stands what it was before the switch, or a definition without its guest.
        if here.power in RUNNING:
            move.here.power_off(move.vm.uuid)
        move.here.undefine(move.vm.uuid)
        return Place.TARGET
    if there.power == "off" and there.is_persistent:
        if here.power == "off" and move.job.checkpoint.get("copied"):
            move.here.undefine(move.vm.uuid)
            return Place.TARGET
        with move.at_target():
            move.there.undefine(move.vm.uuid)
        return Place.SOURCE
    return None
