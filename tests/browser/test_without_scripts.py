"""The product with scripts switched off: every link and form has an address of its own."""

from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Browser, Page, expect
from pytest_django.live_server_helper import LiveServer

from inventory.models import Datacenter, Job, JobStatus
from tests.browser.conftest import PASSWORD
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def plain(assets: None, live_server: LiveServer, inventory: Sample, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1440, "height": 900})
    User.objects.create_superuser("admin", password=PASSWORD)
    page = context.new_page()
    page.goto(live_server.url + "/")
    page.fill("#id_username", "admin")
    page.fill("#id_password", PASSWORD)
    page.click("button")
    yield page
    context.close()


def test_walk_down_and_start_a_vm(plain: Page, inventory: Sample) -> None:
    # Without scripts the tree shows the way to the present object; further down lead the pages.
    content = plain.locator("#content")
    for link in ("DC-East", "Prod-Cluster", "kvm01.corp.example", "VMs", "app-db02"):
        content.get_by_role("link", name=link, exact=True).first.click()
    expect(content.locator("h1")).to_have_text("app-db02")
    expect(plain.get_by_role("treeitem", name="app-db02, powered off")).to_be_visible()
    plain.locator("#page-head summary").click()
    plain.get_by_role("menuitem", name="Power On").click()
    expect(plain.locator("#content h1")).to_have_text("Power on app-db02")
    plain.get_by_role("button", name="Power on").click()
    expect(plain.locator("#content h1")).to_have_text("app-db02")
    assert Job.objects.filter(target_id=inventory.off_vm.pk, status=JobStatus.PENDING).count() == 1


def test_a_form_keeps_its_input_and_shows_the_refusal(plain: Page, inventory: Sample) -> None:
    plain.get_by_role("link", name="New data center…").click()
    plain.get_by_label("Name").fill("DC-East")
    plain.get_by_role("button", name="Create").click()
    expect(plain.locator(".alert-danger")).to_contain_text("DC-East")
    plain.get_by_label("Name").fill("DC-North")
    plain.get_by_role("button", name="Create").click()
    expect(plain.locator("#content h1")).to_have_text("DC-North")
    assert Datacenter.objects.filter(name="DC-North").exists()
