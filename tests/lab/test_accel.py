"""KVM counts only when a guest speaks."""

import os
import time
from pathlib import Path

import pytest

from lab import accel
from lab.images import GuestImages
from lab.user import LabUser

IMAGES = GuestImages(Path("/i/vmlinuz"), Path("/i/initrd.gz"), Path("/i/boot.img"))


def test_without_access_to_kvm_no_guest_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []

    def command(self: LabUser, argv: list[str], **options: bool) -> list[str]:
        tried.append(argv)
        return ["false"]

    monkeypatch.setattr(LabUser, "command", command)
    assert accel.probe(IMAGES, LabUser.current()) == "qemu"
    assert [argv[0] for argv in tried] == ["test"]


@pytest.mark.parametrize(
    ("guest", "expected"),
    [
        ("echo booting; echo lab guest probe is up; exec sleep 60", "kvm"),
        ("echo no such machine", "qemu"),
        # Broken KVM: the guest is there and runs, and never says a word.
        ("exec sleep 60", "qemu"),
    ],
)
def test_a_guest_has_to_say_that_it_lives(monkeypatch: pytest.MonkeyPatch, guest: str, expected: str) -> None:
    def command(self: LabUser, argv: list[str], **options: bool) -> list[str]:
        return ["true"] if argv[0] == "test" else ["sh", "-c", f"exec 2>&1; {guest}"]

    monkeypatch.setattr(LabUser, "command", command)
    assert accel.probe(IMAGES, LabUser.current(), seconds=0.5 if expected == "qemu" else 20) == expected


def test_a_line_in_pieces_is_understood() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"\r\nlab gue")
        os.write(writer, b"st probe is up\r\n")
        assert accel._prints(reader, time.monotonic() + 20)
    finally:
        os.close(reader)
        os.close(writer)
