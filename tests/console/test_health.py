"""Liveness, readiness and metrics, with a real Redis for what is asked of the broker."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import redis
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, connections
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from console import api_tokens, health
from console.celery import app
from console.launch.processes import redis_server
from console.models import SyslogTarget
from inventory import alarms, events
from inventory.models import Host, Severity
from tests import sample
from tests.encryption.world import provider

NOWHERE: Final = "redis://127.0.0.1:1/0"


@pytest.fixture(scope="module")
def redis_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("redis") / "socket"
    arguments = [
        redis_server(path.parent),
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--save",
        "",
        "--dir",
        str(path.parent),
    ]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as server:
        for _ in range(200):
            if path.exists():
                break
            time.sleep(0.05)
        yield path
        server.terminate()


@pytest.fixture
def broker(redis_socket: Path, monkeypatch: pytest.MonkeyPatch) -> redis.Redis:
    monkeypatch.setattr(app.conf, "broker_read_url", f"redis+socket://{redis_socket}?virtual_host=0")
    server = redis.Redis(unix_socket_path=str(redis_socket))
    server.flushall()
    return server


@pytest.fixture
def no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.conf, "broker_read_url", NOWHERE)


def bearer(user: User) -> dict[str, str]:
    return {"Authorization": "Bearer " + api_tokens.create_token(user=user, name="scraper", days=1, actor=user).token}


def values(text: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_a_living_process_asks_nobody(client: Client) -> None:
    """Without a database: pytest-django would refuse it."""
    answer = client.get("/healthz")
    assert (answer.status_code, answer.content) == (200, b"ok\n")


@pytest.mark.django_db
class TestReady:
    def test_all_is_well(self, client: Client, broker: redis.Redis) -> None:
        answer = client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json() == {
            "ready": True,
            "checks": {"database": "ok", "migrations": "ok", "broker": "ok", "crypto": "ok"},
        }
        assert "no-store" in answer.headers["Cache-Control"]

    def test_no_broker(self, client: Client, no_broker: None) -> None:
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"] == {
            "database": "ok",
            "migrations": "ok",
            "broker": "unreachable",
            "crypto": "ok",
        }

    def test_a_database_that_is_behind(
        self, client: Client, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(health, "_migrated", set())
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM django_migrations WHERE app = 'console'")
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["checks"]["migrations"]) == (503, "behind")

    def test_no_database(self, client: Client, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        def gone(*_: object) -> None:
            raise DatabaseError

        monkeypatch.setattr(type(connections["default"]), "cursor", gone)
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"] == {
            "database": "unreachable",
            "migrations": "unreachable",
            "broker": "ok",
            "crypto": "ok",
        }


@pytest.mark.django_db
class TestMetrics:
    def test_for_the_bearer_of_a_token(self, client: Client, charlie: User, broker: redis.Redis) -> None:
        inventory = sample.make()
        provider()
        alarms.raise_alarm("host.lost", "gone", target=inventory.lost_host, severity=Severity.ERROR)
        broker.sadd("_kombu.binding.crypto", "crypto\x06\x16\x06\x16crypto")
        broker.lpush("crypto", "{}", "{}")
        answer = client.get("/metrics", headers=bearer(charlie))
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        found = values(answer.text)
        assert found['bartizan_hosts{state="connected"}'] == Host.objects.filter(state=Host.State.CONNECTED).count() > 0
        assert found['bartizan_alarms{acknowledged="no",severity="error"}'] == 1
        assert found["bartizan_broker_up"] == 1
        assert found['bartizan_queue_messages{queue="crypto"}'] == 2
        assert found['bartizan_queue_messages{queue="control"}'] == 0
        assert found['bartizan_virtual_machines{part="any"}'] > 0
        assert found["bartizan_events_unsealed"] > 0
        assert [name for name in found if name.startswith("bartizan_key_server_up{")]

    def test_without_a_broker(self, client: Client, charlie: User, no_broker: None) -> None:
        found = values(client.get("/metrics", headers=bearer(charlie)).text)
        assert found["bartizan_broker_up"] == 0
        assert not [name for name in found if name.startswith("bartizan_queue_messages")]

    def test_of_the_syslog_targets(self, client: Client, charlie: User, no_broker: None) -> None:
        now = timezone.now()
        for slot, state, seen in ((1, "up", now), (2, "down", now), (3, "up", None)):
            SyslogTarget.objects.create(slot=slot, host="logs", port=slot, protocol="tcp", state=state, checked_at=seen)
        events.record("x.happened", "x", target=None, actor="x")
        found = values(client.get("/metrics", headers=bearer(charlie)).text)
        assert found['bartizan_syslog_target_up{target="tcp://logs:1"}'] == 1
        assert found['bartizan_syslog_target_up{target="tcp://logs:2"}'] == 0
        assert 'bartizan_syslog_target_up{target="tcp://logs:3"}' not in found
        assert found['bartizan_syslog_backlog_events{target="tcp://logs:3"}'] >= 1

    def test_in_a_fixed_number_of_queries(
        self, client: Client, charlie: User, no_broker: None, django_assert_max_num_queries: DjangoAssertNumQueries
    ) -> None:
        sample.make()
        headers = bearer(charlie)
        with django_assert_max_num_queries(21):
            client.get("/metrics", headers=headers)

    @pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer bartizan_wrong"}, {"Authorization": "Basic x"}])
    def test_not_for_somebody_unknown(self, client: Client, headers: dict[str, str]) -> None:
        answer = client.get("/metrics", headers=headers)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "bartizan_jobs" not in answer.text

    def test_not_for_one_without_a_role(self, client: Client) -> None:
        answer = client.get("/metrics", headers=bearer(User.objects.create_user("dora")))
        assert answer.status_code == 403
        assert "bartizan_jobs" not in answer.text
