"""Where the apps above plug into inventory's pages. They register when their `views` module is imported.

    extensions.add_navigation(Entry("Key Providers", "encryption:kms", "key"))
    extensions.add_section(TargetKind.VIRTUAL_MACHINE, Section("Security", "VM Options", "encryption:vm-options"))
    extensions.add_monitor_section(TargetKind.HOST, Section("", "Leftovers", "encryption:host-leftovers"))
    extensions.add_action(TargetKind.VIRTUAL_MACHINE, vm_actions)      # (target, actor) -> [Action, ...]
    extensions.add_badges(TargetKind.VIRTUAL_MACHINE, vm_badges)      # (target) -> [(label class, icon, word), ...]
    extensions.add_list_badges(TargetKind.VIRTUAL_MACHINE, list_badges)  # (ids) -> {id: [badge, ...]}
    extensions.add_counts(vm_counts)   # (QuerySet of VMs) -> [(style, icon, word, number), ...]
    extensions.add_card(TargetKind.VIRTUAL_MACHINE, "encryption:vm-card")   # loaded by htmx into the Summary tab
    extensions.add_target(TargetKind.KMS_CLUSTER, "encryption:kms-cluster") # links of jobs and events

Every URL name of an object takes its id as the one positional argument.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db.models import Model, QuerySet
from django.urls import reverse

from inventory.authorize import VIEW, Actor, may
from inventory.models import TargetKind, VirtualMachine


@dataclass(frozen=True, slots=True)
class Entry:
    """A link in the header."""

    label: str
    url_name: str
    icon: str
    action: str = VIEW  # the right without which it is absent

    @property
    def url(self) -> str:
        return reverse(self.url_name)


@dataclass(frozen=True, slots=True)
class Section:
    """An entry in the side navigation of an object's Configure tab, below the heading `group`."""

    group: str
    label: str
    url_name: str


@dataclass(frozen=True, slots=True)
class Action:
    """An entry of the Actions menu. `url` shows a dialog's form (GET); with `is_direct` a click posts to it at once,
    with `is_page` it is a page to go to.

    `action` is the right that its service asks for: without it the entry is absent. `why_not` says why it cannot be
    used now; the entry is then shown but does nothing.
    """

    label: str
    url: str
    icon: str
    group: str = ""
    is_direct: bool = False
    why_not: str = ""
    is_page: bool = False
    action: str = VIEW


Badge = tuple[str, str, str]  # label class, icon, word
Actions = Callable[[Model, Actor], Sequence[Action]]
Badges = Callable[[Model], Sequence[Badge]]
ListBadges = Callable[[Sequence[UUID]], Mapping[UUID, Sequence[Badge]]]
Count = tuple[str, str, str, int]  # style of a status, icon, word, number
Counts = Callable[[QuerySet[VirtualMachine]], Sequence[Count]]

_navigation: list[Entry] = [Entry("Inventory", "inventory:root", "tree-view")]
_sections: dict[TargetKind, list[Section]] = defaultdict(list)
_sections[TargetKind.DATACENTER].append(Section("Settings", "Permissions", "inventory:datacenter-permissions"))
_sections[TargetKind.CLUSTER].append(Section("Settings", "Permissions", "inventory:cluster-permissions"))
_monitor_sections: dict[TargetKind, list[Section]] = defaultdict(list)
_actions: dict[TargetKind, list[Actions]] = defaultdict(list)
_badges: dict[TargetKind, list[Badges]] = defaultdict(list)
_list_badges: dict[TargetKind, list[ListBadges]] = defaultdict(list)
_counts: list[Counts] = []
_list_actions: dict[TargetKind, list[Entry]] = defaultdict(list)
_cards: dict[TargetKind, list[tuple[bool, str]]] = defaultdict(list)
_targets: dict[str, str] = {}


def add_navigation(entry: Entry) -> None:
    _navigation.append(entry)


def add_section(kind: TargetKind, section: Section) -> None:
    _sections[kind].append(section)


def add_monitor_section(kind: TargetKind, section: Section) -> None:
    """An entry in the side navigation of an object's Monitor tab; `group` is not shown there."""
    _monitor_sections[kind].append(section)


def add_action(kind: TargetKind, actions: Actions) -> None:
    _actions[kind].append(actions)


def add_badges(kind: TargetKind, badges: Badges) -> None:
    _badges[kind].append(badges)


def add_list_badges(kind: TargetKind, badges: ListBadges) -> None:
    _list_badges[kind].append(badges)


def add_counts(counts: Counts) -> None:
    _counts.append(counts)


def add_list_action(kind: TargetKind, entry: Entry) -> None:
    """A button below a list, for the lines that are chosen: GET with the id of each as `vm`."""
    _list_actions[kind].append(entry)


def list_actions(kind: TargetKind, actor: Actor) -> Sequence[Entry]:
    return tuple(entry for entry in _list_actions[kind] if may(actor, entry.action))


def add_card(kind: TargetKind, url_name: str, *, is_last: bool = False) -> None:
    """`is_last`: behind those of the apps above."""
    _cards[kind].append((is_last, url_name))


def add_target(kind: TargetKind, url_name: str) -> None:
    _targets[kind] = url_name


def navigation(actor: Actor) -> Sequence[Entry]:
    return tuple(entry for entry in _navigation if may(actor, entry.action))


def sections(kind: TargetKind) -> Sequence[Section]:
    return tuple(_sections[kind])


def monitor_sections(kind: TargetKind) -> Sequence[Section]:
    return tuple(_monitor_sections[kind])


def actions(kind: TargetKind, target: Model, actor: Actor) -> list[Action]:
    return [action for source in _actions[kind] for action in source(target, actor)]


def badges(kind: TargetKind, target: Model) -> list[Badge]:
    return [badge for source in _badges[kind] for badge in source(target)]


def list_badges(kind: TargetKind, ids: Sequence[UUID]) -> Mapping[UUID, Sequence[Badge]]:
    """Of the lines of a list, each source asked once."""
    found: dict[UUID, list[Badge]] = defaultdict(list)
    for source in _list_badges[kind]:
        for target_id, badges in source(ids).items():
            found[target_id].extend(badges)
    return found


def counts(vms: QuerySet[VirtualMachine]) -> list[Count]:
    """What the apps above count among the VMs of a place."""
    return [count for source in _counts for count in source(vms)]


def card_urls(kind: TargetKind, target_id: UUID) -> list[str]:
    return [reverse(name, args=[target_id]) for _, name in sorted(_cards[kind], key=lambda card: card[0])]


def target_url(kind: str, target_id: UUID | None) -> str:
    """The page of a job's or event's object; empty where it has none."""
    if target_id is None:
        return ""
    if kind in _targets:
        return reverse(_targets[kind], args=[target_id])
    if kind in PAGE_KINDS:
        return reverse("inventory:summary", args=[kind, target_id])
    return ""


PAGE_KINDS = (
    TargetKind.DATACENTER,
    TargetKind.CLUSTER,
    TargetKind.HOST,
    TargetKind.DATASTORE,
    TargetKind.VIRTUAL_MACHINE,
)
