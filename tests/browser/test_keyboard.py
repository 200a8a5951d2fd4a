"""The product without a mouse: tree, menus, dialogs, search, splitters; and the live tasks pane."""

import re

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from inventory.models import Datacenter, Job, JobStatus, PowerState, VirtualMachine
from tests import sample
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def _focused(page: Page) -> str:
    return str(
        page.evaluate(
            "document.activeElement.querySelector('.name')?.textContent ?? document.activeElement.textContent"
        )
    ).strip()


def test_tree_by_keyboard(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:root"))
    page.locator('#tree [tabindex="0"]').focus()
    assert _focused(page) == "DC-East"
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("treeitem", name="Prod-Cluster")).to_be_visible()
    page.keyboard.press("ArrowRight")
    assert _focused(page) == "Edge-Cluster"
    page.keyboard.type("prod")
    assert _focused(page) == "Prod-Cluster"
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("treeitem", name="kvm01")).to_be_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("treeitem", name="app-db01")).to_be_visible()
    page.keyboard.press("ArrowRight")
    assert _focused(page) == "app-db01"
    page.keyboard.press("End")
    assert _focused(page) == "DC-West"
    page.keyboard.press("Home")
    assert _focused(page) == "DC-East"
    page.keyboard.type("app-db02")
    page.keyboard.press("Enter")
    expect(page.locator("#content h1")).to_have_text("app-db02")
    assert page.url.endswith(reverse("inventory:summary", args=["vm", inventory.off_vm.pk]))
    assert _focused(page) == "app-db02", "the focus stays in the tree"
    expect(page.locator('#tree [aria-selected="true"]')).to_have_count(1)
    assert console.axe() == []
    page.keyboard.press("ArrowLeft")
    assert _focused(page) == "kvm01.corp.example"
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("treeitem", name="app-db01")).to_be_hidden()


