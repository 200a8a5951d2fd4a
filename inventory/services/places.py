"""Data centers and clusters: where hosts are put."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Model, ProtectedError

from inventory import events
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Cluster, Datacenter

ADD_DATACENTER: Final = "inventory.add_datacenter"
ADD_CLUSTER: Final = "inventory.add_cluster"
EDIT: Final = "inventory.edit_place"
REMOVE: Final = "inventory.remove_place"


def add_datacenter(*, name: str, actor: Actor) -> Datacenter:
    """Raises Invalid `name_invalid`, Conflict `name_taken`."""
    authorize(actor, ADD_DATACENTER)
    name = checked_name(name, 80)
    with _unique(name, "data center"), transaction.atomic():
        datacenter = Datacenter.objects.create(name=name)
        events.record("datacenter.added", f"Data center {name} added", target=datacenter, actor=actor)
    return datacenter


def add_cluster(*, datacenter_id: UUID, name: str, actor: Actor) -> Cluster:
    """Raises NotFound, Invalid `name_invalid`, Conflict `name_taken`."""
    datacenter = datacenter_of(datacenter_id)
    authorize(actor, ADD_CLUSTER, datacenter)
    name = checked_name(name, 80)
    with _unique(name, "cluster"), transaction.atomic():
        cluster = Cluster.objects.create(datacenter=datacenter, name=name)
        events.record("cluster.added", f"Cluster {name} added to {datacenter}", target=cluster, actor=actor)
    return cluster


def rename_datacenter(*, datacenter_id: UUID, name: str, actor: Actor) -> Datacenter:
    datacenter = datacenter_of(datacenter_id)
    _rename(datacenter, datacenter.name, name, "data center", actor)
    return datacenter


def rename_cluster(*, cluster_id: UUID, name: str, actor: Actor) -> Cluster:
    cluster = cluster_of(cluster_id)
    _rename(cluster, cluster.name, name, "cluster", actor)
    return cluster


def remove_datacenter(*, datacenter_id: UUID, actor: Actor) -> None:
    """Raises Conflict `not_empty` while clusters are in it."""
    _remove(datacenter_of(datacenter_id), "data center", "remove its clusters first", actor)


def remove_cluster(*, cluster_id: UUID, actor: Actor) -> None:
    """Raises Conflict `not_empty` while hosts are in it."""
    _remove(cluster_of(cluster_id), "cluster", "remove its hosts first", actor)


def datacenter_of(datacenter_id: UUID) -> Datacenter:
    found = Datacenter.objects.filter(pk=datacenter_id).first()
    if found is None:
        raise NotFound("datacenter_not_found", f"there is no data center {datacenter_id}")
    return found


def cluster_of(cluster_id: UUID) -> Cluster:
    found = Cluster.objects.select_related("datacenter").filter(pk=cluster_id).first()
    if found is None:
        raise NotFound("cluster_not_found", f"there is no cluster {cluster_id}")
    return found


def checked_name(name: str, longest: int) -> str:
    """The name without blanks around it. Raises Invalid for an empty or too long one, or one that cannot be printed."""
    name = name.strip()
    if not name or len(name) > longest or not name.isprintable():
        raise Invalid(
            "name_invalid",
            f"a name has 1 to {longest} printable characters",
            hint="choose another name",
        )
    return name


@contextmanager
def _unique(name: str, what: str) -> Iterator[None]:
    """Tells a broken uniqueness as Conflict `name_taken`."""
    try:
        yield
    except IntegrityError as exc:
        raise Conflict("name_taken", f"there is a {what} {name} already", hint="choose another name") from exc


def _rename(place: Datacenter | Cluster, old: str, new: str, what: str, actor: Actor) -> None:
    authorize(actor, EDIT, place)
    place.name = checked_name(new, 80)
    if place.name == old:
        return
    with _unique(place.name, what), transaction.atomic():
        place.save(update_fields=["name"])
        text = f"{what.capitalize()} {old} renamed to {place.name}"
        events.record(f"{events.kind_of(place).value}.renamed", text, target=place, actor=actor, before=old)


def _remove(place: Model, what: str, hint: str, actor: Actor) -> None:
    authorize(actor, REMOVE, place)
    name = str(place)
    with transaction.atomic():
        events.record(
            f"{events.kind_of(place).value}.removed", f"{what.capitalize()} {name} removed", target=place, actor=actor
        )
        try:
            place.delete()
        except ProtectedError as exc:
            raise Conflict("not_empty", f"{what} {name} is not empty", hint=hint) from exc
