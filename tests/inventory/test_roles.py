"""Roles: who sees what, who does what, and who gives them, through the pages and the API."""

from dataclasses import dataclass
from uuid import uuid4

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.test import Client
from django.urls import reverse

from inventory import events
from inventory.alarms import raise_alarm
from inventory.authorize import Privilege, Role, held_by, limit, may, may_somewhere
from inventory.engine.privileges import ALL, CRYPTOGRAPHIC, GRANTING, RIGHTS, ROLES
from inventory.errors import Refused
from inventory.models import (
    Cluster,
    Datacenter,
    Datastore,
    Event,
    Host,
    JobStatus,
    PowerState,
    RoleAssignment,
    VirtualMachine,
)
from inventory.services import roles
from tests import sample
from tests.api_client import Caller, caller

pytestmark = pytest.mark.django_db


@dataclass(frozen=True, slots=True)
class Subtree:
    """One cluster with all that can stand in it; every name in it begins with the cluster's."""

    cluster: Cluster
    host: Host
    datastore: Datastore
    vm: VirtualMachine


def subtree(datacenter: Datacenter, name: str) -> Subtree:
    cluster = Cluster.objects.create(datacenter=datacenter, name=name)
    host = Host.objects.create(
        cluster=cluster, name=f"{name}-host", uri=f"qemu+tls://{name}/system", state=Host.State.CONNECTED
    )
    store = Datastore.objects.create(host=host, name=f"{name}-store", kind="dir", path=f"/{name}", is_active=True)
    vm = VirtualMachine.objects.create(host=host, uuid=uuid4(), name=f"{name}-vm", power_state=PowerState.OFF)
    sample.job_of(vm, "inventory.power_on", JobStatus.SUCCEEDED)
    events.record("vm.powered_on", f"{name}-vm started", target=vm, actor="alice")
    raise_alarm("host.disconnected", f"{name}-host is lost", target=host)
    return Subtree(cluster, host, store, vm)


@pytest.fixture
def own(db: None) -> Subtree:
    return subtree(Datacenter.objects.create(name="Lab"), "own")


@pytest.fixture
def foreign(own: Subtree) -> Subtree:
    return subtree(own.cluster.datacenter, "foreign")


def give(user: User, role: Role, place: Datacenter | Cluster | None = None) -> RoleAssignment:
    return RoleAssignment.objects.create(
        user=user,
        role=role,
        datacenter=place if isinstance(place, Datacenter) else None,
        cluster=place if isinstance(place, Cluster) else None,
        assigned_by="test",
    )


@pytest.fixture
def bob(own: Subtree) -> User:
    """May switch on and off what is in `own`."""
    user = User.objects.create_user("bob")
    give(user, Role.OPERATOR, own.cluster)
    return user


def test_the_data_center_above_ones_cluster_is_shown_as_far_as_one_sees(
    bob: User, own: Subtree, foreign: Subtree, client: Client
) -> None:
    client.force_login(bob)
    above = own.cluster.datacenter
    answer = client.get(reverse("inventory:summary", args=["datacenter", above.pk]))
    page = answer.content.decode()
    assert "own-host" in page and "foreign" not in page and "Clusters" in page
    assert [tab.label for tab in answer.context["tabs"]] == ["Summary"]
    assert (answer.context["totals"]["total"], answer.context["capacity"]["count"]) == (1, 1)
    assert (
        "change nothing here"
        in client.get(reverse("inventory:actions", args=["datacenter", above.pk])).content.decode()
    )
    for name in ("monitor", "configure", "hosts", "vms"):
        assert client.get(reverse(f"inventory:{name}", args=["datacenter", above.pk])).status_code == 403, name
    assert caller(bob).get(f"/datacenters/{above.pk}").body["cluster_count"] == 1
    other = Datacenter.objects.create(name="Elsewhere")
    assert client.get(reverse("inventory:summary", args=["datacenter", other.pk])).status_code == 403
    assert caller(bob).get(f"/datacenters/{other.pk}").status == 404


