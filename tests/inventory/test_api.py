"""The inventory over REST: the right person, one who may only look, bad input, twice, and how much a list costs."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connection
from django.test.utils import CaptureQueriesContext

from inventory import events
from inventory.models import (
    Cluster,
    Datacenter,
    Datastore,
    Event,
    Host,
    Job,
    JobStatus,
    PowerState,
    Severity,
    TargetKind,
    VirtualMachine,
)
from tests import sample
from tests.api_client import Caller, caller
from tests.sample import Sample

pytestmark = pytest.mark.django_db
Messages = list[tuple[str, list[str], str]]


@pytest.fixture
def inventory(sent: Messages) -> Sample:
    return sample.make()


@pytest.fixture
def admin(alice: User) -> Caller:
    return caller(alice)


@pytest.fixture
def looker(charlie: User) -> Caller:
    return caller(charlie)


def names(answer: Any) -> list[str]:
    return [one["name"] for one in answer.body["items"]]


class TestPlaces:
    def test_a_data_center_is_added_renamed_and_removed(self, admin: Caller) -> None:
        added = admin.post("/datacenters", {"name": " East "})
        assert (added.status, added.body["name"], added.body["cluster_count"]) == (201, "East", 0)
        path = f"/datacenters/{added.body['id']}"
        assert admin("PATCH", path, {"name": "West"}).body["name"] == "West"
        assert admin.get(path).body["name"] == "West"
        assert admin("DELETE", path).status == 204
        assert admin.get(path).code == "datacenter_not_found"
        assert admin("DELETE", path).status == 404

    def test_a_name_twice(self, admin: Caller) -> None:
        assert admin.post("/datacenters", {"name": "East"}).status == 201
        again = admin.post("/datacenters", {"name": "East"})
        assert (again.status, again.code) == (409, "name_taken")
        assert again.body["hint"]

    @pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\nb", "a\x00b"])
    def test_a_bad_name(self, admin: Caller, name: str) -> None:
        assert admin.post("/datacenters", {"name": name}).code in ("name_invalid", "invalid_input")
        assert not Datacenter.objects.exists()

    def test_a_cluster_is_added_renamed_and_removed(self, admin: Caller, inventory: Sample) -> None:
        added = admin.post("/clusters", {"datacenter_id": inventory.datacenter.pk, "name": "New"})
        assert (added.status, added.body["datacenter"]["name"]) == (201, "DC-East")
        path = f"/clusters/{added.body['id']}"
        assert admin("PATCH", path, {"name": "Newer"}).body["name"] == "Newer"
        assert admin("DELETE", path).status == 204
        assert not Cluster.objects.filter(name="Newer").exists()

    def test_what_is_not_empty_stays(self, admin: Caller, inventory: Sample) -> None:
        for path in (f"/clusters/{inventory.cluster.pk}", f"/datacenters/{inventory.datacenter.pk}"):
            answer = admin("DELETE", path)
            assert (answer.status, answer.code) == (409, "not_empty")

    def test_a_cluster_in_a_data_center_that_is_not_there(self, admin: Caller) -> None:
        answer = admin.post("/clusters", {"datacenter_id": uuid4(), "name": "New"})
        assert (answer.status, answer.code) == (404, "datacenter_not_found")

    def test_clusters_of_one_data_center(self, looker: Caller, inventory: Sample) -> None:
        assert names(looker.get("/clusters")) == ["Edge-Cluster", "Prod-Cluster"]
        assert looker.get("/clusters", datacenter_id=uuid4()).body["items"] == []
        (prod,) = [one for one in looker.get("/clusters").body["items"] if one["name"] == "Prod-Cluster"]
        assert prod["host_count"] == 2

    def test_counts_do_not_multiply(self, looker: Caller, inventory: Sample) -> None:
        (east,) = [one for one in looker.get("/datacenters").body["items"] if one["name"] == "DC-East"]
        assert (east["cluster_count"], east["host_count"]) == (2, 2)


class TestHosts:
    def test_a_host_is_added_by_a_job(self, admin: Caller, inventory: Sample) -> None:
        wanted = {"cluster_id": inventory.cluster.pk, "name": "kvm03", "uri": "qemu+tls://kvm03/system"}
        answer = admin.post("/hosts", wanted)
        assert (answer.status, answer.body["status"], answer.body["label"]) == (202, "pending", "Connect host")
        host = admin.get(f"/hosts/{answer.body['target']['id']}").body
        assert (host["name"], host["state"], host["cluster"]["name"]) == ("kvm03", "connecting", "Prod-Cluster")
        again = admin.post("/hosts", wanted)
        assert (again.status, again.code) == (409, "host_exists")

    @pytest.mark.parametrize("uri", ["", "http://kvm03/", "qemu+ext://h/system?command=/bin/sh", "test:///default "])
    def test_a_uri_that_is_not_allowed(self, admin: Caller, inventory: Sample, uri: str) -> None:
        uri = "qemu+tls://h/system?no_verify=1" if uri.startswith("test") else uri
        answer = admin.post("/hosts", {"cluster_id": inventory.cluster.pk, "name": "kvm03", "uri": uri})
        assert answer.status == 422
        assert not Host.objects.filter(name="kvm03").exists()

    def test_editing_keeps_what_is_left_out(self, admin: Caller, inventory: Sample) -> None:
        path = f"/hosts/{inventory.host.pk}"
        renamed = admin("PATCH", path, {"name": "kvm-one"})
        assert (renamed.status, renamed.body["host"]["name"], renamed.body["job"]) == (200, "kvm-one", None)
        assert renamed.body["host"]["uri"] == inventory.host.uri
        moved = admin("PATCH", path, {"uri": "qemu+tls://kvm-one.corp.example/system"})
        assert moved.body["job"]["kind"] == "inventory.connect_host"
        assert moved.body["host"]["name"] == "kvm-one"

    def test_a_host_is_refreshed_once_at_a_time(self, admin: Caller, inventory: Sample) -> None:
        path = f"/hosts/{inventory.lost_host.pk}/refresh"
        assert admin.post(path).status == 202
        assert admin.post(path).code == "target_busy"

    def test_a_host_is_removed_with_its_vms(self, admin: Caller, inventory: Sample) -> None:
        assert admin("DELETE", f"/hosts/{inventory.lost_host.pk}").status == 204
        assert not VirtualMachine.objects.filter(name="legacy-erp").exists()
        busy = admin("DELETE", f"/hosts/{inventory.host.pk}")
        assert (busy.status, busy.code) == (409, "target_busy")

    def test_hosts_by_state_and_place(self, looker: Caller, inventory: Sample) -> None:
        assert names(looker.get("/hosts", state="disconnected")) == ["kvm02.corp.example"]
        assert len(names(looker.get("/hosts", cluster_id=inventory.cluster.pk))) == 2
        assert len(names(looker.get("/hosts", datacenter_id=inventory.datacenter.pk))) == 2
        assert names(looker.get("/hosts", cluster_id=uuid4())) == []
        assert looker.get("/hosts", state="asleep").code == "invalid_input"

    def test_datastores(self, looker: Caller, inventory: Sample) -> None:
        (found,) = looker.get("/datastores", host_id=inventory.host.pk).body["items"]
        assert found == looker.get(f"/datastores/{inventory.datastore.pk}").body
        assert (found["host"]["name"], found["capacity_bytes"]) == ("kvm01.corp.example", 500 * sample.GIB)
        assert looker.get("/datastores", host_id=inventory.lost_host.pk).body["total"] == 0
        assert looker.get(f"/datastores/{uuid4()}").code == "datastore_not_found"


class TestVirtualMachines:
    def test_filters(self, looker: Caller, inventory: Sample) -> None:
        def found(**query: object) -> list[str]:
            return names(looker.get("/virtual-machines", **query))

        everything = ["app-db01", "app-db02", "app-web01", "app-web02", "legacy-erp", "vtpm-win11"]
        assert found() == everything
        assert found(text="WEB") == ["app-web01", "app-web02"]
        assert found(text=str(inventory.vm.uuid)) == ["app-db01"]
        assert found(power_state="off") == ["app-db02", "app-web02"]
        assert found(firmware="bios") == ["app-web01"]
        assert found(is_encrypted="true") == ["app-db01", "vtpm-win11"]
        assert found(is_encrypted="false", power_state="off") == ["app-db02", "app-web02"]
        assert found(host_id=inventory.lost_host.pk) == ["legacy-erp"]
        assert found(cluster_id=inventory.cluster.pk) == everything
        assert found(datacenter_id=uuid4()) == []
        assert found(is_present="false") == []

    def test_sorts_and_pages(self, looker: Caller, inventory: Sample) -> None:
        answer = looker.get("/virtual-machines", sort="-memory", page_size=4)
        assert names(answer) == ["legacy-erp", "vtpm-win11", "app-web02", "app-web01"]
        assert {key: answer.body[key] for key in ("total", "page", "pages")} == {"total": 6, "page": 1, "pages": 2}
        assert names(looker.get("/virtual-machines", sort="-memory", page_size=4, page=2)) == ["app-db02", "app-db01"]
        assert looker.get("/virtual-machines", page_size=4, page=99).body["page"] == 2

    @pytest.mark.parametrize(
        "query",
        [
            {"page": "0"}, {"page": "x"}, {"page_size": "501"}, {"page_size": "0"}, {"sort": "password"},
            {"sort": "--name"}, {"host_id": "1"}, {"power_state": "hot"}, {"text": "x" * 201}, {"text": "a\x00"},
            {"is_encrypted": "perhaps"},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_bad_query(self, looker: Caller, query: dict[str, str]) -> None:
        answer = looker.get("/virtual-machines", **query)
        assert (answer.status, answer.code) == (422, "invalid_input")
        assert [one["field"] for one in answer.body["fields"]] == [f"query.{key}" for key in query]

    def test_one(self, looker: Caller, inventory: Sample) -> None:
        found = looker.get(f"/virtual-machines/{inventory.vm.pk}").body
        assert (found["name"], found["uuid"], found["is_encrypted"]) == ("app-db01", str(inventory.vm.uuid), True)
        assert found["tpm"] == {"model": "tpm-crb", "version": "2.0", "is_encrypted": True}
        assert [disk["target"] for disk in found["disks"]] == ["vda", "vdb"]
        assert found["datacenter"]["name"] == "DC-East"
        assert looker.get(f"/virtual-machines/{inventory.off_vm.pk}").body["tpm"] is None
        assert looker.get(f"/virtual-machines/{uuid4()}").code == "vm_not_found"

    @pytest.mark.parametrize(
        ("verb", "power", "refusal"),
        [
            ("power-on", PowerState.OFF, "vm_running"),
            ("shut-down", PowerState.ON, "vm_not_running"),
            ("power-off", PowerState.ON, "vm_not_running"),
            ("reboot", PowerState.ON, "vm_not_running"),
        ],
    )
    def test_power(self, admin: Caller, inventory: Sample, verb: str, power: PowerState, refusal: str) -> None:
        vm = inventory.off_vm
        path = f"/virtual-machines/{vm.pk}/{verb}"
        other = PowerState.ON if power == PowerState.OFF else PowerState.OFF
        VirtualMachine.objects.filter(pk=vm.pk).update(power_state=other)
        assert (admin.post(path).status, admin.post(path).code) == (409, refusal)
        VirtualMachine.objects.filter(pk=vm.pk).update(power_state=power)
        started = admin.post(path)
        assert (started.status, started.body["target"]["name"]) == (202, vm.name)
        assert started.body["kind"] == f"inventory.{verb.replace('-', '_')}"
        assert admin.post(path).code == "target_busy"

    def test_only_a_vm_that_is_gone_can_be_removed(self, admin: Caller, inventory: Sample) -> None:
        path = f"/virtual-machines/{inventory.off_vm.pk}"
        assert admin("DELETE", path).code == "vm_present"
        VirtualMachine.objects.filter(pk=inventory.off_vm.pk).update(is_present=False)
        assert admin("DELETE", path).status == 204
        assert admin("DELETE", path).status == 404

    def test_the_console(self, admin: Caller, inventory: Sample, sent: Messages) -> None:
        path = f"/virtual-machines/{inventory.vm.pk}/console"
        assert admin.get(path).body == {"text": None, "age_seconds": None, "problem": ""}
        assert ("inventory.read_console", [str(inventory.vm.pk)], "control") in sent
        cache.set(f"console-{inventory.vm.pk}", {"text": "login: ", "problem": "", "at": 0.0}, 30)
        assert admin.get(path).body["text"] == "login: "

    def test_the_console_is_not_for_everybody(self, looker: Caller, inventory: Sample) -> None:
        answer = looker.get(f"/virtual-machines/{inventory.vm.pk}/console")
        assert (answer.status, answer.code) == (403, "not_permitted")


class TestActivity:
    def test_jobs(self, looker: Caller, inventory: Sample) -> None:
        (live,) = looker.get("/jobs", is_live="true").body["items"]
        assert (live["status"], live["target"]["id"], live["percent"]) == ("running", str(inventory.vm.pk), 62)
        (failed,) = looker.get("/jobs", status="failed", target_id=inventory.off_vm.pk).body["items"]
        assert failed == looker.get(f"/jobs/{failed['id']}").body
        assert (failed["error_code"], failed["is_live"], failed["percent"]) == ("key_missing", False, None)
        assert looker.get("/jobs", target_kind="host").body["total"] == 1
        assert looker.get("/jobs", kind="inventory.power_off").body["total"] == 1
        assert looker.get(f"/jobs/{uuid4()}").code == "job_not_found"

    def test_what_a_job_keeps_for_its_worker_stays_there(self, looker: Caller, inventory: Sample) -> None:
        planted = {"planted": "for-the-worker"}
        Job.objects.update(params=planted, checkpoint=planted, claim=UUID(int=7))
        for path in ("/jobs", f"/jobs/{Job.objects.all()[0].pk}"):
            text = looker.get(path).text
            assert "for-the-worker" not in text
            assert str(UUID(int=7)) not in text

    def test_a_job_is_cancelled_once(self, admin: Caller, inventory: Sample) -> None:
        job = sample.job_of(inventory.host, "inventory.refresh_host", JobStatus.PENDING)
        answer = admin.post(f"/jobs/{job.pk}/cancel")
        assert (answer.status, answer.body["status"]) == (202, "cancelled")
        again = admin.post(f"/jobs/{job.pk}/cancel")
        assert (again.status, again.code) == (409, "job_ended")

    def test_a_running_job_is_asked_to_end(self, admin: Caller, inventory: Sample) -> None:
        running = Job.objects.get(status=JobStatus.RUNNING)
        assert admin.post(f"/jobs/{running.pk}/cancel").body["cancel_requested"] is True

    def test_events(self, looker: Caller, inventory: Sample) -> None:
        newest = looker.get("/events").body["items"]
        assert [one["id"] for one in newest] == sorted((one["id"] for one in newest), reverse=True)
        events.record("vm.later", "later", target=inventory.vm, actor="x", severity=Severity.ERROR, data_key="value")
        (later,) = looker.get("/events", after=newest[0]["id"]).body["items"]
        assert (later["kind"], later["data"], later["target"]["id"]) == (
            "vm.later", {"data_key": "value"}, str(inventory.vm.pk),
        )  # fmt: skip
        assert looker.get(f"/events/{later['id']}").body == later
        assert looker.get("/events", severity="error").body["total"] == 2
        assert looker.get("/events", target_kind="vm", target_id=inventory.vm.pk, kind="vm.changed").body["total"] == 1
        assert looker.get("/events/999999999").code == "event_not_found"

    @pytest.mark.parametrize("query", [{"after": "-1"}, {"after": str(2**63)}, {"severity": "loud"}], ids=str)
    def test_a_bad_query(self, looker: Caller, query: dict[str, str]) -> None:
        assert looker.get("/events", **query).code == "invalid_input"

    @pytest.mark.parametrize("number", [2**63 - 1, 2**63, 10**40])
    def test_a_great_event_number(self, looker: Caller, number: int) -> None:
        assert looker.get(f"/events/{number}").status in (404, 422)


class TestSearchAndTrees:
    def test_search(self, looker: Caller, inventory: Sample) -> None:
        hits = looker.get("/search", text="PROD").body
        assert [(one["kind"], one["name"], one["detail"]) for one in hits] == [("cluster", "Prod-Cluster", "DC-East")]
        (hit,) = looker.get("/search", text=str(inventory.vm.uuid)).body
        assert hit["id"] == str(inventory.vm.pk)
        assert len(looker.get("/search", text="app", limit=2).body) == 2
        assert looker.get("/search", text=" ").body == []
        assert looker.get("/search").code == "invalid_input"

    def test_trees(self, looker: Caller, inventory: Sample) -> None:
        roots = looker.get("/tree").body
        assert [(one["name"], one["has_children"]) for one in roots["nodes"]] == [("DC-East", True), ("DC-West", False)]
        below = looker.get(f"/tree/hosts/host/{inventory.host.pk}", limit=2).body
        assert (below["total"], [one["name"] for one in below["nodes"]]) == (5, ["app-db01", "app-db02"])
        assert below["nodes"][0]["is_encrypted"] is True
        stores = looker.get(f"/tree/storage/host/{inventory.host.pk}").body
        assert [one["kind"] for one in stores["nodes"]] == ["datastore"]
        assert looker.get(f"/tree/hosts/vm/{inventory.vm.pk}").body == {"nodes": [], "total": 0}
        assert looker.get(f"/tree/networks/vm/{inventory.vm.pk}").code == "invalid_input"


LISTS = [
    ("/datacenters", {}),
    ("/clusters", {}),
    ("/hosts", {}),
    ("/datastores", {}),
    ("/virtual-machines", {"sort": "host", "is_encrypted": "false"}),
    ("/jobs", {}),
    ("/events", {}),
    ("/search", {"text": "grown"}),
    ("/tree", {}),
]


def grow(number: int) -> None:
    """`number` more of everything."""
    for each in range(number):
        datacenter = Datacenter.objects.create(name=f"grown {each}")
        cluster = Cluster.objects.create(datacenter=datacenter, name="grown")
        host = Host.objects.create(cluster=cluster, name=f"grown {each}", uri=f"qemu+tls://grown{each}/system")
        Datastore.objects.create(host=host, name="grown", kind="dir")
        vm = VirtualMachine.objects.create(host=host, uuid=uuid4(), name=f"grown {each}")
        vm.disks.create(target="vda")
        sample.job_of(vm, "inventory.power_on", JobStatus.PENDING)
        events.record("vm.grown", "grown", target=vm, actor="x")


@pytest.mark.parametrize(("path", "query"), LISTS, ids=[path for path, _ in LISTS])
def test_a_list_costs_the_same_for_three_rows_and_for_forty(
    looker: Caller, path: str, query: dict[str, object]
) -> None:
    def cost() -> tuple[int, int]:
        with CaptureQueriesContext(connection) as queries:
            answer = looker.get(path, **query)
        rows = answer.body if isinstance(answer.body, list) else answer.body.get("items", answer.body.get("nodes"))
        return len(rows), len(queries)

    looker.get("/me")  # so that the token's use is noted, which happens once a minute
    grow(3)
    few, before = cost()
    for model in (Event, Job, VirtualMachine, Datastore, Host, Cluster, Datacenter):
        model.objects.all().delete()
    grow(40)
    many, after = cost()
    assert many > few >= 3
    assert after == before <= 7


@pytest.mark.parametrize("change", ["hosts", "virtual-machines"])
def test_one_object_costs_the_same_however_many_parts_it_has(looker: Caller, inventory: Sample, change: str) -> None:
    looker.get("/me")
    target = inventory.host if change == "hosts" else inventory.vm

    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert looker.get(f"/{change}/{target.pk}").status == 200
        return len(queries)

    before = cost()
    for number in range(20):
        inventory.vm.disks.create(target=f"sd{number}")
    assert cost() == before <= 4


Change = Callable[[Sample], tuple[str, str, dict[str, object] | None]]
CHANGES: dict[str, Change] = {
    "add data center": lambda s: ("POST", "/datacenters", {"name": "New"}),
    "rename data center": lambda s: ("PATCH", f"/datacenters/{s.datacenter.pk}", {"name": "New"}),
    "remove data center": lambda s: ("DELETE", f"/datacenters/{s.datacenter.pk}", None),
    "add cluster": lambda s: ("POST", "/clusters", {"datacenter_id": s.datacenter.pk, "name": "New"}),
    "rename cluster": lambda s: ("PATCH", f"/clusters/{s.cluster.pk}", {"name": "New"}),
    "remove cluster": lambda s: ("DELETE", f"/clusters/{s.cluster.pk}", None),
    "add host": lambda s: ("POST", "/hosts", {"cluster_id": s.cluster.pk, "name": "n", "uri": "qemu+tls://n/system"}),
    "edit host": lambda s: ("PATCH", f"/hosts/{s.host.pk}", {"name": "New"}),
    "refresh host": lambda s: ("POST", f"/hosts/{s.host.pk}/refresh", None),
    "remove host": lambda s: ("DELETE", f"/hosts/{s.lost_host.pk}", None),
    "power on": lambda s: ("POST", f"/virtual-machines/{s.off_vm.pk}/power-on", None),
    "shut down": lambda s: ("POST", f"/virtual-machines/{s.vm.pk}/shut-down", None),
    "power off": lambda s: ("POST", f"/virtual-machines/{s.vm.pk}/power-off", None),
    "reboot": lambda s: ("POST", f"/virtual-machines/{s.vm.pk}/reboot", None),
    "remove vm": lambda s: ("DELETE", f"/virtual-machines/{s.vm.pk}", None),
    "cancel job": lambda s: ("POST", f"/jobs/{Job.objects.get(status=JobStatus.RUNNING).pk}/cancel", None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_one_who_may_only_look_changes_nothing(looker: Caller, inventory: Sample, change: Change) -> None:
    models = (Datacenter, Cluster, Host, VirtualMachine, Job)

    def state() -> list[object]:
        return [list(model.objects.order_by("pk").values()) for model in models]

    before, last = state(), Event.objects.order_by("pk").last()
    answer = looker(*change(inventory))
    assert (answer.status, answer.code) == (403, "not_permitted")
    assert "administrator" in answer.body["hint"]
    assert state() == before
    told = Event.objects.filter(pk__gt=last.pk if last else 0)
    assert [(row.kind, row.actor) for row in told] == [("access.denied", "charlie")]


def test_every_kind_of_target_is_a_choice_in_the_schema(looker: Caller) -> None:
    """HostState stands in the schema as a plain choice beside the model's own; they must be the same."""
    schema = looker.get("/openapi.json").body["components"]["schemas"]
    assert schema["HostOut"]["properties"]["state"]["enum"] == Host.State.values
    assert schema["TargetKind"]["enum"] == TargetKind.values
