"""The Actions menu of an object: the same entries in its page's menu and in the tree's context menu."""

from django.db.models import Model
from django.urls import reverse

from inventory.authorize import Actor, may
from inventory.models import Host, PowerState, TargetKind, VirtualMachine
from inventory.views import extensions
from inventory.views.extensions import Action

Menu = list[tuple[str, list[Action]]]


def actions_for(kind: TargetKind, target: Model, actor: Actor) -> Menu:
    """Groups in order, each with its entries; empty for somebody who may only look."""
    if not may(actor, f"inventory.change_{kind}", target):
        return []
    menu: dict[str, list[Action]] = {}
    for action in [*_own(kind, target), *extensions.actions(kind, target, actor), *_removal(kind, target)]:
        menu.setdefault(action.group, []).append(action)
    return list(menu.items())


def _own(kind: TargetKind, target: Model) -> list[Action]:
    def url(name: str) -> str:
        return reverse(f"inventory:{name}", args=[target.pk])

    if kind == TargetKind.DATACENTER:
        return [
            Action("New Cluster…", url("add-cluster"), "cluster", "New"),
            Action("Rename…", url("rename-datacenter"), "pencil", "Edit"),
        ]
    if kind == TargetKind.CLUSTER:
        return [
            Action("Add Host…", url("add-host"), "host", "New"),
            Action("Rename…", url("rename-cluster"), "pencil", "Edit"),
        ]
    if isinstance(target, Host):
        return [
            Action("Refresh", url("refresh-host"), "refresh", "Connection", is_direct=True),
            Action("Edit Connection…", url("edit-host"), "pencil", "Connection"),
        ]
    if isinstance(target, VirtualMachine):
        return _power(target)
    return []


def _power(vm: VirtualMachine) -> list[Action]:
    off, running = vm.power_state in (PowerState.OFF, PowerState.CRASHED), vm.is_running
    gone = "" if vm.is_present else "its host does not list it"

    def action(label: str, verb: str, icon: str, possible: bool, why_not: str, direct: bool) -> Action:
        where = reverse("inventory:power", args=[vm.pk, verb])
        return Action(label, where, icon, "Power", direct, gone or ("" if possible else why_not))

    discard = reverse("inventory:discard-saved-state", args=[vm.pk])
    return [
        action("Power On", "on", "play", off, "it is not powered off", True),
        action("Shut Down Guest", "shut-down", "power", running, "it is not running", True),
        action("Power Off…", "off", "stop", running, "it is not running", False),
        action("Reboot…", "reboot", "refresh", running, "it is not running", False),
        *([Action("Discard Saved State…", discard, "undo", "Power", why_not=gone)] if vm.has_managed_save else []),
        Action("Serial Console", reverse("inventory:console", args=[vm.pk]), "terminal", "View", is_page=True),
    ]


def _removal(kind: TargetKind, target: Model) -> list[Action]:
    names = {
        TargetKind.DATACENTER: ("remove-datacenter", "Remove…"),
        TargetKind.CLUSTER: ("remove-cluster", "Remove…"),
        TargetKind.HOST: ("remove-host", "Remove from Inventory…"),
        TargetKind.VIRTUAL_MACHINE: ("remove-vm", "Remove from Inventory…"),
    }
    if kind not in names:
        return []
    name, label = names[kind]
    present = isinstance(target, VirtualMachine) and target.is_present
    why_not = "its host still lists it" if present else ""
    return [Action(label, reverse(f"inventory:{name}", args=[target.pk]), "trash", "Remove", False, why_not)]
