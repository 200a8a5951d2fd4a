"""The API's reference, API tokens and Django's admin in the browser: accessible, no error, no breach of the policy."""

import pytest
from django.urls import reverse

from console.models import ApiToken
from inventory.models import Job, JobStatus
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_reference(console: Console, theme: str) -> None:
    console.page.context.add_cookies([{"name": "bartizan_theme", "value": theme, "url": console.url}])
    page = console.open(reverse("api-docs"))
    console.shot(f"api-docs-{theme}")
    page.click("#list_virtual_machines summary")
    page.locator("#list_virtual_machines").scroll_into_view_if_needed()
    console.shot(f"api-docs-route-{theme}")
    assert console.axe() == []
    page.click("#list_virtual_machines a[href='#shape-VmPage']")
    assert page.locator("#shape-VmPage").get_by_text("total").is_visible()
    page.set_viewport_size({"width": 900, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 900


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_token_is_made_and_revoked(console: Console, theme: str) -> None:
    console.page.context.add_cookies([{"name": "bartizan_theme", "value": theme, "url": console.url}])
    page = console.open(reverse("api-tokens"))
    page.get_by_role("link", name="New…").click()
    page.fill("dialog #id_name", "backup script")
    assert console.axe() == []
    console.shot(f"api-token-form-{theme}")
    page.get_by_role("button", name="Create").click()
    field = page.locator("#new-token")
    field.wait_for()
    token = field.input_value()
    assert token.startswith("bartizan_")
    console.shot(f"api-token-created-{theme}")
    assert console.axe() == []
    page.get_by_role("link", name="Done").click()
    page.get_by_role("cell", name="backup script", exact=True).wait_for()
    assert page.locator("dialog").count() == 0
    assert token not in page.content()
    console.shot(f"api-tokens-{theme}")
    assert console.axe() == []
    page.get_by_role("link", name="Revoke… backup script").click()
    page.get_by_role("button", name="Revoke").click()
    page.get_by_text("You have no API tokens.").wait_for()
    assert not ApiToken.objects.exists()


def test_the_admin(console: Console, inventory: Sample) -> None:
    page = console.page
    for name in ("index", "inventory_virtualmachine_changelist", "inventory_event_changelist", "auth_user_add"):
        page.goto(console.url + reverse(f"admin:{name}"))
        console.shot(f"admin-{name}")
    page.goto(console.url + reverse("admin:inventory_virtualmachine_change", args=[inventory.vm.pk]))
    console.shot("admin-vm")
    page.goto(console.url + reverse("admin:inventory_job_changelist"))
    running = Job.objects.get(status=JobStatus.RUNNING)
    page.locator(f"input[name=_selected_action][value='{running.pk}']").check()
    page.select_option("select[name=action]", "cancel")
    page.get_by_role("button", name="Run", exact=True).or_(page.get_by_role("button", name="Go")).click()
    page.get_by_text("1 job cancelled or asked to end").wait_for()
    console.shot("admin-jobs")
    running.refresh_from_db()
    assert running.cancel_requested
