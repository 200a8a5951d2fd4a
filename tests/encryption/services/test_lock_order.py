"""Two that change one key provider at once wait for each other in one order. Only on PostgreSQL: SQLite has one writer
at a time, whose lock comes with the transaction's begin."""

import threading
import time
from collections.abc import Iterable
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.db import connection

from encryption.engine.key_server import KmsUnreachable, ServerAddress
from encryption.models import KmsCluster, KmsServer
from encryption.services import key_providers, kms_state
from inventory.alarms import drop_alarms
from inventory.models import Alarm, TargetKind
from tests.encryption.world import provider

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("sent"),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="locks of rows"),
]


def lose(server: KmsServer) -> None:
    kms_state.note_failure(server, KmsUnreachable(ServerAddress(server.host, server.port), "refused"))


def waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
        return cursor.fetchone() is not None


def test_a_provider_is_removed_while_a_worker_notes_that_its_server_is_lost(
    admin_user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = provider()
    second = owner.servers.create(position=1, host="kms2.example")
    lose(owner.servers.get(position=0))
    failures: list[Exception] = []

    def work() -> None:
        try:
            lose(second)
        except Exception as exc:
            failures.append(exc)
        finally:
            connection.close()

    worker = threading.Thread(target=work)

    def dropping(kind: TargetKind, ids: Iterable[UUID]) -> None:
        """In the middle of the removal the worker begins; it goes on when it waits for it."""
        drop_alarms(kind, ids)
        worker.start()
        while worker.is_alive() and not waits_for_a_lock():
            time.sleep(0.01)

    monkeypatch.setattr(key_providers, "drop_alarms", dropping)
    key_providers.remove_cluster(cluster_id=owner.pk, actor=admin_user)
    worker.join(30)
    assert not worker.is_alive() and failures == []
    assert not KmsCluster.objects.exists() and not Alarm.objects.filter(cleared_at=None).exists()
