"""Checkpoints of the history, and its verification: whatever is done to the rows, in whatever way, is found."""

import json
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pytest
from django.core.management import call_command
from django.db.models import F
from django.utils import timezone
from pytest_django import Settings

from inventory import events
from inventory.authorize import SYSTEM
from inventory.engine.checkpoint import Checkpoint, find_all, fits, is_signed
from inventory.engine.event_chain import START, sealed
from inventory.errors import Conflict, Unavailable
from inventory.models import AuditKey, Event, EventChain
from inventory.services import audit_key, checkpoints
from inventory.services.event_chain import recorded, seal
from inventory.services.verification import Report, verify

pytestmark = pytest.mark.django_db
COUNT: Final = 6


def write(count: int = COUNT) -> None:
    for number in range(count):
        events.record("vm.powered_on", f"vm-{number} was powered on", target=None, actor="alice", number=number)


def signed() -> Checkpoint:
    found = checkpoints.sign(actor=SYSTEM)
    assert found is not None
    return found


def report(**options: Any) -> Report:
    return verify(actor=SYSTEM, **options)


def codes(**options: Any) -> list[str]:
    return [problem.code for problem in report(**options).problems]


def rebuild() -> None:
    """What somebody can do who may write the whole database, but has not the console key."""
    rows = list(Event.objects.filter(sequence__isnull=False).order_by("sequence"))
    Event.objects.update(sequence=None)
    for event_id, sequence, digest in sealed(map(recorded, rows), after=0, previous=START):
        Event.objects.filter(pk=event_id).update(sequence=sequence, digest=digest)
        EventChain.objects.update(sequence=sequence, digest=digest)


def test_a_checkpoint_is_an_event_and_vouches_for_all_before() -> None:
    write()
    made = signed()
    row = Event.objects.get(kind="audit.checkpoint")
    assert find_all(row.message) == [made]
    assert made.sequence == COUNT + 1, "the key's own making is an event before it"
    key = AuditKey.objects.get()
    assert is_signed(made, key.public_pem) and made.key == key.fingerprint
    seal()
    found = report()
    assert (found.problems, found.signed_to, found.checkpoints, found.are_keys_proven) == ((), made.sequence, 1, True)
    assert found.events == COUNT + 2


def test_nothing_to_sign() -> None:
    """But for the making of the key, which is an event."""
    assert checkpoints.sign_if_due() is False
    assert report().problems == ()


def test_when_a_checkpoint_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = timezone.now()
    write(1)
    assert checkpoints.sign_if_due(now), "the first at once"
    assert not checkpoints.sign_if_due(now + timedelta(hours=1)), "its own event is no news"
    write(1)
    assert not checkpoints.sign_if_due(now + timedelta(minutes=9))
    assert checkpoints.sign_if_due(now + timedelta(minutes=10))
    monkeypatch.setattr(checkpoints, "EVERY_EVENTS", 3)
    write(3)
    assert checkpoints.sign_if_due(now + timedelta(minutes=11))


def test_the_private_key_is_sealed_and_never_in_the_history(settings: Settings) -> None:
    write(1)
    signed()
    row = AuditKey.objects.get()
    assert audit_key.is_own(row)
    settings.CONSOLE_KEY = "11" * 32
    assert not audit_key.is_own(row)
    with pytest.raises(Conflict, match="sealed under another console key"):
        checkpoints.sign(actor=SYSTEM)
    settings.CONSOLE_KEY = ""
    with pytest.raises(Unavailable, match="without the console key"):
        checkpoints.sign(actor=SYSTEM)
    assert report().are_keys_proven is False
    assert report(trusted=[row.fingerprint]).are_keys_proven is True


def change(**values: Any) -> Callable[[], object]:
    return lambda: Event.objects.filter(sequence=3).update(**values)


def swap() -> None:
    Event.objects.filter(sequence=3).update(sequence=-1)
    Event.objects.filter(sequence=5).update(sequence=3)
    Event.objects.filter(sequence=-1).update(sequence=5)


def insert() -> None:
    for row in Event.objects.filter(sequence__gte=3).order_by("-sequence"):
        Event.objects.filter(pk=row.pk).update(sequence=F("sequence") + 1)
    row = Event.objects.get(sequence=2)
    Event.objects.create(kind=row.kind, target_name="x", actor="mallory", message="x", sequence=3, digest="ab" * 32)
    EventChain.objects.update(sequence=F("sequence") + 1)


def forge_and_rebuild() -> None:
    Event.objects.filter(sequence=3).update(actor="mallory")
    rebuild()


def remove_and_rebuild() -> None:
    Event.objects.filter(sequence=3).delete()
    rebuild()


def cut_the_end() -> None:
    Event.objects.filter(sequence__gte=5).delete()
    last = Event.objects.get(sequence=4)
    EventChain.objects.update(sequence=4, digest=last.digest, signed_sequence=0, signed_digest="", signed_at=None)


