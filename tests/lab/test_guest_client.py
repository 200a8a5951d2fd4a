"""The client against a scripted channel."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lab.guest_client import GuestClient, GuestError


@contextmanager
def guest(folder: Path, answer: Callable[[str, str], bytes]) -> Iterator[GuestClient]:
    """A channel that answers one connection: `answer` gets tag and command and gives the bytes to send back."""
    path = folder / "channel"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            # A client that has read enough hangs up on us.
            with suppress(BrokenPipeError), connection, connection.makefile("rb") as lines:
                tag, _, command = lines.readline().decode().rstrip("\n").partition(" ")
                connection.sendall(answer(tag, command))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield GuestClient(path)
        finally:
            thread.join()


def test_the_answer_is_the_text_after_ok(tmp_path: Path) -> None:
    with guest(tmp_path, lambda tag, command: f"{tag} ok got {command}\n".encode()) as client:
        assert client.ask("read vda 0 1") == "got read vda 0 1"


def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    with guest(tmp_path, lambda tag, command: f"{tag} ok\n".encode()) as client:
        assert client.ask("disks") == ""


def test_late_answers_to_somebody_else_are_skipped(tmp_path: Path) -> None:
    with guest(tmp_path, lambda tag, command: f"0000 ok old\n\n{tag} ok new\n".encode()) as client:
        assert client.ask("ping") == "new"


def test_an_error_of_the_guest_is_raised_with_its_text(tmp_path: Path) -> None:
    with (
        guest(tmp_path, lambda tag, command: f"{tag} error no disk x\n".encode()) as client,
        pytest.raises(GuestError, match="refused 'read': no disk x"),
    ):
        client.ask("read x 0 1")


def test_a_channel_that_closes_is_an_error(tmp_path: Path) -> None:
    with guest(tmp_path, lambda tag, command: b"") as client, pytest.raises(GuestError, match="went away"):
        client.ask("ping")


def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    with guest(tmp_path, lambda tag, command: b"x" * (2 << 20)) as client, pytest.raises(GuestError):
        client.ask("ping")


def test_no_guest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="is silent"):
        GuestClient(tmp_path / "nothing").ask("ping")


@pytest.mark.parametrize("command", ["", "  ", "ping\nping"])
def test_a_command_is_one_line(tmp_path: Path, command: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        GuestClient(tmp_path / "nothing").ask(command)


def test_read_gives_bytes(tmp_path: Path) -> None:
    with guest(tmp_path, lambda tag, command: f"{tag} ok 00ff\n".encode()) as client:
        assert client.read("vda", 0, 1) == b"\x00\xff"
