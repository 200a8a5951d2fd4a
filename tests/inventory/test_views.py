"""Inventory's pages through their URLs: the right person, one who may only look, and nobody."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from inventory.models import Cluster, Datacenter, Event, Host, Job, JobStatus, PowerState, VirtualMachine
from inventory.services import console
from tests import sample
from tests.sample import Sample

pytestmark = pytest.mark.django_db
HTMX = {"HX-Request": "true"}


@pytest.fixture
def inventory() -> Sample:
    return sample.make()


@pytest.fixture
def admin(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("alice"))
    return client


def pages(inventory: Sample) -> list[str]:
    found = [reverse("inventory:root")]
    for target, kind in (
        (inventory.datacenter, "datacenter"),
        (inventory.cluster, "cluster"),
        (inventory.host, "host"),
        (inventory.lost_host, "host"),
        (inventory.datastore, "datastore"),
        (inventory.vm, "vm"),
    ):
        found += [reverse(f"inventory:{tab}", args=[kind, target.pk]) for tab in ("summary", "monitor", "configure")]
        found.append(reverse("inventory:monitor", args=[kind, target.pk]) + "?show=events")
        found.append(reverse("inventory:actions", args=[kind, target.pk]))
        if kind in ("datacenter", "cluster", "host"):
            found.append(reverse("inventory:vms", args=[kind, target.pk]))
        if kind in ("datacenter", "cluster"):
            found.append(reverse("inventory:hosts", args=[kind, target.pk]))
    return found


def test_every_page_shows_for_one_who_may_only_look(looker: Client, inventory: Sample) -> None:
    for url in pages(inventory):
        answer = looker.get(url)
        assert answer.status_code == 200, url
        assert "Power Off" not in answer.content.decode(), url


def test_every_page_sends_nobody_to_the_login(client: Client, inventory: Sample) -> None:
    for url in pages(inventory):
        answer = client.get(url)
        assert answer.status_code == 302, url
        assert answer.headers["Location"].startswith(reverse("login") + "?next=/inventory/"), url


def test_a_page_refuses_to_be_posted_to(admin: Client, inventory: Sample) -> None:
    for url in pages(inventory):
        assert admin.post(url).status_code == 405, url


def test_htmx_gets_the_content_without_the_shell(admin: Client, inventory: Sample) -> None:
    url = reverse("inventory:summary", args=["vm", inventory.vm.pk])
    part = admin.get(url, headers=HTMX | {"HX-Target": "content"}).content.decode()
    assert "<title>app-db01" in part and "<html" not in part and 'id="tree"' not in part
    assert f'data-node="vm-{inventory.vm.pk}"' in part
    again = admin.get(url, headers=HTMX | {"HX-Target": "content", "HX-History-Restore-Request": "true"})
    assert "<html" in again.content.decode()


def test_an_object_that_is_gone_is_named(admin: Client) -> None:
    gone = uuid4()
    answer = admin.get(reverse("inventory:summary", args=["vm", gone]))
    assert answer.status_code == 404
    assert f"There is no virtual machine {gone}" in answer.content.decode()
    alert = admin.get(reverse("inventory:summary", args=["host", gone]), headers=HTMX)
    assert alert.status_code == 404 and alert.headers["HX-Retarget"] == "#alerts"
    assert 'data-code="host_not_found"' in alert.content.decode()


def test_vm_list_filters_sorts_and_pages(admin: Client, inventory: Sample) -> None:
    url = reverse("inventory:vms", args=["cluster", inventory.cluster.pk])

    def names(query: str) -> list[str]:
        return [row.vm.name for row, _ in admin.get(f"{url}?{query}").context["rows"]]

    assert names("") == ["app-db01", "app-db02", "app-web01", "app-web02", "legacy-erp", "vtpm-win11"]
    assert names("q=WEB") == ["app-web01", "app-web02"]
    assert names("power=off&sort=-name") == ["app-web02", "app-db02"]
    assert names("encrypted=yes") == ["app-db01", "vtpm-win11"]
    assert names("firmware=bios") == ["app-web01"]
    assert names("sort=-memory")[0] == "legacy-erp"
    assert names("power=nonsense&sort=nonsense&page=nonsense")[0] == "app-db01"


def test_lists_and_tree_need_as_many_queries_for_many_vms(admin: Client, inventory: Sample) -> None:
    urls = [
        reverse("inventory:vms", args=["host", inventory.host.pk]),
        reverse("inventory:tree-children", args=["hosts", "host", inventory.host.pk]),
        reverse("inventory:tree-children", args=["vms", "datacenter", inventory.datacenter.pk]),
        reverse("search") + "?q=app",
    ]

    def counts() -> list[int]:
        found = []
        for url in urls:
            with CaptureQueriesContext(connection) as queries:
                assert admin.get(url, headers=HTMX).status_code == 200
            found.append(len(queries))
        return found

    few = counts()
    VirtualMachine.objects.bulk_create(
        VirtualMachine(host=inventory.host, uuid=uuid4(), name=f"app-{n:04}") for n in range(600)
    )
    many = counts()
    assert [after - before for before, after in zip(few, many, strict=True)] == [
        0,
        1,
        1,
        0,
    ]  # 1: counting what is left out


def test_tree_shows_the_first_and_offers_more(admin: Client, inventory: Sample) -> None:
    VirtualMachine.objects.bulk_create(
        VirtualMachine(host=inventory.lost_host, uuid=uuid4(), name=f"bulk-{n:04}") for n in range(250)
    )
    url = reverse("inventory:tree-children", args=["hosts", "host", inventory.lost_host.pk])
    first = admin.get(f"{url}?level=4").content.decode()
    assert first.count('role="treeitem"') == 201 and "51 not shown" in first
    assert f"{url}?level=4&amp;limit=400" in first
    assert admin.get(f"{url}?level=4&limit=400").content.decode().count('role="treeitem"') == 251


def test_tree_opens_what_is_asked_and_answers_204_when_unchanged(admin: Client, inventory: Sample) -> None:
    url, opened = reverse("inventory:tree"), f"datacenter-{inventory.datacenter.pk},cluster-{inventory.cluster.pk}"
    drawn = admin.get(url, {"open": opened}).content.decode()
    assert "kvm01.corp.example" in drawn and "app-db01" not in drawn
    version = drawn.partition('data-version="')[2].partition('"')[0]
    assert admin.get(url, {"open": opened, "v": version}).status_code == 204
    Host.objects.filter(pk=inventory.lost_host.pk).update(state=Host.State.CONNECTED)
    assert admin.get(url, {"open": opened, "v": version}).status_code == 200


def test_tree_view_is_kept_by_a_cookie(admin: Client, inventory: Sample) -> None:
    admin.get(reverse("inventory:tree"), {"view": "storage"})
    page = admin.get(reverse("inventory:summary", args=["datastore", inventory.datastore.pk])).content.decode()
    assert 'data-view="storage"' in page and f't-datastore-{inventory.datastore.pk}"' in page


def test_add_datacenter_and_cluster(admin: Client) -> None:
    form = admin.get(reverse("inventory:add-datacenter"), headers=HTMX)
    assert form.content.decode().lstrip().startswith("<dialog")
    answer = admin.post(reverse("inventory:add-datacenter"), {"name": "North"}, headers=HTMX)
    north = Datacenter.objects.get(name="North")
    assert answer.status_code == 204 and str(north.pk) in answer.headers["HX-Location"]
    plain = admin.post(reverse("inventory:add-cluster", args=[north.pk]), {"name": "C1"})
    assert plain.headers["Location"] == reverse("inventory:summary", args=["cluster", Cluster.objects.get().pk])


def test_a_name_twice_is_refused_in_the_dialog(admin: Client, inventory: Sample) -> None:
    answer = admin.post(reverse("inventory:add-datacenter"), {"name": "DC-East"}, headers=HTMX)
    assert answer.status_code == 409
    page = answer.content.decode()
    assert "DC-East" in page and 'class="alert alert-danger"' in page and 'value="DC-East"' in page


def test_missing_input_is_refused_in_the_dialog(admin: Client, inventory: Sample) -> None:
    for url in (
        reverse("inventory:add-datacenter"),
        reverse("inventory:add-cluster", args=[inventory.datacenter.pk]),
        reverse("inventory:add-host", args=[inventory.cluster.pk]),
    ):
        answer = admin.post(url, {}, headers=HTMX)
        assert answer.status_code == 422 and "This field is required." in answer.content.decode()


def test_add_host_starts_a_job(admin: Client, inventory: Sample) -> None:
    url = reverse("inventory:add-host", args=[inventory.cluster.pk])
    answer = admin.post(url, {"name": "kvm09", "uri": "qemu+tls://kvm09.example.org/system"}, headers=HTMX)
    assert answer.status_code == 204, answer.content
    host = Host.objects.get(name="kvm09")
    assert host.state == Host.State.CONNECTING
    assert Job.objects.get(target_id=host.pk).status == JobStatus.PENDING


def test_a_uri_that_runs_programs_is_refused_with_the_way_out(admin: Client, inventory: Sample) -> None:
    url = reverse("inventory:add-host", args=[inventory.cluster.pk])
    answer = admin.post(url, {"name": "evil", "uri": "qemu+ext:///system?command=/bin/sh"}, headers=HTMX)
    assert answer.status_code == 422 and 'class="hint"' in answer.content.decode()
    assert not Host.objects.filter(name="evil").exists()


def test_rename_and_remove(admin: Client, inventory: Sample) -> None:
    west = Datacenter.objects.get(name="DC-West")
    assert admin.post(reverse("inventory:rename-datacenter", args=[west.pk]), {"name": "DC-South"}).status_code == 302
    west.refresh_from_db()
    assert west.name == "DC-South"
    assert admin.post(reverse("inventory:remove-datacenter", args=[west.pk])).headers["Location"] == reverse(
        "inventory:root"
    )
    assert not Datacenter.objects.filter(pk=west.pk).exists()
    full = admin.post(reverse("inventory:remove-cluster", args=[inventory.cluster.pk]), headers=HTMX)
    assert full.status_code == 409 and Cluster.objects.filter(pk=inventory.cluster.pk).exists()


def test_power_on_twice_is_one_job(admin: Client, inventory: Sample) -> None:
    url = reverse("inventory:power", args=[inventory.off_vm.pk, "on"])
    assert admin.post(url, headers=HTMX).status_code == 204
    again = admin.post(url, headers=HTMX)
    assert again.status_code == 409 and "busy" in again.content.decode()
    live = Job.objects.filter(target_id=inventory.off_vm.pk, status=JobStatus.PENDING)
    assert live.count() == 1


def test_power_in_the_wrong_state_is_refused(admin: Client, inventory: Sample) -> None:
    VirtualMachine.objects.filter(pk=inventory.off_vm.pk).update(power_state=PowerState.ON)
    answer = admin.post(reverse("inventory:power", args=[inventory.off_vm.pk, "on"]), headers=HTMX)
    assert answer.status_code == 409 and "running already" in answer.content.decode()


def test_power_off_asks_first(admin: Client, inventory: Sample) -> None:
    page = admin.get(reverse("inventory:power", args=[inventory.vm.pk, "off"]), headers=HTMX).content.decode()
    assert "What the guest has not written is lost" in page and "btn-danger" in page


def test_one_who_may_only_look_changes_nothing(looker: Client, inventory: Sample) -> None:
    before = (Datacenter.objects.count(), Host.objects.count(), Job.objects.count())
    told = Event.objects.latest("pk").pk
    for name, target in (
        ("add-datacenter", None),
        ("add-cluster", inventory.datacenter),
        ("rename-datacenter", inventory.datacenter),
        ("remove-cluster", inventory.cluster),
        ("add-host", inventory.cluster),
        ("edit-host", inventory.host),
        ("refresh-host", inventory.host),
        ("remove-host", inventory.host),
        ("remove-vm", inventory.vm),
    ):
        url = reverse(f"inventory:{name}", args=[target.pk] if target else [])
        answer = looker.post(url, {"name": "x", "uri": "qemu:///system"}, headers=HTMX)
        assert answer.status_code == 403 and "charlie may not" in answer.content.decode(), url
    for verb in ("on", "off", "shut-down", "reboot"):
        assert looker.post(reverse("inventory:power", args=[inventory.vm.pk, verb])).status_code == 403
    assert looker.get(reverse("inventory:console", args=[inventory.vm.pk])).status_code == 403
    assert before == (Datacenter.objects.count(), Host.objects.count(), Job.objects.count())
    assert set(Event.objects.filter(pk__gt=told).values_list("kind", flat=True)) == {"access.denied"}


def test_a_guest_cannot_write_html_onto_the_console_page(
    admin: Client, inventory: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = console.ConsoleText("<script>alert(1)</script> login:", 1.0)
    monkeypatch.setattr(console, "console_text", lambda *, vm_id, actor: text)
    page = admin.get(reverse("inventory:console", args=[inventory.vm.pk])).content.decode()
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
