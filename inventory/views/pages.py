"""What every object page shares: its object, its path in the tree, tabs, actions, badges."""

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db.models import Model
from django.urls import reverse

from inventory.authorize import VIEW, Actor, authorize, may, visible
from inventory.errors import NotFound
from inventory.models import Cluster, Datacenter, Datastore, Host, PowerState, TargetKind, VirtualMachine
from inventory.views import extensions
from inventory.views.actions import actions_for

Place = Datacenter | Cluster | Host | Datastore | VirtualMachine

_QUERIES: Final = {
    TargetKind.DATACENTER: Datacenter.objects.all(),
    TargetKind.CLUSTER: Cluster.objects.select_related("datacenter"),
    TargetKind.HOST: Host.objects.select_related("cluster__datacenter"),
    TargetKind.DATASTORE: Datastore.objects.select_related("host__cluster__datacenter"),
    TargetKind.VIRTUAL_MACHINE: VirtualMachine.objects.select_related("host__cluster__datacenter"),
}
ICONS: Final = {
    TargetKind.DATACENTER: "building",
    TargetKind.CLUSTER: "cluster",
    TargetKind.HOST: "host",
    TargetKind.DATASTORE: "storage",
    TargetKind.VIRTUAL_MACHINE: "vm",
    TargetKind.KMS_CLUSTER: "key",
    TargetKind.STORAGE_POLICY: "shield-check",
    TargetKind.SYSLOG_TARGET: "list",
    TargetKind.CONSOLE: "shield",
}


@dataclass(frozen=True, slots=True)
class Tab:
    label: str
    url: str
    is_active: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the path from the root to the object."""

    kind: TargetKind
    id: UUID
    name: str

    @property
    def node(self) -> str:
        return f"{self.kind}-{self.id}"

    @property
    def url(self) -> str:
        return reverse("inventory:summary", args=[self.kind, self.id])


def load(kind: str, target_id: UUID, actor: Actor, *, as_way: bool = False) -> Place:
    """The object with all that stands above it, in one query. NotFound `<kind>_not_found`.

    `as_way`: a data center also for who may look at a cluster of it only. The page then shows no more than that.
    """
    target_kind = TargetKind(kind)
    target = _QUERIES[target_kind].filter(pk=target_id).first()
    if target is None:
        raise NotFound(
            f"{kind}_not_found",
            f"there is no {target_kind.label.lower()} {target_id}",
            hint="it may have been removed; look for it in the inventory",
        )
    if not (as_way and isinstance(target, Datacenter) and _is_way(target, actor)):
        authorize(actor, VIEW, target)
    if not isinstance(target, Place):
        raise TypeError(type(target).__name__)
    return target


def _is_way(target: Datacenter, actor: Actor) -> bool:
    return not may(actor, VIEW, target) and visible(Datacenter.objects.filter(pk=target.pk), actor).exists()


def load_vm(vm_id: UUID, actor: Actor) -> VirtualMachine:
    target = load(TargetKind.VIRTUAL_MACHINE, vm_id, actor)
    if not isinstance(target, VirtualMachine):
        raise TypeError(type(target).__name__)
    return target


def kind_of(target: Model) -> TargetKind:
    for kind, query in _QUERIES.items():
        if isinstance(target, query.model):
            return kind
    raise TypeError(type(target).__name__)


def path_of(target: Place) -> list[Step]:
    """From the data center down to the object itself."""
    above: Place | None = None
    if isinstance(target, Cluster):
        above = target.datacenter
    elif isinstance(target, Host):
        above = target.cluster
    elif isinstance(target, Datastore | VirtualMachine):
        above = target.host
    return [*(path_of(above) if above is not None else []), Step(kind_of(target), target.pk, target.name)]


def context(target: Place, actor: Actor, *, tab: str, section: str = "") -> dict[str, Any]:
    """For templates that extend inventory/object.html.

    `tab` is "summary", "monitor", "configure", "hosts" or "vms"; `section` the URL name of the entry that is
    chosen in the side navigation of Configure.
    """
    kind = kind_of(target)
    steps = path_of(target)
    tabs = _tabs(kind, target.pk, tab)
    return {
        "object": target,
        "kind": kind,
        "icon": ICONS[kind],
        "node": steps[-1].node,
        "path": steps,
        "tab": tab,
        "tabs": tabs if may(actor, VIEW, target) else tabs[:1],
        "sections": _sections(kind, target.pk, section),
        "monitor_sections": _monitor_sections(kind, target.pk, section),
        "actions": actions_for(kind, target, actor),
        "badges": [*_badges(target), *extensions.badges(kind, target)],
    }


def _tabs(kind: TargetKind, target_id: UUID, active: str) -> list[Tab]:
    names = [("summary", "Summary"), ("monitor", "Monitor"), ("configure", "Configure")]
    if kind in (TargetKind.DATACENTER, TargetKind.CLUSTER):
        names.append(("hosts", "Hosts"))
    if kind in (TargetKind.DATACENTER, TargetKind.CLUSTER, TargetKind.HOST):
        names.append(("vms", "VMs"))
    return [Tab(label, reverse(f"inventory:{name}", args=[kind, target_id]), name == active) for name, label in names]


def _sections(kind: TargetKind, target_id: UUID, active: str) -> dict[str, list[Tab]]:
    general = Tab(
        "General", reverse("inventory:configure", args=[kind, target_id]), active in ("", "inventory:configure")
    )
    groups = {"Settings": [general]}
    for section in extensions.sections(kind):
        entry = Tab(section.label, reverse(section.url_name, args=[target_id]), section.url_name == active)
        groups.setdefault(section.group, []).append(entry)
    return groups


def _monitor_sections(kind: TargetKind, target_id: UUID, active: str) -> list[Tab]:
    return [
        Tab(one.label, reverse(one.url_name, args=[target_id]), one.url_name == active)
        for one in extensions.monitor_sections(kind)
    ]


def _badges(target: Place) -> list[extensions.Badge]:
    """Beside the name."""
    if isinstance(target, Host):
        return {
            Host.State.CONNECTED.value: [("label-success", "connect", "Connected")],
            Host.State.DISCONNECTED.value: [("label-danger", "disconnect", "Disconnected")],
        }.get(target.state, [("label-info", "hourglass", "Connecting")])
    if isinstance(target, VirtualMachine):
        found = [_power_badge(target)]
        if target.is_nvram_encrypted or target.is_tpm_encrypted or target.disks.filter(is_encrypted=True).exists():
            found.append(("label-info", "lock", "Encrypted"))
        if target.tpm_model:
            found.append(("label-info", "shield-check", f"vTPM {target.tpm_version}".strip()))
        if target.has_managed_save:
            found.append(("label-warning", "pause-solid", "Saved state"))
        if not target.is_present:
            found.append(("label-warning", "warning-standard", "Not on its host"))
        return found
    return []


def _power_badge(vm: VirtualMachine) -> extensions.Badge:
    style, icon = {
        PowerState.ON.value: ("label-success", "play-solid"),
        PowerState.PAUSED.value: ("label-warning", "pause-solid"),
        PowerState.CRASHED.value: ("label-danger", "error-standard"),
        PowerState.UNKNOWN.value: ("label-warning", "unknown-status"),
    }.get(vm.power_state, ("", "stop"))
    return style, icon, vm.get_power_state_display()
