"""Who has which role where: given and taken away, each time with an event.

Nobody grants what they do not hold: an administrator of one cluster can make others there, and nowhere else. The last
administrator of everything stays.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.contrib.auth.models import Group, User
from django.db import transaction
from django.db.models import Q, QuerySet

from inventory import events
from inventory.authorize import ROLES, VIEW, VIEW_ALL, Actor, Privilege, Role, authorize, held_by
from inventory.errors import Conflict, Invalid, NotFound, Refused
from inventory.models import Cluster, Datacenter, RoleAssignment, Severity, TargetKind
from inventory.services.listings import FIRST, Listing, Paging, listed
from inventory.services.places import cluster_of, datacenter_of

ASSIGN: Final = "inventory.assign_role"
Place = Datacenter | Cluster | None


@dataclass(frozen=True, slots=True)
class Meaning:
    """A role and all that it holds, in the order of its privileges' names."""

    role: RoleAssignment.RoleName
    privileges: tuple[Privilege, ...]


def meanings() -> tuple[Meaning, ...]:
    """The five roles; they are the product's and no secret."""
    return tuple(Meaning(role, tuple(sorted(ROLES[Role(role)]))) for role in RoleAssignment.RoleName)


def place_of(kind: str, target_id: UUID | None) -> Place:
    """A data center or a cluster; without an id everything. Raises NotFound, Invalid `place_invalid`."""
    if target_id is None:
        return None
    if kind == TargetKind.DATACENTER:
        return datacenter_of(target_id)
    if kind == TargetKind.CLUSTER:
        return cluster_of(target_id)
    raise Invalid("place_invalid", "a role is given on a data center or a cluster", hint="or on everything")


def assignments(*, actor: Actor, place: Place = None, paging: Paging = FIRST) -> Listing[RoleAssignment]:
    """Without a place all of them, for those who may look at everything; of a place those that hold there, too from
    above, which only they see who may look there."""
    rows = RoleAssignment.objects.select_related("user", "group", "datacenter", "cluster__datacenter")
    if place is None:
        authorize(actor, VIEW_ALL)
        return listed(rows, paging)
    authorize(actor, VIEW, place)
    return listed(rows.filter(_reaching(place)), paging)


def assignment_of(assignment_id: UUID, *, actor: Actor) -> RoleAssignment:
    rows = RoleAssignment.objects.select_related("user", "group", "datacenter", "cluster__datacenter")
    found = rows.filter(pk=assignment_id).first()
    if found is None:
        raise NotFound("role_assignment_not_found", f"there is no role assignment {assignment_id}")
    if found.place is None:
        authorize(actor, VIEW_ALL)
    else:
        authorize(actor, VIEW, found.place)
    return found


def holders(*, actor: Actor, place: Place = None) -> tuple[list[str], list[str]]:
    """Names of users and of groups that a role can be given to, for somebody who may give one."""
    authorize(actor, ASSIGN, place)
    users = User.objects.filter(is_active=True).order_by("username").values_list("username", flat=True)
    return list(users), list(Group.objects.order_by("name").values_list("name", flat=True))


@transaction.atomic
def assign_role(
    *, role: str, actor: Actor, username: str = "", group: str = "", place_kind: str = "", place_id: UUID | None = None
) -> RoleAssignment:
    """Gives a role to a user or to a group, on a place or on everything.

    Raises NotFound (`user_not_found`, `group_not_found` ...), Invalid (`role_unknown`, `holder_invalid`,
    `place_invalid`), Conflict `role_assigned`, Refused (`not_permitted`, `role_beyond_own`).
    """
    place = place_of(place_kind, place_id)
    authorize(actor, ASSIGN, place)
    if role not in RoleAssignment.RoleName.values:
        choices = ", ".join(RoleAssignment.RoleName.values)
        raise Invalid("role_unknown", f"there is no role {role[:40]}", hint=f"one of {choices}")
    _refuse_beyond_own(Role(role), place, actor)
    if bool(username) == bool(group):
        raise Invalid("holder_invalid", "a role is given to a user or to a group", hint="name one of the two")
    user = _user(username) if username else None
    members = _group(group) if group else None
    datacenter = place if isinstance(place, Datacenter) else None
    cluster = place if isinstance(place, Cluster) else None
    values = {"user": user, "group": members, "role": role, "datacenter": datacenter, "cluster": cluster}
    if RoleAssignment.objects.filter(**values).exists():
        raise Conflict("role_assigned", f"{username or group} has this role on {place or 'everything'} already")
    made = RoleAssignment.objects.create(**values, assigned_by=actor.username)
    _record("role.assigned", f"{made}: assigned", made, actor)
    return made


