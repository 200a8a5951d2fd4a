"""Routes of data centers, clusters, hosts and datastores."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router

from inventory.api.frame import PageQuery, actor_of, page_of
from inventory.api.schemas import (
    ClusterIn,
    ClusterOut,
    ClusterPage,
    DatacenterOut,
    DatacenterPage,
    DatastoreOut,
    DatastorePage,
    HostChange,
    HostChanged,
    HostIn,
    HostOut,
    HostPage,
    HostState,
    JobOut,
    NameIn,
)
from inventory.services import hosts, listings, places

router = Router()


@router.get("/datacenters", response=DatacenterPage, tags=["Data centers"])
def list_datacenters(request: HttpRequest, page: Query[PageQuery]) -> dict[str, Any]:
    """By name."""
    return page_of(listings.datacenters(actor=actor_of(request), paging=page.paging()), DatacenterOut.of)


@router.post("/datacenters", response={201: DatacenterOut}, tags=["Data centers"])
def add_datacenter(request: HttpRequest, wanted: NameIn) -> DatacenterOut:
    added = places.add_datacenter(name=wanted.name, actor=actor_of(request))
    return get_datacenter(request, added.pk)


@router.get("/datacenters/{uuid:datacenter_id}", response=DatacenterOut, tags=["Data centers"])
def get_datacenter(request: HttpRequest, datacenter_id: UUID) -> DatacenterOut:
    return DatacenterOut.of(listings.datacenter(datacenter_id=datacenter_id, actor=actor_of(request)))


@router.patch("/datacenters/{uuid:datacenter_id}", response=DatacenterOut, tags=["Data centers"])
def rename_datacenter(request: HttpRequest, datacenter_id: UUID, wanted: NameIn) -> DatacenterOut:
    places.rename_datacenter(datacenter_id=datacenter_id, name=wanted.name, actor=actor_of(request))
    return get_datacenter(request, datacenter_id)


@router.delete("/datacenters/{uuid:datacenter_id}", response={204: None}, tags=["Data centers"])
def remove_datacenter(request: HttpRequest, datacenter_id: UUID) -> None:
    """Refused while clusters are in it."""
    places.remove_datacenter(datacenter_id=datacenter_id, actor=actor_of(request))


@router.get("/clusters", response=ClusterPage, tags=["Clusters"])
def list_clusters(request: HttpRequest, page: Query[PageQuery], datacenter_id: UUID | None = None) -> dict[str, Any]:
    """By name."""
    found = listings.clusters(actor=actor_of(request), datacenter_id=datacenter_id, paging=page.paging())
    return page_of(found, ClusterOut.of)


@router.post("/clusters", response={201: ClusterOut}, tags=["Clusters"])
def add_cluster(request: HttpRequest, wanted: ClusterIn) -> ClusterOut:
    added = places.add_cluster(datacenter_id=wanted.datacenter_id, name=wanted.name, actor=actor_of(request))
    return get_cluster(request, added.pk)


@router.get("/clusters/{uuid:cluster_id}", response=ClusterOut, tags=["Clusters"])
def get_cluster(request: HttpRequest, cluster_id: UUID) -> ClusterOut:
    return ClusterOut.of(listings.cluster(cluster_id=cluster_id, actor=actor_of(request)))


@router.patch("/clusters/{uuid:cluster_id}", response=ClusterOut, tags=["Clusters"])
def rename_cluster(request: HttpRequest, cluster_id: UUID, wanted: NameIn) -> ClusterOut:
    places.rename_cluster(cluster_id=cluster_id, name=wanted.name, actor=actor_of(request))
    return get_cluster(request, cluster_id)


@router.delete("/clusters/{uuid:cluster_id}", response={204: None}, tags=["Clusters"])
def remove_cluster(request: HttpRequest, cluster_id: UUID) -> None:
    """Refused while hosts are in it."""
    places.remove_cluster(cluster_id=cluster_id, actor=actor_of(request))


@router.get("/hosts", response=HostPage, tags=["Hosts"])
def list_hosts(
    request: HttpRequest,
    page: Query[PageQuery],
    cluster_id: UUID | None = None,
    datacenter_id: UUID | None = None,
    state: HostState | None = None,
) -> dict[str, Any]:
    """By name."""
    found = listings.hosts(
        actor=actor_of(request),
        cluster_id=cluster_id,
        datacenter_id=datacenter_id,
        state=state or "",
        paging=page.paging(),
    )
    return page_of(found, HostOut.of)


@router.post("/hosts", response={202: JobOut}, tags=["Hosts"])
def add_host(request: HttpRequest, wanted: HostIn) -> JobOut:
    """The job connects the host, which is its target, and reads what is on it."""
    return JobOut.of(hosts.add_host(actor=actor_of(request), **wanted.dict()))


@router.get("/hosts/{uuid:host_id}", response=HostOut, tags=["Hosts"])
def get_host(request: HttpRequest, host_id: UUID) -> HostOut:
    return HostOut.of(listings.host(host_id=host_id, actor=actor_of(request)))


@router.patch("/hosts/{uuid:host_id}", response=HostChanged, tags=["Hosts"])
def edit_host(request: HttpRequest, host_id: UUID, wanted: HostChange) -> HostChanged:
    """Changes the name and the ways to the host."""
    actor = actor_of(request)
    before = listings.host(host_id=host_id, actor=actor)
    values = {
        name: getattr(before, name) if given is None else given
        for name, given in wanted.dict(exclude_unset=False).items()
    }
    job = hosts.edit_host(host_id=host_id, actor=actor, **values)
    return HostChanged(host=get_host(request, host_id), job=None if job is None else JobOut.of(job))


@router.delete("/hosts/{uuid:host_id}", response={204: None}, tags=["Hosts"])
def remove_host(request: HttpRequest, host_id: UUID) -> None:
    """Drops the host and its virtual machines from the inventory. Nothing changes on the host itself."""
    hosts.remove_host(host_id=host_id, actor=actor_of(request))


@router.post("/hosts/{uuid:host_id}/refresh", response={202: JobOut}, tags=["Hosts"])
def refresh_host(request: HttpRequest, host_id: UUID) -> JobOut:
    """Reads the host anew; the way to try a disconnected host again."""
    return JobOut.of(hosts.refresh_host(host_id=host_id, actor=actor_of(request)))


@router.get("/datastores", response=DatastorePage, tags=["Datastores"])
def list_datastores(request: HttpRequest, page: Query[PageQuery], host_id: UUID | None = None) -> dict[str, Any]:
    """By name."""
    found = listings.datastores(actor=actor_of(request), host_id=host_id, paging=page.paging())
    return page_of(found, DatastoreOut.of)


@router.get("/datastores/{uuid:datastore_id}", response=DatastoreOut, tags=["Datastores"])
def get_datastore(request: HttpRequest, datastore_id: UUID) -> DatastoreOut:
    return DatastoreOut.of(listings.datastore(datastore_id=datastore_id, actor=actor_of(request)))