def test_tree_keeps_what_is_open_over_a_reload_and_back(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:summary", args=["vm", inventory.vm.pk]))
    expect(page.get_by_role("treeitem", name="app-web01")).to_be_visible()
    page.locator(".tree-root").click()
    expect(page.locator("#content h1")).to_have_text("Inventory")
    page.reload()
    expect(page.get_by_role("treeitem", name="app-web01")).to_be_visible()
    page.get_by_role("treeitem", name="app-db02").click()
    expect(page.locator("#content h1")).to_have_text("app-db02")
    page.go_back()
    expect(page.locator("#content h1")).to_have_text("Inventory")


def test_tree_follows_what_happens(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:summary", args=["vm", inventory.off_vm.pk]))
    expect(page.get_by_role("treeitem", name="app-db02, powered off")).to_be_visible()
    VirtualMachine.objects.filter(pk=inventory.off_vm.pk).update(power_state=PowerState.ON)
    sample.job_of(inventory.off_vm, "inventory.power_on", JobStatus.PENDING)
    expect(page.get_by_role("treeitem", name="app-db02, powered on")).to_be_visible()
    expect(page.locator("#page-head .label", has_text="Powered on")).to_be_visible()


def test_context_menu_and_dialog_by_keyboard(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:summary", args=["vm", inventory.vm.pk]))
    page.get_by_role("treeitem", name="app-web01").focus()
    page.keyboard.press("Shift+F10")
    expect(page.locator("#context-menu")).to_be_visible()
    console.shot("context-menu")
    assert console.axe() == []
    page.keyboard.press("Escape")
    assert _focused(page) == "app-web01"
    page.keyboard.press("Shift+F10")
    expect(page.locator("#context-menu")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert _focused(page) == "Power Off…"
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("Power off app-web01")
    console.shot("dialog-power-off")
    assert console.axe() == []
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert _focused(page) == "app-web01"
    assert not Job.objects.filter(kind="inventory.power_off", status=JobStatus.PENDING).exists()


def test_power_on_from_the_actions_menu(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:summary", args=["vm", inventory.off_vm.pk]))
    page.locator("#page-head summary").focus()
    page.keyboard.press("ArrowDown")
    assert _focused(page) == "Power On"
    console.shot("actions-menu")
    page.keyboard.press("Enter")
    expect(page.locator("#tasks-rows tbody tr").first).to_contain_text("Queued")
    expect(page.locator("#tasks-status")).to_have_text("2 tasks running")
    page.get_by_role("button", name="Cancel Power on of app-db02").click()
    expect(page.locator("#tasks-rows tbody tr").first).to_contain_text("Cancelled")


def test_what_a_service_refuses_stays_in_the_dialog(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:root"))
    page.get_by_role("link", name="New data center…").click()
    dialog = page.locator("dialog[open]")
    expect(dialog.get_by_label("Name")).to_be_focused()
    page.keyboard.type("DC-East")
    page.keyboard.press("Enter")
    expect(dialog.locator(".alert-danger")).to_contain_text("DC-East")
    expect(dialog.get_by_label("Name")).to_have_value("DC-East")
    console.shot("dialog-refused")
    assert console.axe() == []
    # The refused request itself is an answer with status 409, which Chromium logs; nothing else may be there.
    assert [text for text in console.complaints if "409" not in text] == []
    console.complaints.clear()
    dialog.get_by_label("Name").fill("DC-North")
    page.keyboard.press("Enter")
    expect(page.locator("#content h1")).to_have_text("DC-North")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("treeitem", name="DC-North")).to_be_visible()
    assert Datacenter.objects.filter(name="DC-North").exists()


def test_add_host_dialog(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:summary", args=["cluster", inventory.cluster.pk]))
    page.locator("#page-head summary").click()
    page.get_by_role("menuitem", name="Add Host…").click()
    expect(page.locator("dialog[open]")).to_contain_text("qemu+tls://")
    console.shot("dialog-add-host")
    assert console.axe() == []
    page.get_by_role("link", name="Cancel").click()
    expect(page.locator("dialog")).to_have_count(0)


def test_search_by_keyboard(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:root"))
    page.keyboard.press("/")
    page.keyboard.type("web")
    expect(page.locator("#search-results")).to_be_visible()
    console.shot("search-box")
    assert console.axe() == []
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#content h1")).to_have_text("app-web02")
    expect(page.locator("#search-results")).to_be_hidden()


def test_tasks_pane_is_live_and_keeps_the_focus(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:root"))
    job = Job.objects.get(status=JobStatus.RUNNING)
    page.locator(f"#cancel-{job.pk}").focus()
    job.done = 80
    job.save()
    expect(page.locator("#tasks-rows .progress-line")).to_have_text("80%")
    assert page.evaluate("document.activeElement.id") == f"cancel-{job.pk}"
    page.locator("#tasks-toggle").click()
    expect(page.locator("#tasks-body")).to_be_hidden()
    page.reload()
    expect(page.locator("#tasks-body")).to_be_hidden()
    assert page.locator("#tasks-toggle").get_attribute("aria-expanded") == "false"


def test_list_is_filtered_while_typing_and_its_address_says_so(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:vms", args=["cluster", inventory.cluster.pk]))
    page.get_by_label("Name").last.focus()
    page.keyboard.type("web")
    expect(page.locator("#live tbody tr")).to_have_count(2)
    expect(page).to_have_url(re.compile("q=web"))
    page.get_by_role("link", name="Memory").click()
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("Memory")
    expect(page.locator("#live tbody tr")).to_have_count(2)


def test_splitter_by_keyboard(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:root"))
    page.locator("#sidebar-splitter").focus()
    before = page.locator("#sidebar").bounding_box()
    page.keyboard.press("ArrowRight")
    after = page.locator("#sidebar").bounding_box()
    assert before and after and after["width"] == before["width"] + 20
    assert page.locator("#sidebar-splitter").get_attribute("aria-valuenow") == "310"


def test_theme_switch_and_logout(console: Console, inventory: Sample) -> None:
    page = console.open(reverse("inventory:root"))
    page.get_by_role("treeitem", name="DC-East").press("ArrowRight")
    page.get_by_role("treeitem", name="Prod-Cluster").click()
    page.locator("#content").get_by_role("link", name="kvm01.corp.example").click()
    expect(page.locator("#content h1")).to_have_text("kvm01.corp.example")
    page.get_by_role("button", name="Dark theme").click()
    expect(page.locator("body")).to_have_attribute("cds-theme", "dark")
    expect(page.locator("#content h1")).to_have_text("kvm01.corp.example")
    console.log_out()
