"""Routes of roles and their assignments."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router, Schema
from pydantic import Field

from inventory.api.frame import Input, PageOut, PageQuery, Text, actor_of, page_of
from inventory.api.schemas import Ref
from inventory.errors import Invalid
from inventory.models import RoleAssignment, TargetKind
from inventory.services import roles

router = Router(tags=["Roles"])


class RoleOut(Schema):
    """One of the five roles, and all that it holds."""

    role: str
    label: str
    privileges: list[str]

    @classmethod
    def of(cls, row: roles.Meaning) -> Self:
        return cls(role=row.role.value, label=row.role.label, privileges=[one.value for one in row.privileges])


class RoleAssignmentOut(Schema):
    """Of a user or of a group; on a data center, on a cluster, or on everything."""

    id: UUID
    role: str
    user: str | None
    group: str | None
    datacenter: Ref | None
    cluster: Ref | None
    assigned_at: datetime
    assigned_by: str

    @classmethod
    def of(cls, row: RoleAssignment) -> Self:
        return cls(
            id=row.pk,
            role=row.role,
            user=None if row.user is None else row.user.username,
            group=None if row.group is None else row.group.name,
            datacenter=None if row.datacenter is None else Ref.of(row.datacenter),
            cluster=None if row.cluster is None else Ref.of(row.cluster),
            assigned_at=row.assigned_at,
            assigned_by=row.assigned_by,
        )


class RoleAssignmentPage(PageOut):
    items: list[RoleAssignmentOut]


class PlaceQuery(PageQuery):
    """Those that hold on one place, on itself or from above; without one all there are."""

    datacenter_id: UUID | None = None
    cluster_id: UUID | None = None


class RoleAssignmentIn(Input):
    """`user` or `group` by name; `datacenter_id` or `cluster_id`, or neither: on everything."""

    role: Annotated[str, Field(max_length=32)]
    user: Text = ""
    group: Text = ""
    datacenter_id: UUID | None = None
    cluster_id: UUID | None = None


@router.get("/roles", response=list[RoleOut])
def list_roles(request: HttpRequest) -> list[RoleOut]:
    return [RoleOut.of(one) for one in roles.meanings()]


@router.get("/role-assignments", response=RoleAssignmentPage)
def list_role_assignments(request: HttpRequest, query: Query[PlaceQuery]) -> dict[str, Any]:
    place = roles.place_of(*_place(query.datacenter_id, query.cluster_id))
    found = roles.assignments(actor=actor_of(request), place=place, paging=query.paging())
    return page_of(found, RoleAssignmentOut.of)


@router.post("/role-assignments", response={201: RoleAssignmentOut})
def assign_role(request: HttpRequest, wanted: RoleAssignmentIn) -> RoleAssignmentOut:
    """Nobody gives a role that holds more than they hold there themselves."""
    kind, place_id = _place(wanted.datacenter_id, wanted.cluster_id)
    made = roles.assign_role(
        role=wanted.role, username=wanted.user, group=wanted.group, place_kind=kind, place_id=place_id,
        actor=actor_of(request),
    )  # fmt: skip
    return RoleAssignmentOut.of(made)


@router.delete("/role-assignments/{uuid:assignment_id}", response={204: None})
def remove_role(request: HttpRequest, assignment_id: UUID) -> None:
    """Refused for the last administrator of everything."""
    roles.remove_role(assignment_id=assignment_id, actor=actor_of(request))


def _place(datacenter_id: UUID | None, cluster_id: UUID | None) -> tuple[str, UUID | None]:
    if datacenter_id is not None and cluster_id is not None:
        raise Invalid("place_invalid", "a role is given on one place", hint="name a data center or a cluster")
    if datacenter_id is not None:
        return TargetKind.DATACENTER, datacenter_id
    return (TargetKind.CLUSTER, cluster_id) if cluster_id is not None else ("", None)
