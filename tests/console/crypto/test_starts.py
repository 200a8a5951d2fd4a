"""A process proves its ciphers before it takes work."""

from collections.abc import Iterator

import pytest
from celery import signals
from celery.utils.dispatch import Signal

from encryption.engine import xts
from encryption.models import CryptoProcess
from encryption.services import crypto_modules
from inventory.models import Alarm, Event
from inventory.services import processes

pytestmark = pytest.mark.django_db


class Worker:
    hostname = "crypto@kvm-console"


@pytest.fixture(autouse=True)
def this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests' own process stays what it was. `started` closes connections, for a fork that does not come here."""
    monkeypatch.setattr("encryption.services.crypto_modules.connections.close_all", lambda: None)
    before = (crypto_modules._this.name, crypto_modules._this.failed)
    yield
    crypto_modules._this.name, crypto_modules._this.failed = before


def break_xts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xts, "_VECTOR_CIPHER_HEAD", bytes(16))


def test_worker_starts_with_good_ciphers() -> None:
    signals.worker_init.send(sender=Worker())
    row = CryptoProcess.objects.get()
    assert row.name == "worker-crypto"
    assert row.label in (CryptoProcess.Label.ACTIVE, CryptoProcess.Label.APPROVED)
    assert row.failed_tests == []
    assert row.passed_count > 10


@pytest.mark.parametrize(("signal", "name"), [(signals.worker_init, "worker-crypto"), (signals.beat_init, "beat")])
def test_no_start_with_broken_ones(monkeypatch: pytest.MonkeyPatch, signal: Signal, name: str) -> None:
    break_xts(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        signal.send(sender=Worker())
    assert ended.value.code == 70
    row = CryptoProcess.objects.get(name=name)
    assert row.label == CryptoProcess.Label.FAILED
    assert [test["name"] for test in row.failed_tests] == ["AES-256-XTS"]
    alarm = Alarm.objects.get(kind="crypto.self_tests_failed")
    assert "AES-256-XTS" in alarm.message


def test_an_alarm_ends_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        break_xts(patch)
        processes.started("registrar")
    assert Alarm.objects.get().cleared_at is None
    processes.started("registrar")
    assert Alarm.objects.get().cleared_at is not None


def test_a_database_that_is_away_does_not_keep_a_good_worker_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import OperationalError

    def away(*_: object, **__: object) -> None:
        raise OperationalError("no such table")

    monkeypatch.setattr(crypto_modules, "_report", away)
    signals.worker_init.send(sender=Worker())
    assert crypto_modules.why_not_ready() == ""


def test_the_web_process_tells_a_change_of_mode_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(name: str, mode: str) -> list[str]:
        monkeypatch.setattr("django.conf.settings.FIPS_MODE", mode)
        processes.started(name)
        return list(Event.objects.filter(kind="crypto.modules_changed").values_list("data__mode", flat=True))

    assert started("web", "auto") == []
    assert started("web", "auto") == []
    assert started("beat", "off") == []
    assert started("web", "off") == ["off"]
    assert started("web", "off") == ["off"]
    assert sorted(started("web", "auto")) == ["auto", "off"]


def test_the_very_first_start_in_mode_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django.conf.settings.FIPS_MODE", "off")
    processes.started("web")
    event = Event.objects.get(kind="crypto.modules_changed")
    assert event.severity == "warning"


def test_a_certificate_is_claimed_for_the_digest_that_the_operator_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from encryption.adapters import crypto_modules as modules

    found = [
        modules.Boundary(name, "a library", "", is_tested=True, provider="FIPS", provider_file="/f", sha256="ab" * 32)
        for name in (modules.WHEEL, modules.SYSTEM)
    ]
    monkeypatch.setattr(modules, "boundaries", lambda **_: found)
    monkeypatch.setattr("django.conf.settings.FIPS_VALIDATED", {})
    processes.started("web")
    assert CryptoProcess.objects.get().label == CryptoProcess.Label.ACTIVE
    monkeypatch.setattr("django.conf.settings.FIPS_VALIDATED", {"ab" * 32: "4985"})
    processes.started("web")
    row = CryptoProcess.objects.get()
    assert (row.label, row.certificate) == (CryptoProcess.Label.VALIDATED, "4985")
    monkeypatch.setattr("django.conf.settings.FIPS_VALIDATED", {"cd" * 32: "4985"})
    processes.started("web")
    row.refresh_from_db()
    assert (row.label, row.certificate) == (CryptoProcess.Label.ACTIVE, "")
