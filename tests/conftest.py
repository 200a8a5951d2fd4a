"""Fixtures for every test: people, an inventory, and a site of fake hosts."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final

import pytest
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core import serializers
from django.core.cache import cache
from django.core.management import call_command
from django.core.management.commands import flush
from django.db import connection, transaction
from django.db.models import Model
from django.test import Client
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from pytest_django import DjangoDbBlocker
from typing_extensions import override
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from inventory import jobs
from inventory.authorize import Role
from inventory.models import Cluster, Datacenter, Host, RoleAssignment
from inventory.services import connections
from tests.fakes import FakeHypervisor, FakeSite

TOGETHER: Final = ("e2e", "lab", "browser")
"""Folders whose tests share one costly thing (an installation, a lab, Chromium): each runs in one process."""
APART: Final = ("tests/encryption/services/test_killed.py",)
"""Files whose tests share nothing and take long: each test runs wherever there is time."""
_MIGRATED: Final = pytest.StashKey[tuple[DjangoDbBlocker, list[list[Model]]]]()
# How long an example takes says more about the machine than about the code.
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """For runs in several processes: what shares its fixtures stays in one, by folder or by file.

    pytest-xdist's own `loadgroup` writes the group into the test's id, where pytest 9.2 no longer looks.
    """

    @override
    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByGroup:
    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begins first, so that nobody waits for it at the end."""
    order = {name: place for place, name in enumerate((*TOGETHER, *APART))}
    items.sort(key=lambda item: order.get(_group(item.nodeid).partition("::")[0], len(order)))


def _group(nodeid: str) -> str:
    """The folder under tests/ that stays together, or the file, or the test itself."""
    file = nodeid.partition("::")[0]
    folder = file.removeprefix("tests/").partition("/")[0]
    if folder in TOGETHER:
        return folder
    return nodeid if file in APART else file


@pytest.fixture(scope="session")
def django_db_setup(request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """As pytest-django's; what the migrations have put into the database is remembered."""
    with django_db_blocker.unblock():
        found = list(serializers.deserialize("json", connection.creation.serialize_db_to_string()))
    assert not any(one.m2m_data for one in found), "rows only"
    rows = [list(of_model) for _, of_model in groupby((one.object for one in found), key=type)]
    request.config.stash[_MIGRATED] = django_db_blocker, rows
    # Emptying the database would make some of these rows by itself, which takes longest.
    flush.emit_post_migrate_signal = _pass  # type: ignore[attr-defined]


def _pass(*args: object, **kwargs: object) -> None:
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """A test with real transactions ends by emptying the database: the rows that migrations bring come back, also
    where a fixture's end has failed; else every test after it would fail, too."""
    try:
        yield
    finally:
        if nextitem is not None:  # else the database is gone already
            _put_back_what_migrations_bring(item)


def _put_back_what_migrations_bring(item: pytest.Item) -> None:
    mark = item.get_closest_marker("django_db")
    named = getattr(item, "fixturenames", ())
    if (mark and mark.kwargs.get("transaction")) or "transactional_db" in named or "live_server" in named:
        blocker, rows = item.config.stash[_MIGRATED]
        with blocker.unblock():
            if ContentType.objects.exists():  # the end of the fixture has failed
                call_command("flush", verbosity=0, interactive=False)
            with transaction.atomic(), connection.constraint_checks_disabled():
                for of_model in rows:
                    type(of_model[0])._base_manager.bulk_create(of_model)


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture(autouse=True)
def _no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in the transaction of a test: the thread that renews a heartbeat waits long for it, and in vain."""
    monkeypatch.setattr(jobs, "HEARTBEAT_SECONDS", 3600)


@pytest.fixture
def alice(db: None) -> User:
    """The administrator."""
    return User.objects.create_user("alice", is_superuser=True)


@pytest.fixture
def charlie(db: None) -> User:
    """May look at everything and change nothing."""
    user = User.objects.create_user("charlie")
    RoleAssignment.objects.create(user=user, role=Role.AUDITOR, assigned_by="test")
    return user


@pytest.fixture
def admin(client: Client, alice: User) -> Client:
    """The administrator's browser."""
    client.force_login(alice)
    return client


@pytest.fixture
def looker(charlie: User) -> Client:
    found = Client()
    found.force_login(charlie)
    return found


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> FakeSite:
    """Every connection goes to fake hosts; one that is not in it refuses."""
    found = FakeSite()
    monkeypatch.setattr(connections, "opener", found.open)
    return found


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], str]]:
    """Messages for the broker: (task, arguments, queue). Nothing is sent."""
    messages: list[tuple[str, list[str], str]] = []

    def send_task(name: str, args: list[str], queue: str, **options: Any) -> None:
        messages.append((name, args, queue))

    monkeypatch.setattr("celery.current_app.send_task", send_task)
    return messages


@pytest.fixture
def cluster(db: None) -> Cluster:
    datacenter = Datacenter.objects.create(name="Lab")
    return Cluster.objects.create(datacenter=datacenter, name="Cluster 1")


@pytest.fixture
def host(cluster: Cluster) -> Host:
    """Connected, with no VM yet."""
    return Host.objects.create(cluster=cluster, name="kvm-a", uri="qemu+tls://kvm-a/system", state=Host.State.CONNECTED)


@pytest.fixture
def hypervisor(site: FakeSite, host: Host) -> FakeHypervisor:
    """What stands behind `host`."""
    return site.add(host.uri)
