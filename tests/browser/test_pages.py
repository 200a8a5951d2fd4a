"""Every page in light and dark: accessible, no error, no breach of the policy. Screenshots where asked for."""

import pytest
from django.urls import reverse

from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def _addresses(sample: Sample) -> dict[str, str]:
    found = {"root": reverse("inventory:root"), "alarms": reverse("alarms"), "search": reverse("search") + "?q=app"}
    for kind, target in (
        ("datacenter", sample.datacenter),
        ("cluster", sample.cluster),
        ("host", sample.host),
        ("datastore", sample.datastore),
        ("vm", sample.vm),
    ):
        found[f"{kind}-summary"] = reverse("inventory:summary", args=[kind, target.pk])
    vm, lost = sample.vm.pk, sample.lost_host.pk
    return found | {
        "host-abilities": reverse("inventory:host-abilities", args=[sample.host.pk]),
        "host-disconnected": reverse("inventory:summary", args=["host", lost]),
        "vm-monitor": reverse("inventory:monitor", args=["vm", vm]),
        "vm-events": reverse("inventory:monitor", args=["vm", vm]) + "?show=events",
        "vm-configure": reverse("inventory:configure", args=["vm", vm]),
        "host-configure": reverse("inventory:configure", args=["host", lost]),
        "cluster-vms": reverse("inventory:vms", args=["cluster", sample.cluster.pk]),
        "cluster-hosts": reverse("inventory:hosts", args=["cluster", sample.cluster.pk]),
        "vm-console": reverse("inventory:console", args=[vm]),
        "vm-actions": reverse("inventory:actions", args=["vm", vm]),
        "vm-options": reverse("encryption:vm-options", args=[vm]),
        "key-providers": reverse("encryption:kms"),
        "add-host-page": reverse("inventory:add-host", args=[sample.cluster.pk]),
    }


def test_pages_are_accessible(console: Console, inventory: Sample) -> None:
    for name, path in _addresses(inventory).items():
        page = console.open(path)
        if name == "vm-summary":
            page.wait_for_selector("section[aria-label='VM encryption']")
            page.wait_for_selector("section[aria-label='Windows 11']")
        console.look(name, [("light", 1440), ("dark", 1440)])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_narrow_window(console: Console, inventory: Sample, theme: str) -> None:
    console.page.context.add_cookies([{"name": "bartizan_theme", "value": theme, "url": console.url}])
    console.page.set_viewport_size({"width": 900, "height": 800})
    page = console.open(reverse("inventory:summary", args=["vm", inventory.vm.pk]))
    console.shot(f"vm-summary-900-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 900
    assert not page.locator("#sidebar").is_visible()
    page.click("#sidebar-toggle")
    console.shot(f"drawer-900-{theme}")
    assert page.locator("#sidebar").is_visible() and console.axe() == []
    page.keyboard.press("Escape")
    assert not page.locator("#sidebar").is_visible()
    assert page.evaluate("document.activeElement.id") == "sidebar-toggle"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_abilities_in_a_phones_window(console: Console, inventory: Sample, theme: str) -> None:
    console.page.context.add_cookies([{"name": "bartizan_theme", "value": theme, "url": console.url}])
    console.page.set_viewport_size({"width": 420, "height": 900})
    page = console.open(reverse("inventory:host-abilities", args=[inventory.host.pk]))
    console.shot(f"host-abilities-420-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420 and console.axe() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_login_page(anonymous: Console, theme: str) -> None:
    anonymous.page.context.add_cookies([{"name": "bartizan_theme", "value": theme, "url": anonymous.url}])
    anonymous.page.goto(anonymous.url + "/inventory/")
    anonymous.shot(f"login-{theme}")
    assert anonymous.axe() == []
    anonymous.page.fill("#id_username", "nobody")
    anonymous.page.fill("#id_password", "wrong")
    anonymous.page.click("button")
    anonymous.page.wait_for_selector(".alert-danger")
    assert anonymous.axe() == []