def test_there_are_fourteen_cryptographic_privileges_and_one_role_without_them() -> None:
    assert len(CRYPTOGRAPHIC) == 14
    assert ROLES[Role.ADMINISTRATOR] == ALL == frozenset(Privilege)
    assert ROLES[Role.NO_CRYPTOGRAPHY] == ALL - CRYPTOGRAPHIC - GRANTING
    assert {Privilege.MODIFY_ROLES, Privilege.HOST_ADD, Privilege.DIAGNOSTICS} <= GRANTING
    assert Privilege.MODIFY_ROLES not in ROLES[Role.CRYPTOGRAPHY_OPERATOR]
    changing = {name for name, right in RIGHTS.items() if right.needs <= ROLES[Role.AUDITOR]}
    assert changing == {"own_account", "view", "view_all", "encryption.export_inventory", "encryption.read_key_servers"}


def test_an_action_that_nobody_has_written_down_is_nobodys(alice: User) -> None:
    assert not may(alice, "inventory.unheard_of")
    assert not may_somewhere(alice, "inventory.unheard_of")


def test_one_without_a_role_sees_nothing(own: Subtree, client: Client) -> None:
    user = User.objects.create_user("dora")
    client.force_login(user)
    page = client.get(reverse("inventory:root")).content.decode()
    assert "You have no role yet" in page
    assert ">Lab<" not in page and "own-" not in page.replace("down-", "")
    assert "own-vm" not in client.get(reverse("tasks")).content.decode()
    for name in ("search", "alarms", "encryption:kms", "encryption:policies", "encryption:bundles", "roles"):
        assert client.get(reverse(name), {"q": "own"}).status_code == 403, name
    call = caller(user)
    for path in ("/datacenters", "/hosts", "/virtual-machines", "/jobs", "/events", "/alarms", "/search?text=own"):
        assert call.get(path.partition("?")[0], text="own").code == "not_permitted", path


def names(call: Caller, path: str, key: str = "name", **query: object) -> set[str]:
    answer = call.get(path, **query)
    assert answer.status == 200, answer.text
    rows = answer.body if isinstance(answer.body, list) else answer.body.get("items", answer.body.get("nodes"))
    return {row[key]["name"] if key == "target" else row[key] for row in rows}


def test_lists_show_the_own_subtree_alone(bob: User, own: Subtree, foreign: Subtree) -> None:
    call = caller(bob)
    assert names(call, "/datacenters") == {"Lab"}
    assert call.get("/datacenters").body["items"][0]["cluster_count"] == 1
    assert names(call, "/clusters") == {"own"}
    assert names(call, "/hosts") == {"own-host"}
    assert names(call, "/datastores") == {"own-store"}
    assert names(call, "/virtual-machines") == {"own-vm"}
    assert names(call, "/jobs", "target") == {"own-vm"}
    assert names(call, "/events", "target") <= {"own-vm", "own-host"}
    assert names(call, "/alarms", "target") == {"own-host"}
    assert names(call, "/search", text="o") == {"own", "own-host", "own-store", "own-vm"}
    assert names(call, f"/tree/hosts/datacenter/{own.cluster.datacenter_id}") == {"own"}
    assert names(call, f"/tree/hosts/cluster/{foreign.cluster.pk}") == set()
    assert names(call, f"/tree/storage/host/{foreign.host.pk}") == set()


def test_pages_show_the_own_subtree_alone(bob: User, own: Subtree, foreign: Subtree, client: Client) -> None:
    client.force_login(bob)
    opened = f"datacenter-{own.cluster.datacenter_id},cluster-{own.cluster.pk}"
    for url in (
        reverse("inventory:root"),
        reverse("inventory:tree") + f"?open={opened}",
        reverse("search") + "?q=o",
        reverse("tasks"),
        reverse("alarms"),
        reverse("inventory:summary", args=["datacenter", own.cluster.datacenter_id]),
        reverse("inventory:summary", args=["cluster", own.cluster.pk]),
        reverse("inventory:monitor", args=["vm", own.vm.pk]) + "?show=events",
        reverse("inventory:vms", args=["cluster", own.cluster.pk]),
    ):
        answer = client.get(url)
        assert answer.status_code == 200, url
        assert "foreign" not in answer.content.decode(), url