@transaction.atomic
def remove_role(*, assignment_id: UUID, actor: Actor) -> None:
    """Takes it away; it ends with the holder's next request.

    Raises NotFound, Refused (`not_permitted`, `role_beyond_own`), Conflict `last_administrator`.
    """
    found = assignment_of(assignment_id, actor=actor)
    authorize(actor, ASSIGN, found.place)
    _refuse_beyond_own(Role(found.role), found.place, actor)
    _record("role.removed", f"{found}: taken away", found, actor)
    found.delete()
    refuse_without_administrator()


def refuse_without_administrator() -> None:
    """Raises Conflict `last_administrator` where nobody who can log in is an administrator of everything any more.

    Called after the change, in its transaction. Administrators' rows are locked, so that two who take each other's
    role at once do not both succeed.
    """
    list(RoleAssignment.objects.select_for_update().filter(_at_root()).values("pk"))
    if not administrators().exists():
        raise Conflict(
            "last_administrator",
            "nobody would be an administrator of everything any more",
            hint="make somebody else administrator first",
        )


def administrators() -> QuerySet[User]:
    """Users who can log in and may do everything everywhere."""
    rows = RoleAssignment.objects.filter(_at_root(), role=Role.ADMINISTRATOR)
    by_role = Q(pk__in=rows.values("user")) | Q(groups__in=rows.exclude(group=None).values("group"))
    return User.objects.filter(Q(is_superuser=True) | by_role, is_active=True).distinct()


def _at_root() -> Q:
    return Q(datacenter=None, cluster=None)


def _reaching(place: Datacenter | Cluster) -> Q:
    if isinstance(place, Datacenter):
        return _at_root() | Q(datacenter=place)
    return _at_root() | Q(datacenter=place.datacenter_id) | Q(cluster=place)


def _refuse_beyond_own(role: Role, place: Place, actor: Actor) -> None:
    held = held_by(actor)
    if isinstance(place, Cluster):
        own = held.at(place.datacenter_id, place.pk)
    else:
        own = held.at(place.pk, None) if place is not None else held.root
    beyond = sorted(ROLES[role] - own)
    if beyond:
        raise Refused(
            "role_beyond_own",
            f"{actor.username} cannot give or take {RoleAssignment.RoleName(role).label}: it holds {beyond[0]}, "
            f"which {actor.username} does not hold there",
            hint="ask somebody who holds all of the role's privileges there",
        )


def _user(username: str) -> User:
    found = User.objects.filter(username=username).first()
    if found is None:
        raise NotFound("user_not_found", f"there is no user {username[:80]}", hint="users are made in Administration")
    return found


def _group(name: str) -> Group:
    found = Group.objects.filter(name=name).first()
    if found is None:
        raise NotFound("group_not_found", f"there is no group {name[:80]}", hint="groups are made in Administration")
    return found


def _record(kind: str, text: str, row: RoleAssignment, actor: Actor) -> None:
    events.record(
        kind, text, target=row.place, actor=actor, severity=Severity.WARNING, role=row.role,
        user=None if row.user is None else row.user.username, group=None if row.group is None else row.group.name,
    )  # fmt: skip
