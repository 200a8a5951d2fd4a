"""May this actor do that, and which rows may they see? Every service asks here, and nowhere else is decided.

Denied by default. Rights come from role assignments (a user or a group x a role x a place); they hold on the place and
on all that stands below it. What stands nowhere in the tree (key providers, policies, the console itself) needs the
right at the root. A superuser of Django is an administrator at the root.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, TypeVar
from uuid import UUID

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Model, Q, QuerySet

from inventory.engine.privileges import ALL, RIGHTS, ROLES, VIEW_ACTION, Privilege, Role
from inventory.errors import Refused
from inventory.models import Cluster, Datacenter, Datastore, Disk, Host, RoleAssignment, TargetKind, VirtualMachine

__all__ = [
    "OWN", "RIGHTS", "ROLES", "SYSTEM", "VIEW", "VIEW_ALL", "Actor", "Held", "Privilege", "Refusal", "Role", "System",
    "authorize", "held_by", "limit", "may", "may_somewhere", "noting_refusals", "visible", "visible_targets",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class System:
    """The product itself as an actor: the schedule, the event listener, the lab's registration."""

    username: str = "Bartizan"


SYSTEM: Final = System()
Actor = User | AnonymousUser | System
Privileges = frozenset[Privilege]
Row = TypeVar("Row", bound=Model)

VIEW: Final = VIEW_ACTION
"""To look at the object; without one, to look at anything: the service then shows what is `visible`."""
OWN: Final = "own_account"
"""What everybody who can log in may do with what is theirs alone."""
VIEW_ALL: Final = "view_all"
"""To look at what belongs to no place: at the root."""
_NONE: Final[Privileges] = frozenset()
_HELD: Final = "_bartizan_held"
_LIMIT: Final = "_bartizan_limit"


@dataclass(frozen=True, slots=True)
class Held:
    """What somebody holds at the root, and besides on data centers and clusters, by their ids."""

    root: Privileges = _NONE
    datacenters: Mapping[UUID, Privileges] = field(default_factory=dict)
    clusters: Mapping[UUID, Privileges] = field(default_factory=dict)

    def at(self, datacenter: UUID | None, cluster: UUID | None) -> Privileges:
        found = self.root
        if datacenter is not None:
            found |= self.datacenters.get(datacenter, _NONE)
        return found if cluster is None else found | self.clusters.get(cluster, _NONE)

    def anywhere(self, needed: Privileges) -> bool:
        return any(needed <= one | self.root for one in (_NONE, *self.datacenters.values(), *self.clusters.values()))

    def within(self, kept: Privileges) -> "Held":
        return Held(
            self.root & kept,
            {place: one & kept for place, one in self.datacenters.items()},
            {place: one & kept for place, one in self.clusters.items()},
        )


def limit(user: User, privileges: Privileges) -> None:
    """From now on this object stands for the user with at most these privileges: the bearer of an API token."""
    setattr(user, _LIMIT, privileges)
    setattr(user, _HELD, None)


def held_by(actor: Actor) -> Held:
    """One query for each user object, which lives as long as a request."""
    if isinstance(actor, System):
        return Held(root=ALL)
    if isinstance(actor, AnonymousUser) or not actor.is_active:
        return Held()
    known: Held | None = getattr(actor, _HELD, None)
    if known is None:
        known = Held(root=ALL) if actor.is_superuser else _assigned(actor)
        kept: Privileges | None = getattr(actor, _LIMIT, None)
        if kept is not None:
            known = known.within(kept)
        setattr(actor, _HELD, known)
    return known


def _assigned(user: User) -> Held:
    root: Privileges = _NONE
    datacenters: dict[UUID, Privileges] = {}
    clusters: dict[UUID, Privileges] = {}
    rows = RoleAssignment.objects.filter(Q(user=user) | Q(group__user=user))
    for row in rows:
        held = ROLES[Role(row.role)]
        if row.cluster_id is not None:
            clusters[row.cluster_id] = clusters.get(row.cluster_id, _NONE) | held
        elif row.datacenter_id is not None:
            datacenters[row.datacenter_id] = datacenters.get(row.datacenter_id, _NONE) | held
        else:
            root |= held
    return Held(root, datacenters, clusters)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Who asked `authorize` for what in vain."""

    actor: str
    action: str
    target: Model | None


_NOTED: Final[ContextVar[list[Refusal] | None]] = ContextVar("refusals", default=None)


@contextmanager
def noting_refusals() -> Iterator[list[Refusal]]:
    """Refusals within, whether or not somebody catches them: for the history (services/access.py)."""
    found: list[Refusal] = []
    token = _NOTED.set(found)
    try:
        yield found
    finally:
        _NOTED.reset(token)


def may(actor: Actor, action: str, target: Model | None = None) -> bool:
    """Whether `actor` holds the right; `action` is one of RIGHTS, any other is nobody's."""
    right, held = RIGHTS.get(action), held_by(actor)
    if isinstance(actor, System):
        return True
    if right is None or not actor.is_active:
        return False
    needed = right.needs | right.if_encrypted
    if needed <= held.root:
        return True
    if target is None:
        return held.anywhere(needed) if action == VIEW else right.needs <= held.root
    holds = held.at(*_place_of(target)) if held.datacenters or held.clusters else held.root
    return right.needs <= holds and (needed <= holds or not _is_encrypted(target))