@pytest.mark.parametrize("kind", ["cluster", "host", "datastore", "vm"])
def test_a_foreign_object_is_refused_and_not_named(
    bob: User, own: Subtree, foreign: Subtree, client: Client, kind: str
) -> None:
    client.force_login(bob)
    target = getattr(foreign, kind)
    answer = client.get(reverse("inventory:summary", args=[kind, target.pk]))
    assert answer.status_code == 403
    assert "foreign" not in answer.content.decode()
    path = {"vm": "virtual-machines"}.get(kind, f"{kind}s")
    refused = caller(bob).get(f"/{path}/{target.pk}")
    assert (refused.status, refused.code) == (403, "not_permitted")
    assert "foreign" not in refused.text


def test_a_foreign_job_event_and_alarm_are_not_found(bob: User, foreign: Subtree) -> None:
    call = caller(bob)
    theirs = caller(User.objects.create_superuser("root"))
    for path in ("jobs", "events", "alarms"):
        rows = theirs.get(f"/{path}").body["items"]
        row = next(one for one in rows if one["target"]["name"].startswith("foreign"))
        assert call.get(f"/{path}/{row['id']}").status == 404, path


def test_power_is_the_operators_in_the_own_subtree(
    bob: User, own: Subtree, foreign: Subtree, client: Client, sent: list[object]
) -> None:
    call = caller(bob)
    assert call.post(f"/virtual-machines/{own.vm.pk}/power-on").status == 202
    assert call.post(f"/virtual-machines/{foreign.vm.pk}/power-on").code == "not_permitted"
    assert call.post(f"/virtual-machines/{own.vm.pk}/unlock").code == "not_permitted"
    assert call("DELETE", f"/hosts/{own.host.pk}").code == "not_permitted"
    client.force_login(bob)
    page = client.get(reverse("inventory:actions", args=["vm", own.vm.pk])).content.decode()
    assert "Power On" in page
    assert "Migrate" not in page and "Remove from Inventory" not in page
    assert client.get(reverse("inventory:power", args=[foreign.vm.pk, "on"])).status_code == 403


def test_a_role_on_a_data_center_reaches_all_below_it(own: Subtree, foreign: Subtree) -> None:
    user = User.objects.create_user("dora")
    give(user, Role.OPERATOR, own.cluster.datacenter)
    assert names(caller(user), "/virtual-machines") == {"own-vm", "foreign-vm"}
    assert may(user, "inventory.power_on", own.vm) and not may(user, "inventory.add_datacenter")


def test_a_groups_role_is_its_members(own: Subtree) -> None:
    user, group = User.objects.create_user("dora"), Group.objects.create(name="night shift")
    RoleAssignment.objects.create(group=group, role=Role.OPERATOR, cluster=own.cluster, assigned_by="test")
    assert not may(User.objects.get(pk=user.pk), "inventory.power_on", own.vm)
    user.groups.add(group)
    assert may(User.objects.get(pk=user.pk), "inventory.power_on", own.vm)
    User.objects.filter(pk=user.pk).update(is_active=False)
    assert not may(User.objects.get(pk=user.pk), "inventory.power_on", own.vm)


def test_an_encrypted_vm_asks_for_cryptographic_privileges_besides(own: Subtree) -> None:
    user = User.objects.create_user("dora")
    give(user, Role.NO_CRYPTOGRAPHY)
    for action in ("encryption.migrate_vm", "encryption.clone_vm", "encryption.export_vm", "inventory.read_console"):
        assert may(user, action, own.vm), action
    disk = own.vm.disks.create(target="vda", is_encrypted=True)
    for action in ("encryption.migrate_vm", "encryption.clone_vm", "encryption.export_vm", "inventory.read_console"):
        assert not may(user, action, own.vm), action
    assert may(user, "inventory.power_on", own.vm)
    disk.delete()


def test_no_cryptography_administrator_reaches_no_keys(own: Subtree, client: Client) -> None:
    user = User.objects.create_user("dora", is_staff=True)
    give(user, Role.NO_CRYPTOGRAPHY)
    call = caller(user)
    assert call.post("/datacenters", {"name": "New"}).status == 201
    assert call.get("/key-providers").code == "not_permitted"
    added = {"cluster_id": own.cluster.pk, "name": "x", "uri": "qemu+tls://x/system"}
    assert call.post("/hosts", added).code == "not_permitted"
    assert call("PATCH", f"/hosts/{own.host.pk}", {"uri": "qemu+tls://evil/system"}).code == "not_permitted"
    wanted = {"role": "administrator", "user": "dora"}
    assert call.post("/role-assignments", wanted).code == "not_permitted"
    client.force_login(user)
    page = client.get(reverse("inventory:root")).content.decode()
    assert "Key Providers" not in page and "TPM Trust" in page
    assert client.get(reverse("admin:auth_user_changelist")).status_code == 403


