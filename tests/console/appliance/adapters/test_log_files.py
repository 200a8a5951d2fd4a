"""Log files as supervisord leaves them: read on across rotation, nothing twice, nothing lost without a word."""

from pathlib import Path

import pytest

from console.appliance.adapters import log_files
from console.appliance.adapters.log_files import Place, ends, read


def texts(folder: Path, places: dict[str, Place]) -> list[str]:
    """What comes next; `places` goes on with it, by way of JSON as the database has it."""
    part = read(folder, places)
    places.clear()
    places.update({name: (place[0], place[1], place[2]) for name, place in part.places.items()})
    return [f"{line.log}: {line.text}" for line in part.lines]


def rotate(log: Path) -> None:
    for number in (2, 1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.rename(log.with_name(f"{log.name}.{number + 1}"))
    log.rename(log.with_name(f"{log.name}.1"))
    log.touch()


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_only_what_comes_after_the_end(tmp_path: Path) -> None:
    append(tmp_path / "web.log", "old\n")
    append(tmp_path / "notes.txt", "no log\n")
    places = ends(tmp_path)
    assert texts(tmp_path, places) == []
    append(tmp_path / "web.log", "new\n\r\nlast\r\n")
    append(tmp_path / "beat.log", "a log that was not there\n")
    assert texts(tmp_path, places) == ["beat: a log that was not there", "web: new", "web: last"]
    assert texts(tmp_path, places) == []


def test_a_line_waits_for_its_end(tmp_path: Path) -> None:
    places: dict[str, Place] = {}
    append(tmp_path / "web.log", "hal")
    assert texts(tmp_path, places) == []
    append(tmp_path / "web.log", "f\n")
    assert texts(tmp_path, places) == ["web: half"]


def test_across_rotation(tmp_path: Path) -> None:
    log, places = tmp_path / "web.log", dict[str, Place]()
    append(log, "1\n")
    assert texts(tmp_path, places) == ["web: 1"]
    append(log, "2\nunfinished")
    rotate(log)
    append(log, "3\n")
    rotate(log)
    append(log, "4\n")
    found: list[str] = []
    while more := texts(tmp_path, places):
        found += more
    assert found == ["web: 2", "web: unfinished", "web: 3", "web: 4"]


def test_what_was_deleted_unsent_is_said(tmp_path: Path) -> None:
    log, places = tmp_path / "web.log", dict[str, Place]()
    append(log, "first line of the first file\n")
    texts(tmp_path, places)
    for number in range(3):
        rotate(log)
        append(log, f"first line of file {number}\n")
    (tmp_path / "web.log.3").unlink()
    assert texts(tmp_path, places)[0] == "web: WARNING lines of web.log were deleted unsent"


def test_a_file_number_that_is_given_again_is_another_file(tmp_path: Path) -> None:
    append(tmp_path / "web.log", "what stood there\n")
    ((inode, offset, _),) = ends(tmp_path).values()
    places: dict[str, Place] = {"web": (inode, offset, b"something else".hex())}
    assert texts(tmp_path, places) == ["web: WARNING lines of web.log were deleted unsent", "web: what stood there"]


def test_an_emptied_file_begins_anew(tmp_path: Path) -> None:
    log, places = tmp_path / "web.log", dict[str, Place]()
    append(log, "same\n")
    texts(tmp_path, places)
    log.write_text("")
    assert texts(tmp_path, places)[0].endswith("deleted unsent")
    append(log, "same\n")
    assert texts(tmp_path, places) == ["web: same"]


def test_a_chunk_at_a_time_and_a_line_longer_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "CHUNK_OCTETS", 8)
    places: dict[str, Place] = {}
    append(tmp_path / "web.log", "one\ntwo\n" + "x" * 20 + "\nend\n")
    found: list[str] = []
    while more := texts(tmp_path, places):
        found += more
    assert found == ["web: one", "web: two", "web: xxxxxxxx", "web: xxxxxxxx", "web: xxxx", "web: end"]


def test_octets_that_are_no_text_and_places_that_tell_lines_apart(tmp_path: Path) -> None:
    (tmp_path / "web.log").write_bytes(b"\xff\nx\n")
    first, second = read(tmp_path, {}).lines
    assert first.text == "�"
    assert first.place.split(":")[1] == "0" and second.place.split(":")[1] == "2"
    assert first.place.split(":")[0] == second.place.split(":")[0]
