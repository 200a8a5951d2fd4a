"""The first administrator: created once, from a private file, never altered."""

import io
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from inventory.models import Event

pytestmark = pytest.mark.django_db


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("correct horse battery\n")
    path.chmod(0o600)
    return path


def create(password_file: Path) -> str:
    out = io.StringIO()
    call_command("create_administrator", "--username", "chief", "--password-file", str(password_file), stdout=out)
    return out.getvalue().strip()


def test_it_creates_an_administrator_once(password_file: Path) -> None:
    assert create(password_file) == "created"
    assert Event.objects.get(kind="user.added").data["is_superuser"] is True
    user = User.objects.get(username="chief")
    assert user.is_superuser
    assert user.is_staff
    assert user.check_password("correct horse battery")
    assert create(password_file) == "current"
    assert User.objects.count() == 1


def test_a_changed_password_is_left_alone(password_file: Path) -> None:
    create(password_file)
    user = User.objects.get(username="chief")
    user.set_password("the owner's own choice")
    user.save()
    assert create(password_file) == "changed"
    user.refresh_from_db()
    assert user.check_password("the owner's own choice")


@pytest.mark.parametrize(("content", "mode", "reason"), [("", 0o600, "is empty"), ("open", 0o644, "read by others")])
def test_a_bad_file_creates_nobody(password_file: Path, content: str, mode: int, reason: str) -> None:
    password_file.write_text(content)
    password_file.chmod(mode)
    with pytest.raises(CommandError, match=reason):
        create(password_file)
    assert not User.objects.exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nowhere: FileNotFoundError"):
        create(tmp_path / "nowhere")