def test_rights_cost_one_query_however_many_roles(
    own: Subtree, foreign: Subtree, django_assert_num_queries: object
) -> None:
    user = User.objects.create_user("dora")
    for role in Role:
        give(user, role, own.cluster)
    with django_assert_num_queries(1):  # type: ignore[operator]
        for _ in range(20):
            assert may(user, "inventory.power_on", own.vm)
            assert not may(user, "inventory.power_on", foreign.vm)


def test_a_limited_user_holds_no_more(alice: User, own: Subtree) -> None:
    limit(alice, ROLES[Role.OPERATOR])
    assert may(alice, "inventory.power_on", own.vm)
    assert not may(alice, "encryption.decrypt_vm", own.vm)
    assert held_by(alice).root == ROLES[Role.OPERATOR]


# Giving and taking away


def test_assigning_and_removing_through_the_pages(admin: Client, own: Subtree) -> None:
    User.objects.create_user("dora")
    url = f"{reverse('add-role')}?cluster={own.cluster.pk}"
    assert "dora" in admin.get(url).content.decode()
    answer = admin.post(url, {"user": "dora", "role": "operator"})
    assert answer.status_code == 302
    row = RoleAssignment.objects.get()
    assert (row.user and row.user.username, row.role, row.cluster, row.assigned_by) == (
        "dora", "operator", own.cluster, "alice",
    )  # fmt: skip
    made = Event.objects.get(kind="role.assigned")
    assert (made.target_id, made.actor, made.data["user"]) == (own.cluster.pk, "alice", "dora")
    for page in (reverse("inventory:cluster-permissions", args=[own.cluster.pk]), reverse("roles")):
        assert "dora" in admin.get(page).content.decode()
    above = reverse("inventory:datacenter-permissions", args=[own.cluster.datacenter_id])
    assert "dora" not in admin.get(above).content.decode()
    assert admin.post(url, {"user": "dora", "role": "operator"}).status_code == 409
    call = caller(User.objects.get(username="alice"))
    again = {"user": "dora", "role": "operator", "cluster_id": str(own.cluster.pk)}
    assert call.post("/role-assignments", again).code == "role_assigned"
    assert admin.post(reverse("remove-role", args=[row.pk])).status_code == 302
    assert not RoleAssignment.objects.exists()
    assert Event.objects.get(kind="role.removed").data["user"] == "dora"
    assert admin.post(reverse("remove-role", args=[row.pk])).status_code == 404
    assert call("DELETE", f"/role-assignments/{row.pk}").code == "role_assignment_not_found"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"role": "emperor", "user": "alice"}, 422, "role_unknown"),
        ({"role": "auditor"}, 422, "holder_invalid"),
        ({"role": "auditor", "user": "alice", "group": "all"}, 422, "holder_invalid"),
        ({"role": "auditor", "user": "nobody"}, 404, "user_not_found"),
        ({"role": "auditor", "group": "nobody"}, 404, "group_not_found"),
        ({"role": "auditor", "user": "alice", "cluster_id": str(uuid4())}, 404, "cluster_not_found"),
        (
            {"role": "auditor", "user": "alice", "cluster_id": str(uuid4()), "datacenter_id": str(uuid4())},
            422,
            "place_invalid",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_assignments_that_cannot_be(alice: User, body: dict[str, object], status: int, code: str) -> None:
    answer = caller(alice).post("/role-assignments", body)
    assert (answer.status, answer.code) == (status, code)
    assert not RoleAssignment.objects.exists()


@pytest.mark.parametrize("query", ["?cluster=x", "?datacenter=1"])
def test_a_place_that_is_none(admin: Client, query: str) -> None:
    assert admin.get(reverse("add-role") + query).status_code == 422


def test_an_administrator_of_a_cluster_grants_there_and_nowhere_else(own: Subtree, foreign: Subtree) -> None:
    user = User.objects.create_user("dora")
    give(user, Role.ADMINISTRATOR, own.cluster)
    call = caller(user)
    there = {"role": "administrator", "user": "dora", "cluster_id": own.cluster.pk}
    assert call.post("/role-assignments", there | {"role": "auditor"}).status == 201
    for place in ({"cluster_id": foreign.cluster.pk}, {"datacenter_id": own.cluster.datacenter_id}, {}):
        wanted = {"role": "auditor", "user": "dora", **place}
        assert call.post("/role-assignments", wanted).code == "not_permitted", place
    assert names(call, "/role-assignments", "role", cluster_id=str(own.cluster.pk)) == {"administrator", "auditor"}
    assert call.get("/role-assignments").code == "not_permitted"


def test_nobody_grants_or_takes_what_they_do_not_hold(own: Subtree, alice: User) -> None:
    row = give(User.objects.create_user("dora"), Role.ADMINISTRATOR, own.cluster)
    limit(alice, ROLES[Role.ADMINISTRATOR] - {Privilege.CRYPTO_DECRYPT})
    for role in (Role.ADMINISTRATOR, Role.CRYPTOGRAPHY_OPERATOR):
        with pytest.raises(Refused, match=r"Cryptographer\.Decrypt") as refused:
            roles.assign_role(role=role, username="alice", actor=alice)
        assert refused.value.code == "role_beyond_own"
    with pytest.raises(Refused):
        roles.remove_role(assignment_id=row.pk, actor=alice)
    roles.assign_role(role=Role.OPERATOR, username="alice", actor=alice)


def test_the_last_administrator_stays(db: None) -> None:
    user = User.objects.create_user("dora", is_staff=True)
    row = give(user, Role.ADMINISTRATOR)
    call = caller(user)
    assert call("DELETE", f"/role-assignments/{row.pk}").code == "last_administrator"
    assert RoleAssignment.objects.filter(pk=row.pk).exists()
    User.objects.create_user("gone", is_superuser=True, is_active=False)
    assert call("DELETE", f"/role-assignments/{row.pk}").code == "last_administrator"
    members = Group.objects.create(name="admins")
    RoleAssignment.objects.create(group=members, role=Role.ADMINISTRATOR, assigned_by="test")
    assert call("DELETE", f"/role-assignments/{row.pk}").code == "last_administrator"
    User.objects.create_user("eve").groups.add(members)
    assert call("DELETE", f"/role-assignments/{row.pk}").status == 204


def test_the_last_administrator_stays_in_djangos_admin(admin: Client, alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(is_staff=True)
    change = reverse("admin:auth_user_change", args=[alice.pk])
    form = {"username": "alice", "date_joined_0": "2026-01-01", "date_joined_1": "00:00:00", "is_active": "on"}
    answer = admin.post(change, form | {"is_staff": "on"})
    assert answer.status_code == 409
    assert "administrator of everything" in answer.content.decode()
    assert User.objects.get(pk=alice.pk).is_superuser
    assert admin.post(reverse("admin:auth_user_delete", args=[alice.pk]), {"post": "yes"}).status_code == 409
    chosen = {"action": "delete_selected", "_selected_action": [alice.pk], "post": "1"}
    assert admin.post(reverse("admin:auth_user_changelist"), chosen).status_code == 409
    assert User.objects.filter(pk=alice.pk).exists()


def test_staff_who_may_not_assign_roles_make_no_users(client: Client) -> None:
    user = User.objects.create_user("dora", is_staff=True)
    give(user, Role.NO_CRYPTOGRAPHY)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="auth"))
    client.force_login(user)
    assert client.get(reverse("admin:auth_user_add")).status_code == 403
    assert client.post(reverse("admin:auth_user_change", args=[user.pk]), {"is_superuser": "on"}).status_code == 403
    assert client.get(reverse("admin:auth_group_changelist")).status_code == 403


def test_an_auditor_sees_roles_and_gives_none(looker: Client, charlie: User, own: Subtree) -> None:
    page = looker.get(reverse("roles")).content.decode()
    assert "charlie" in page and "Cryptographer.Decrypt" in page and "Assign role" not in page
    for method in (looker.get, looker.post):
        assert method(reverse("add-role")).status_code == 403
        assert method(reverse("remove-role", args=[RoleAssignment.objects.get().pk])).status_code == 403
    call = caller(charlie)
    assert len(call.get("/roles").body) == 5
    assert names(call, "/role-assignments", "role") == {"auditor"}
