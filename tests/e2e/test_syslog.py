"""The forwarder as `up` runs it, on PostgreSQL: what the history gets, a collector behind TLS gets, in order."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.pki import Authority
from tests.console.appliance.collector import Collector, server_context
from tests.e2e.conftest import Installation, Row, wait_until

pytestmark = pytest.mark.lab
PATH = "/appliance/syslog/"
_SEALED = re.compile(rb'\[bartizan@32473 sequence="(\d+)" .*? digest="([0-9a-f]{64})"\]')


@pytest.fixture
def collector(installation: Installation, tmp_path: Path) -> Iterator[Collector]:
    """A target that the administrator has added by its page."""
    authority = Authority.create(tmp_path / "ca", "Collectors")
    found = Collector(server_context(authority.issue("collector", ips=["127.0.0.1"], server=True)))
    try:
        add = f"{PATH}add/"
        trusted = authority.certificate_pem.decode()
        given: dict[str, Any] = {"protocol": "tls", "host": "127.0.0.1", "port": found.port, "trusted": trusted}
        assert installation.user.submit(installation.user.get(add), add, **given).status == 200
        (target,) = installation.rows("SELECT id FROM console_syslogtarget WHERE port = %s", found.port)
        yield found
        remove = f"{PATH}{target['id']}/remove/"
        assert installation.user.submit(installation.user.get(remove), remove).status == 200
    finally:
        found.close()


def received(collector: Collector) -> list[tuple[int, str]]:
    found = [_SEALED.search(message) for message in collector.messages]
    return [(int(match[1]), match[2].decode()) for match in found if match]


def test_every_event_reaches_a_collector_over_tls(installation: Installation, collector: Collector) -> None:
    user, add = installation.user, "/inventory/datacenters/add/"
    made = user.submit(user.get(add), add, name="Far away")
    assert made.status == 200 and "Far away" in made.words()
    (place,) = installation.rows("SELECT id FROM inventory_datacenter WHERE name = 'Far away'")
    remove = f"/inventory/datacenter/{place['id']}/remove/"
    assert user.submit(user.get(remove), remove).status == 200

    def sealed() -> list[Row]:
        return installation.rows(
            "SELECT kind, sequence FROM inventory_event WHERE target_id = %s AND sequence IS NOT NULL", place["id"]
        )

    wait_until("both events are sealed", lambda: len(sealed()) == 2, 30)
    assert {row["kind"] for row in sealed()} == {"datacenter.added", "datacenter.removed"}
    last = max(row["sequence"] for row in sealed())
    wait_until("the collector has them", lambda: last in dict(received(collector)), 30)
    found = received(collector)
    assert [number for number, _ in found] == list(range(found[0][0], found[-1][0] + 1))
    rows = installation.rows(
        "SELECT sequence, digest FROM inventory_event WHERE sequence BETWEEN %s AND %s", found[0][0], found[-1][0]
    )
    assert {row["sequence"]: row["digest"] for row in rows} == dict(found)
