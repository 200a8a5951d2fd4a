"""Addresses below /inventory/. An object has its kind and id in its address, so a rename breaks no link."""

from django.urls import path, register_converter

from inventory.views import hardware, lists, objects, places, power, roles, tree
from inventory.views.extensions import PAGE_KINDS


class KindConverter:
    regex = "|".join(PAGE_KINDS)

    def to_python(self, value: str) -> str:
        return value

    def to_url(self, value: str) -> str:
        return str(value)


class VerbConverter(KindConverter):
    regex = "|".join(power.VERBS)


class TreeConverter(KindConverter):
    regex = "|".join(tree.VIEWS)


class PlaceConverter(KindConverter):
    regex = "datacenter|cluster"


class ListedConverter(KindConverter):
    regex = "datacenter|cluster|host"


register_converter(KindConverter, "kind")
register_converter(VerbConverter, "verb")
register_converter(TreeConverter, "tree")
register_converter(PlaceConverter, "place")
register_converter(ListedConverter, "listed")

app_name = "inventory"
urlpatterns = [
    path("", objects.root, name="root"),
    path("tree/", tree.whole, name="tree"),
    path("tree/<tree:view>/<kind:kind>/<uuid:target_id>/", tree.children, name="tree-children"),
    path("datacenters/add/", places.add_datacenter, name="add-datacenter"),
    path("datacenter/<uuid:target_id>/rename/", places.rename, {"kind": "datacenter"}, name="rename-datacenter"),
    path("datacenter/<uuid:target_id>/remove/", places.remove, {"kind": "datacenter"}, name="remove-datacenter"),
    path("datacenter/<uuid:datacenter_id>/clusters/add/", places.add_cluster, name="add-cluster"),
    path("cluster/<uuid:target_id>/rename/", places.rename, {"kind": "cluster"}, name="rename-cluster"),
    path("cluster/<uuid:target_id>/remove/", places.remove, {"kind": "cluster"}, name="remove-cluster"),
    path("cluster/<uuid:cluster_id>/hosts/add/", places.add_host, name="add-host"),
    path("host/<uuid:host_id>/edit/", places.edit_host, name="edit-host"),
    path("host/<uuid:host_id>/refresh/", places.refresh_host, name="refresh-host"),
    path("host/<uuid:target_id>/remove/", places.remove, {"kind": "host"}, name="remove-host"),
    path("host/<uuid:host_id>/configure/abilities/", hardware.abilities, name="host-abilities"),
    path("vm/<uuid:vm_id>/windows-11/", hardware.windows_card, name="windows-card"),
    path("vm/<uuid:vm_id>/power/<verb:verb>/", power.change_power, name="power"),
    path("vm/<uuid:vm_id>/remove/", power.remove_vm, name="remove-vm"),
    path("vm/<uuid:vm_id>/saved-state/discard/", power.discard_saved_state, name="discard-saved-state"),
    path("vm/<uuid:vm_id>/console/", power.show_console, name="console"),
    path(
        "datacenter/<uuid:target_id>/permissions/",
        roles.of_place,
        {"kind": "datacenter"},
        name="datacenter-permissions",
    ),
    path("cluster/<uuid:target_id>/permissions/", roles.of_place, {"kind": "cluster"}, name="cluster-permissions"),
    path("<kind:kind>/<uuid:target_id>/", objects.summary, name="summary"),
    path("<kind:kind>/<uuid:target_id>/monitor/", objects.monitor, name="monitor"),
    path("<kind:kind>/<uuid:target_id>/configure/", objects.configure, name="configure"),
    path("<kind:kind>/<uuid:target_id>/actions/", objects.menu, name="actions"),
    path("<listed:kind>/<uuid:target_id>/vms/", lists.vms, name="vms"),
    path("<place:kind>/<uuid:target_id>/hosts/", lists.hosts, name="hosts"),
]
