"""Alarms of key providers and of locked VMs: raised by what is observed, cleared by what is observed later."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from encryption.engine.key_server import KeyAttributes, KeyNotFound, KeyState, KmsUnreachable, ServerAddress
from encryption.models import Key, KmsCluster, KmsServer
from encryption.services import certificates, key_lifecycle, key_providers, kms_alarms, kms_state, locks
from encryption.services.locks import Failure
from inventory.authorize import SYSTEM
from inventory.errors import Unavailable
from inventory.models import Alarm, Event, TargetKind
from tests.encryption.certificates import LEAF
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import provider

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def kms(db: None) -> KmsCluster:
    made = provider()
    made.servers.create(position=1, host="kms2.example")
    return made


def live() -> dict[str, list[str]]:
    return {one.kind: one.evidence for one in Alarm.objects.filter(cleared_at=None)}


def lose(server: KmsServer) -> None:
    kms_state.note_failure(server, KmsUnreachable(ServerAddress(server.host, server.port), "refused"))


def test_one_server_lost_all_lost_and_back(kms: KmsCluster) -> None:
    first, second = kms.servers.all()
    lose(first)
    assert live().keys() == {"kms.server_lost"} and "kms.example:5696" in live()["kms.server_lost"][0]
    lose(second)
    assert live().keys() == {"kms.unavailable"} and len(live()["kms.unavailable"]) == 2
    kms_state.note_connected(second)
    assert live().keys() == {"kms.server_lost"}
    kms_state.note_connected(first)
    assert live() == {}
    assert set(Event.objects.values_list("kind", flat=True)) == {"kms.server_lost", "kms.server_connected"}


def test_a_request_that_ends_late_does_not_lose_a_server_that_has_answered_since(kms: KmsCluster) -> None:
    first, second = kms.servers.all()
    lose(second)
    asked_at = timezone.now()
    lose(first)
    kms_state.note_connected(KmsServer.objects.get(pk=first.pk))
    failure = KmsUnreachable(ServerAddress(first.host, first.port), "timed out")
    kms_state.note_failure(first, failure, asked_at=asked_at)
    first.refresh_from_db()
    assert first.state == KmsServer.State.CONNECTED and first.state_reason == ""
    assert live().keys() == {"kms.server_lost"}
    kms_state.note_failure(first, failure, asked_at=timezone.now())
    assert live().keys() == {"kms.unavailable"}


def test_a_lost_server_that_is_removed_is_no_alarm_any_more(kms: KmsCluster, alice: User) -> None:
    lost = kms.servers.all()[0]
    lose(lost)
    key_providers.remove_server(server_id=lost.pk, actor=alice)
    assert live() == {}


def test_a_key_provider_that_is_removed_takes_its_alarms_along(kms: KmsCluster, alice: User) -> None:
    lose(kms.servers.all()[0])
    key_providers.remove_cluster(cluster_id=kms.pk, actor=alice)
    assert live() == {} and Alarm.objects.get().target_kind == TargetKind.KMS_CLUSTER


def test_certificates_near_their_end(kms: KmsCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    now = timezone.now()
    for days in (9, -1):
        kms.servers.update(certificate_not_after=now + timedelta(days=days))
        kms_alarms.review_certificates(kms)
        alarm = Alarm.objects.get(cleared_at=None)
        assert (alarm.kind, len(alarm.evidence)) == ("kms.certificate_expiring", 2)
        assert alarm.severity == ("warning" if days > 0 else "error")
    kms.servers.update(certificate_not_after=now + timedelta(days=31))
    kms_alarms.review_certificates(kms)
    assert live() == {}
    kms.servers.update(certificate_not_after=None)
    kms.client_certificate_pem = LEAF
    monkeypatch.setattr(certificates, "WARN_BEFORE", timedelta(days=36500))
    kms_alarms.review_certificates(kms)
    (evidence,) = live()["kms.certificate_expiring"]
    assert evidence.startswith("this console's client certificate")


def test_a_key_that_protects_something_and_is_gone(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch, quick_tpm: None
) -> None:
    world = make_world()
    world.succeed(world.all_disks())
    key = Key.objects.get()
    unused = Key.objects.create(cluster=key.cluster, key_id="unused", state=Key.State.MISSING)
    kms_alarms.review_keys(key.cluster)
    assert live() == {}, f"{unused} protects nothing"
    told: dict[str, KeyAttributes | KeyNotFound] = {
        "missing": KeyNotFound(ServerAddress("memory"), key.key_id),
        "active": KeyAttributes(key.key_id, (), KeyState.ACTIVE, "AES", 256, frozenset()),
    }
    for state in ("missing", "active"):
        monkeypatch.setattr(key_lifecycle, "_asked", lambda server, row, state=state: told[state])
        key_lifecycle.refresh_states(key.cluster, [key])
        if state == "missing":
            (evidence,) = live()["kms.key_unusable"]
            assert key.key_id in evidence and "protects vm" in evidence
    assert live() == {}


def test_a_locked_vm_until_its_keys_can_be_had(make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None) -> None:
    world = make_world()
    world.succeed(world.all_disks())
    row = world.secrets["vda"]
    error = Unavailable("kms_unreachable", "kms.example is not reachable", hint="bring it back")
    for _ in range(2):
        locks.lock(world.vm, [Failure(row, error)], actor=SYSTEM)
    alarm = Alarm.objects.get()
    assert (alarm.kind, alarm.evidence) == ("vm.locked", ["kms.example is not reachable"])
    assert "bring it back" in alarm.remedy and "disk vda" in alarm.message
    assert Event.objects.filter(kind="vm.locked").count() == 1
    locks.release(world.vm, actor=SYSTEM)
    assert live() == {}
