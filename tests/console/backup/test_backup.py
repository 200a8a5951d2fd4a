"""Backup and restore by their commands, on the tests' database: what was there is there again, to the microsecond."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db.models import Model
from django.utils import timezone
from pytest_django import Settings

from console.backup import rows, sealed_file
from console.models import SecondFactor
from encryption.models import Key, KmsCluster, StoragePolicy
from inventory.authorize import SYSTEM
from inventory.models import Event, Host, Job, JobStatus
from inventory.services import event_chain, verification
from tests import sample
from tests.encryption.world import provider

# Real transactions: a backup reads one moment, which it cannot inside of another transaction.
pytestmark = pytest.mark.django_db(transaction=True)
PASSPHRASE = "a passphrase of some length"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIMULATED: a hundredth of the iterations."""
    monkeypatch.setattr(sealed_file, "ITERATIONS", 6000)


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def backup(tmp_path: Path, passphrase: Path, alice: User) -> Path:
    """Of a console with a VM inventory, a key provider with a key, a second factor, and a sealed history."""
    sample.make()
    Key.objects.create(cluster=provider(), key_id="7")
    SecondFactor.objects.create(
        user=alice, key_sealed=bytes(range(48)), last_step=1, recovery_digests=["d"], enrolled_at=timezone.now()
    )
    event_chain.seal()
    path = tmp_path / "console.backup"
    call_command("backup", str(path), passphrase_file=passphrase)
    return path


def everything() -> dict[str, list[dict[str, Any]]]:
    def shown(model: type[Model]) -> list[dict[str, Any]]:
        found = model._base_manager.order_by("pk").values()
        return [{k: bytes(v) if isinstance(v, memoryview) else v for k, v in row.items()} for row in found]

    return {model._meta.label: shown(model) for model in rows._models()}


def empty() -> None:
    """As a new console has it: what migrations bring, and its first administrator."""
    call_command("flush", verbosity=0, interactive=False)
    User.objects.create_superuser("newcomer")


def restored(path: Path, passphrase: Path, **options: Any) -> None:
    call_command("restore", str(path), passphrase_file=passphrase, **options)


def test_all_rows_come_back_as_they_were(backup: Path, passphrase: Path) -> None:
    before = everything()
    empty()
    restored(backup, passphrase)
    after = everything()
    told = after["inventory.Event"].pop()
    assert (told["kind"], told["severity"]) == ("console.restored", "warning")
    for row in before["inventory.Job"]:
        if row["status"] in ("pending", "running"):
            for name in ("status", "ended_at", "error_code", "message"):
                row[name] = next(one for one in after["inventory.Job"] if one["id"] == row["id"])[name]
    for label, expected in before.items():
        assert after[label] == expected, label
    assert StoragePolicy.objects.count() == 2
    assert not User.objects.filter(username="newcomer").exists()
    assert verification.verify(actor=SYSTEM).problems == ()


def test_what_was_at_work_has_failed(backup: Path, passphrase: Path) -> None:
    live = set(Job.objects.filter(status__in=("pending", "running")).values_list("pk", flat=True))
    assert live
    empty()
    restored(backup, passphrase)
    ended = Job.objects.filter(pk__in=live)
    assert {(job.status, job.error_code) for job in ended} == {(JobStatus.FAILED, "console_restored")}


def test_new_rows_get_new_numbers(backup: Path, passphrase: Path) -> None:
    last = Event.objects.latest("id").pk
    empty()
    restored(backup, passphrase)
    assert Event.objects.latest("id").pk > last


def test_no_name_or_secret_stands_in_the_file(backup: Path) -> None:
    content = backup.read_bytes()
    assert backup.stat().st_mode & 0o777 == 0o600
    assert b"kvm01" not in content and b"administrator" not in content and b'"model"' not in content


def refusal(call: Callable[[], None], word: str) -> None:
    before = everything()
    with pytest.raises(CommandError, match=word):
        call()
    assert everything() == before


def test_not_into_a_console_in_use(backup: Path, passphrase: Path) -> None:
    refusal(lambda: restored(backup, passphrase), "has hosts or key providers")
    assert Host.objects.exists()


def test_not_with_another_console_key(backup: Path, passphrase: Path, settings: Settings) -> None:
    empty()
    settings.CONSOLE_KEY = "6b" * 32
    refusal(lambda: restored(backup, passphrase), "another console key")
    restored(backup, passphrase, any_console_key=True)
    assert KmsCluster.objects.exists()


def test_not_of_other_software(backup: Path, passphrase: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty()
    applied = rows.migrations()
    monkeypatch.setattr(rows, "migrations", lambda: applied[:-1])
    refusal(lambda: restored(backup, passphrase), "newer software")
    monkeypatch.setattr(rows, "migrations", lambda: [*applied, "zoo.0001_animals"])
    refusal(lambda: restored(backup, passphrase), "older software: zoo.0001_animals")


def test_not_when_changed_or_cut(backup: Path, passphrase: Path) -> None:
    empty()
    content = backup.read_bytes()
    backup.write_bytes(content[:-20])
    refusal(lambda: restored(backup, passphrase), "changed or cut")
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    backup.write_bytes(changed)
    refusal(lambda: restored(backup, passphrase), "changed or cut")


def test_not_any_file(backup: Path, passphrase: Path) -> None:
    empty()
    backup.write_bytes(b"SQLite format 3\0" + bytes(100))
    refusal(lambda: restored(backup, passphrase), "no backup")
    refusal(lambda: restored(backup.with_name("missing"), passphrase), "cannot read")


def test_a_wrong_passphrase(backup: Path, passphrase: Path) -> None:
    empty()
    passphrase.write_text("another passphrase")
    refusal(lambda: restored(backup, passphrase), "passphrase is another one")


def test_a_backup_never_replaces_a_file(backup: Path, passphrase: Path) -> None:
    content = backup.read_bytes()
    with pytest.raises(CommandError, match="exists"):
        call_command("backup", str(backup), passphrase_file=passphrase)
    assert backup.read_bytes() == content


@pytest.mark.parametrize(
    ("text", "mode", "word"),
    [("short", 0o600, "fewer than 12"), ("", 0o600, "empty"), (PASSPHRASE, 0o644, "can be read by others")],
)
def test_a_passphrase_that_protects_nothing(
    tmp_path: Path, passphrase: Path, text: str, mode: int, word: str
) -> None:  # fmt: skip
    passphrase.write_text(text)
    passphrase.chmod(mode)
    with pytest.raises(CommandError, match=word):
        call_command("backup", str(tmp_path / "b"), passphrase_file=passphrase)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["passphrase"]


def test_where_nothing_can_be_written(tmp_path: Path, passphrase: Path) -> None:
    with pytest.raises(CommandError, match="cannot write"):
        call_command("backup", str(tmp_path / "no" / "folder"), passphrase_file=passphrase)