def forge_the_checkpoint() -> None:
    row = Event.objects.get(kind="audit.checkpoint")
    old = find_all(row.message)[0]
    Event.objects.filter(sequence=3).update(actor="mallory")
    rebuild()
    digest = Event.objects.get(sequence=old.sequence).digest
    forged = Checkpoint(old.sequence, digest, old.at, old.key, old.signature)
    Event.objects.filter(pk=row.pk).update(message=row.message.replace(old.text, forged.text))
    rebuild()


def bring_a_key_of_ones_own() -> None:
    AuditKey.objects.update(private_sealed=b"\x00" * 40)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (change(actor="mallory"), "altered"),
        (change(message="nothing happened"), "altered"),
        (change(data={"number": 7}), "altered"),
        (change(outcome="denied"), "altered"),
        (change(time=timezone.now() - timedelta(days=9)), "altered"),
        (change(digest="00" * 32), "altered"),
        (lambda: Event.objects.filter(sequence=3).delete(), "missing"),
        (lambda: Event.objects.filter(sequence__gte=8).delete(), "truncated"),
        (swap, "reordered"),
        (insert, "inserted"),
        (forge_and_rebuild, "rebuilt"),
        (remove_and_rebuild, "rebuilt"),
        (forge_the_checkpoint, "checkpoint_forged"),
        (bring_a_key_of_ones_own, "key_foreign"),
        (lambda: EventChain.objects.update(sequence=3), "inserted"),
    ],
)
def test_damage_is_found(damage: Callable[[], object], code: str) -> None:
    write()
    signed()
    write(2)
    seal()
    assert codes() == []
    damage()
    assert code in codes()


def test_an_end_that_was_cut_off_with_its_checkpoints_is_found_by_one_kept_elsewhere() -> None:
    write()
    kept = signed()
    seal()
    cut_the_end()
    assert codes() == []
    assert codes(elsewhere=[kept]) == ["truncated"]
    write(9)
    seal()
    assert codes(elsewhere=[kept]) == ["rebuilt"], "and so it is when others have taken their place"
    assert codes(elsewhere=[Checkpoint(2, "ab" * 32, kept.at, kept.key, kept.signature)]) == ["checkpoint_forged"]


def test_old_events_without_a_checkpoint_are_told() -> None:
    write()
    seal()
    assert codes() == []
    assert codes(now=timezone.now() + timedelta(hours=2)) == ["unsigned"]


def test_a_worker_tells_of_damage_when_it_signs() -> None:
    write()
    signed()
    write(3)
    seal()
    Event.objects.filter(sequence=COUNT + 3).update(message="nothing happened")
    signed()
    row = Event.objects.get(kind="audit.chain_broken")
    assert row.reason == "altered" and row.data["first"] == COUNT + 3


def command(*arguments: str) -> tuple[int, str]:
    out, code = StringIO(), 0
    try:
        call_command("verify_events", *arguments, stdout=out, stderr=out)
    except SystemExit as exc:
        code = int(exc.code or 0)
    return code, out.getvalue()


def test_the_command(tmp_path: Path) -> None:
    write()
    code, text = command("--sign")
    assert code == 0 and "the history is whole" in text
    kept = find_all(text)[0]
    log = tmp_path / "collector.log"
    log.write_bytes(b"<109>1 ... \xff Checkpoint of the history: " + kept.text.encode() + b"\n")
    code, text = command("--json", "--checkpoint", str(log), "--key", kept.key)
    assert code == 0 and json.loads(text)["signed_to"] == kept.sequence
    Event.objects.filter(sequence=2).delete()
    code, text = command()
    assert code == 1 and "missing: event 2 is missing" in text
    code, text = command("--json", "--sign")
    found = json.loads(text)
    assert code == 1 and found["problems"][0]["code"] == "missing" and found["checkpoint"] is None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--key", "abc"), "fingerprint_invalid"), (("--checkpoint", "/nowhere"), "file_unreadable")],
)
def test_the_command_refuses(arguments: tuple[str, ...], code: str) -> None:
    assert command("--json", *arguments)[0] == 2
    assert code in command(*arguments)[1]


def test_a_file_without_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("nothing\n")
    assert command("--checkpoint", str(tmp_path / "empty")) == (
        2, f"there is no checkpoint in {tmp_path / 'empty'} (checkpoint_missing)\n"
        "  look for bartizan-checkpoint-1 in the log\n",
    )  # fmt: skip


@pytest.mark.parametrize("signature", ["", "A" * 96, "*" * 96, "AAA"])
def test_odd_signatures_do_not_fit(signature: str) -> None:
    write(1)
    signed()
    assert not fits(AuditKey.objects.get().public_pem, b"content", signature)