def may_somewhere(actor: Actor, action: str) -> bool:
    """Whether `actor` holds the right on any object at all: for controls that name no single one."""
    right = RIGHTS.get(action)
    return right is not None and may(actor, OWN) and held_by(actor).anywhere(right.needs)


def authorize(actor: Actor, action: str, target: Model | None = None) -> None:
    """Refuses (`not_permitted`) where `may` says no. An object that the actor may not see is not named."""
    if not may(actor, action, target):
        noted = _NOTED.get()
        if noted is not None:
            noted.append(Refusal(actor.username, action, target))
        what = "" if target is None else f" on {target}" if may(actor, VIEW, target) else " on this object"
        raise Refused(
            "not_permitted",
            f"{actor.username or 'nobody'} may not {action}{what}",
            hint="ask an administrator of this console for a role that has the right",
        )


def _place_of(target: Model) -> tuple[UUID | None, UUID | None]:
    """Ids of the data center and the cluster that the object stands in."""
    if isinstance(target, Disk):
        target = target.virtual_machine
    if isinstance(target, VirtualMachine | Datastore):
        target = target.host
    if isinstance(target, Host):
        target = target.cluster
    if isinstance(target, Cluster):
        return target.datacenter_id, target.pk
    return (target.pk, None) if isinstance(target, Datacenter) else (None, None)


def _is_encrypted(target: Model) -> bool:
    return isinstance(target, VirtualMachine) and (
        target.is_nvram_encrypted or target.is_tpm_encrypted or target.disks.filter(is_encrypted=True).exists()
    )


_TO_CLUSTER: Final[Mapping[type[Model], str]] = {
    Cluster: "",
    Host: "cluster",
    Datastore: "host__cluster",
    VirtualMachine: "host__cluster",
}


def visible(rows: QuerySet[Row], actor: Actor, *, to_host: str = "") -> QuerySet[Row]:
    """Those of the rows that the actor may look at; all, with no change to the query, for one who may at the root.

    Rows of places, hosts, datastores and VMs; of other models where `to_host` is the way to their host. Data centers
    are also seen by who may look at a cluster of theirs, as its way.
    """
    held = held_by(actor)
    if Privilege.VIEW in held.root:
        return rows
    datacenters = [place for place, one in held.datacenters.items() if Privilege.VIEW in one]
    clusters = [place for place, one in held.clusters.items() if Privilege.VIEW in one]
    if rows.model is Datacenter:
        ways = Cluster.objects.filter(pk__in=clusters).values("datacenter")
        return rows.filter(Q(pk__in=datacenters) | Q(pk__in=ways))
    way = f"{to_host}__cluster" if to_host else _TO_CLUSTER[rows.model]
    above = f"{way}__datacenter__in" if way else "datacenter__in"
    return rows.filter(Q(**{f"{way or 'pk'}__in": clusters}) | Q(**{above: datacenters}))


def visible_targets(rows: QuerySet[Row], actor: Actor) -> QuerySet[Row]:
    """Of jobs, events and alarms those about objects that the actor may look at. In the same query.

    What is about no place, or about an object that is gone, is for those who may look at the root.
    """
    if Privilege.VIEW in held_by(actor).root:
        return rows
    wanted = Q(pk__in=[])
    for kind, model in (
        (TargetKind.CLUSTER, Cluster),
        (TargetKind.HOST, Host),
        (TargetKind.DATASTORE, Datastore),
        (TargetKind.VIRTUAL_MACHINE, VirtualMachine),
    ):
        wanted |= Q(target_kind=kind, target_id__in=visible(model._default_manager.all(), actor).values("pk"))
    datacenters = [place for place, one in held_by(actor).datacenters.items() if Privilege.VIEW in one]
    return rows.filter(wanted | Q(target_kind=TargetKind.DATACENTER, target_id__in=datacenters))
