"""The Actions menu of an object: the same entries in its page's menu and in the tree's context menu."""

from django.db.models import Model
from django.urls import reverse

from inventory.authorize import Actor, may
from inventory.models import Host, PowerState, TargetKind, VirtualMachine
from inventory.services import console, hosts, places, saved_state, virtual_machines
from inventory.views import extensions, power
from inventory.views.extensions import Action

Menu = list[tuple[str, list[Action]]]


def actions_for(kind: TargetKind, target: Model, actor: Actor) -> Menu:
    """Groups in order, each with the entries that the actor has the right to; pages to look at are for all."""
    menu: dict[str, list[Action]] = {}
    for action in [*_own(kind, target), *extensions.actions(kind, target, actor), *_removal(kind, target)]:
        if may(actor, action.action, target):
            menu.setdefault(action.group, []).append(action)
    return list(menu.items())


def _own(kind: TargetKind, target: Model) -> list[Action]:
    def url(name: str) -> str:
        return reverse(f"inventory:{name}", args=[target.pk])

    if kind == TargetKind.DATACENTER:
        return [
            Action("New Cluster…", url("add-cluster"), "cluster", "New", action=places.ADD_CLUSTER),
            Action("Rename…", url("rename-datacenter"), "pencil", "Edit", action=places.EDIT),
        ]
    if kind == TargetKind.CLUSTER:
        return [
            Action("Add Host…", url("add-host"), "host", "New", action=hosts.ADD),
            Action("Rename…", url("rename-cluster"), "pencil", "Edit", action=places.EDIT),
        ]
    if isinstance(target, Host):
        return [
            Action("Refresh", url("refresh-host"), "refresh", "Connection", is_direct=True, action=hosts.READ),
            Action("Edit Connection…", url("edit-host"), "pencil", "Connection", action=hosts.EDIT),
        ]
    if isinstance(target, VirtualMachine):
        return _power(target)
    return []


def _power(vm: VirtualMachine) -> list[Action]:
    off, running = vm.power_state in (PowerState.OFF, PowerState.CRASHED), vm.is_running
    gone = "" if vm.is_present else "its host does not list it"

    def action(label: str, verb: str, icon: str, possible: bool, why_not: str, direct: bool) -> Action:
        where = reverse("inventory:power", args=[vm.pk, verb])
        refusal = gone or ("" if possible else why_not)
        return Action(label, where, icon, "Power", direct, refusal, action=power.VERBS[verb].action)

    discard = Action(
        "Discard Saved State…", reverse("inventory:discard-saved-state", args=[vm.pk]), "undo", "Power", why_not=gone,
        action=saved_state.DISCARD.name,
    )  # fmt: skip
    text = reverse("inventory:console", args=[vm.pk])
    return [
        action("Power On", "on", "play", off, "it is not powered off", True),
        action("Shut Down Guest", "shut-down", "power", running, "it is not running", True),
        action("Power Off…", "off", "stop", running, "it is not running", False),
        action("Reboot…", "reboot", "refresh", running, "it is not running", False),
        *([discard] if vm.has_managed_save else []),
        Action("Serial Console", text, "terminal", "View", is_page=True, action=console.READ),
    ]


def _removal(kind: TargetKind, target: Model) -> list[Action]:
    names = {
        TargetKind.DATACENTER: ("remove-datacenter", "Remove…", places.REMOVE),
        TargetKind.CLUSTER: ("remove-cluster", "Remove…", places.REMOVE),
        TargetKind.HOST: ("remove-host", "Remove from Inventory…", hosts.REMOVE),
        TargetKind.VIRTUAL_MACHINE: ("remove-vm", "Remove from Inventory…", virtual_machines.REMOVE),
    }
    if kind not in names:
        return []
    name, label, right = names[kind]
    present = isinstance(target, VirtualMachine) and target.is_present
    why_not = "its host still lists it" if present else ""
    url = reverse(f"inventory:{name}", args=[target.pk])
    return [Action(label, url, "trash", "Remove", False, why_not, action=right)]
