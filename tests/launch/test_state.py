"""The state folder: private, made once, and its secrets never replaced."""

import os
import stat
from pathlib import Path

import pytest

from console.launch.state import LONGEST_SOCKET_FOLDER, State, state_of, write_private
from console.launch.steps import LaunchError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = State(tmp_path / "var")
        state.create()
    finally:
        os.umask(before)
    entries = list(state.folder.rglob("*"))
    assert {mode(path) for path in [state.folder, *entries] if path.is_dir()} == {0o700}
    assert {mode(path) for path in entries if path.is_file()} == {0o600}
    assert sum(path.is_file() for path in entries) == 4


def test_modes_that_were_opened_are_closed_again(state: State) -> None:
    state.secrets.chmod(0o755)
    state.console_key.chmod(0o644)
    state.create()
    assert mode(state.secrets) == 0o700
    assert mode(state.console_key) == 0o600


def test_secrets_are_drawn_once(tmp_path: Path) -> None:
    state = State(tmp_path / "var")
    assert state.create() == ["secret_key", "redis_password", "console_key", "administrator_password"]
    before = {path.name: path.read_text() for path in state.secrets.iterdir()}
    assert state.create() == []
    assert {path.name: path.read_text() for path in state.secrets.iterdir()} == before
    assert len(set(before.values())) == 4


def test_secrets_are_what_the_settings_ask_for(state: State) -> None:
    assert len(state.secret_key.read_text().strip()) >= 40
    assert len(bytes.fromhex(state.console_key.read_text())) == 32
    assert len(state.administrator_password.read_text().strip()) >= 20


def test_two_installations_share_no_secret(tmp_path: Path) -> None:
    one, two = State(tmp_path / "one"), State(tmp_path / "two")
    one.create()
    two.create()
    texts = [path.read_text() for made in (one, two) for path in made.secrets.iterdir()]
    assert len(set(texts)) == 8


def test_an_empty_secret_is_refused_and_kept(state: State) -> None:
    state.console_key.write_text("")
    with pytest.raises(LaunchError, match="console_key is empty"):
        state.create()
    assert state.console_key.read_text() == ""


def test_a_private_file_replaces_an_open_one(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o666)
    write_private(path, "new")
    assert (path.read_text(), mode(path)) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_sockets_live_in_the_state_folder_when_its_path_is_short() -> None:
    state = State(Path("/v"))
    assert state.socket_folder() == Path("/v/run")


def test_a_long_path_gets_a_short_private_socket_folder(tmp_path: Path) -> None:
    state = State(tmp_path / ("deep" * LONGEST_SOCKET_FOLDER)[:LONGEST_SOCKET_FOLDER])
    state.create()
    made = state.socket_folder()
    try:
        assert len(str(made)) < LONGEST_SOCKET_FOLDER
        assert mode(made) == 0o700
        assert state.socket_folder() == made
        # Opened to others, it is not trusted any more.
        made.chmod(0o777)
        other = state.socket_folder()
        try:
            assert other != made
            assert mode(other) == 0o700
        finally:
            other.rmdir()
    finally:
        made.rmdir()


def test_the_state_folder_is_var_or_what_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BARTIZAN_STATE_DIR", raising=False)
    assert state_of(tmp_path).folder == tmp_path / "var"
    monkeypatch.setenv("BARTIZAN_STATE_DIR", str(tmp_path / "other"))
    assert state_of(tmp_path).folder == tmp_path / "other"
    State(tmp_path / "other").create()
    assert state_of(tmp_path).folder == tmp_path / "other"
    monkeypatch.setenv("BARTIZAN_STATE_DIR", "relative")
    with pytest.raises(LaunchError, match="absolute"):
        state_of(tmp_path)


def test_a_folder_of_somebody_else_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passwd").touch()
    monkeypatch.setenv("BARTIZAN_STATE_DIR", str(tmp_path))
    with pytest.raises(LaunchError, match="no state folder of Bartizan"):
        state_of(tmp_path)


NAME = "DATABASE_URL"


def test_a_url_that_was_given_once_stays_in_use(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state.keep_url(NAME, state.database_url) is None
    monkeypatch.setenv(NAME, "postgresql://db.example/one")
    assert state.keep_url(NAME, state.database_url) == state.database_url
    assert mode(state.database_url) == 0o600
    monkeypatch.delenv(NAME)
    assert state.keep_url(NAME, state.database_url) == state.database_url
    assert state.database_url.read_text() == "postgresql://db.example/one\n"


def test_a_file_with_a_url_stays_in_use_and_is_not_copied(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://db.example/one")
    monkeypatch.setenv(f"{NAME}_FILE", str(file))
    for _ in range(2):
        state.keep_url(NAME, state.database_url)
        assert state.database_url.readlink() == file
    monkeypatch.delenv(f"{NAME}_FILE")
    file.unlink()
    assert state.keep_url(NAME, state.database_url) == state.database_url, "no start on another database"
    monkeypatch.setenv(NAME, "postgresql://db.example/two")
    state.keep_url(NAME, state.database_url)
    assert not state.database_url.is_symlink() and not file.exists()


def test_the_kept_file_may_be_given_itself(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    state.database_url.write_text("postgresql://db.example/one")
    monkeypatch.setenv(f"{NAME}_FILE", str(state.database_url))
    assert state.keep_url(NAME, state.database_url) == state.database_url
    assert state.database_url.read_text() == "postgresql://db.example/one"


def test_a_url_and_a_file_are_refused_together(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "postgresql://db.example/one")
    monkeypatch.setenv(f"{NAME}_FILE", "/etc/bartizan/database_url")
    with pytest.raises(LaunchError, match="not both"):
        state.keep_url(NAME, state.database_url)
