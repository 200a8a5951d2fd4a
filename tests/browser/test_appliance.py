"""The appliance's pages in a browser: accessible in both themes, narrow, and by keyboard."""

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from console.models import SyslogTarget
from inventory.models import Job
from tests.browser.conftest import Console
from tests.encryption.certificates import CA, LEAF

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def targets(transactional_db: None) -> list[SyslogTarget]:
    """One up, one down, one of which nothing is known."""
    now = timezone.now()
    return [
        SyslogTarget.objects.create(
            slot=1, host="siem.example", port=6514, protocol="tls", trusted_pem=CA, client_certificate_pem=LEAF,
            state="up", checked_at=now, last_sent_at=now, tested_at=now, test_succeeded=True,
            test_result="sent over TLS 1.3, TLS_AES_256_GCM_SHA384, and read by the collector",
        ),
        SyslogTarget.objects.create(
            slot=2, host="2001:db8::17", port=601, protocol="tcp", state="down", checked_at=now, includes_logs=True,
            state_code="syslog_refused", state_reason="[2001:db8::17]:601 refuses the connection",
            state_since=now - timedelta(hours=3), tested_at=now, test_succeeded=False,
            test_result="[2001:db8::17]:601 refuses the connection; does the collector run, at this port?",
        ),
        SyslogTarget.objects.create(slot=3, host="old.example", port=514, protocol="udp", checked_at=now),
    ]  # fmt: skip


def test_pages_are_accessible_and_fit_narrow_windows(console: Console, targets: list[SyslogTarget]) -> None:
    addresses = {
        "syslog": reverse("appliance:syslog"),
        "syslog-edit": reverse("appliance:syslog-edit", args=[targets[0].pk]),
        "syslog-upload": reverse("appliance:syslog-upload-client", args=[targets[0].pk]),
    }
    for name, path in addresses.items():
        console.open(path)
        console.look(name)


def test_a_target_is_added_by_keyboard_and_tested(console: Console) -> None:
    page = console.open(reverse("appliance:syslog"))
    page.get_by_role("link", name="Add target").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog")
    page.fill("dialog input[name='host']", "a b")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog .alert >> text=is no host name")
    page.fill("dialog input[name='host']", "logs.example")
    page.keyboard.press("Enter")
    page.wait_for_selector("section[aria-label='tls://logs.example:6514']")
    page.wait_for_selector("dialog", state="detached")
    page.get_by_role("link", name="Send test message").click()
    page.wait_for_selector("dialog >> text=send one message")
    page.click("dialog .btn-primary")
    page.wait_for_selector("dialog", state="detached")
    jobs = Job.objects.filter(kind="console.send_syslog_test")
    assert jobs.count() == 1
    SyslogTarget.objects.update(tested_at=timezone.now(), test_succeeded=False, test_result="nobody answers")
    jobs.update(status="failed", changed_at=timezone.now())
    page.wait_for_selector("#live >> text=nobody answers")
    console.shot("syslog-tested")
    # That the input was refused is what was asked for.
    assert [text for text in console.complaints if "422" not in text] == []
    console.complaints.clear()
