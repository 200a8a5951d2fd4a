"""The history and the crypto inventories in the browser: accessible, no error, no breach of the policy, by keyboard."""

import pytest
from django.urls import reverse
from django.utils import timezone

from encryption.models import CryptoInventory
from inventory import events
from inventory.authorize import SYSTEM
from inventory.models import Event, Outcome, Severity
from inventory.services import checkpoints
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def history(inventory: Sample) -> None:
    with events.acting_from("192.0.2.17"):
        events.record(
            "vm.options_requested", "VM Encryption Policy requested for app-db01", target=inventory.vm, actor="alice",
            plan_digest="ab" * 32, policy="VM Encryption Policy", steps=["Encrypt vda"],
        )  # fmt: skip
        events.record(
            "access.denied", "charlie may not encryption.decrypt_vm on app-db01", target=inventory.vm, actor="charlie",
            severity=Severity.WARNING, outcome=Outcome.DENIED, reason="encryption.decrypt_vm", method="POST",
        )  # fmt: skip
    events.record(
        "host.disconnected", "kvm01 is disconnected: no route", target=inventory.host, actor=SYSTEM,
        severity=Severity.ERROR, code="host_unreachable",
    )  # fmt: skip
    checkpoints.sign(actor=SYSTEM)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_history(console: Console, history: None, theme: str) -> None:
    console.page.context.add_cookies([{"name": "bartizan_theme", "value": theme, "url": console.url}])
    page = console.open(reverse("events"))
    page.get_by_text("Facts").first.click()
    console.shot(f"events-{theme}")
    page.get_by_label("Type").focus()
    page.keyboard.type("access.")
    page.keyboard.press("Enter")
    page.wait_for_url("**/events/?*kind=access.*")
    page.get_by_text("1 of 1 events").wait_for()
    assert page.get_by_text("kvm01 is disconnected").count() == 0
    assert page.get_by_label("Type").input_value() == "access."
    assert console.axe() == []
    with page.expect_download() as download:
        page.get_by_role("link", name="Export CSV").click()
    assert "access.denied" in download.value.path().read_text(encoding="utf-8")
    assert Event.objects.get(kind="audit.events_exported").data["filters"] == ["kind=access."]
    page.set_viewport_size({"width": 420, "height": 800})
    page.goto(console.url + reverse("events"))
    page.wait_for_selector("#tasks-rows table")
    console.shot(f"events-narrow-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    assert console.axe() == []


def test_crypto_inventories(console: Console, inventory: Sample) -> None:
    CryptoInventory.objects.create(asked_by="alice", made_at=timezone.now(), virtual_machines=12, encrypted_parts=31,
                                   key="3f" * 32, content="{}")  # fmt: skip
    page = console.open(reverse("encryption:crypto-inventories"))
    console.shot("crypto-inventories")
    assert console.axe() == []
    page.get_by_role("link", name="New…").click()
    page.get_by_role("button", name="Make").wait_for()
    console.shot("crypto-inventory-new")
    assert console.axe() == []
    page.get_by_role("button", name="Make").click()
    page.get_by_text("Not made").wait_for()
