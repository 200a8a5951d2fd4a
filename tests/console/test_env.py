"""Settings come from the environment, and a wrong value stops the start with a text that names the variable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from console.env import SettingsError, env_bool, env_int, env_list, env_networks, env_path, env_secret, env_str

NAME = "BARTIZAN_TEST_VALUE"
GOOD = {
    "BARTIZAN_SECRET_KEY": "k" * 50,
    "BARTIZAN_REDIS_SOCKET": "/run/redis.sock",
    "BARTIZAN_STATE_DIR": "/var/lib/bartizan",
}


def test_values_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, " a, b ,,c")
    assert env_list(NAME, []) == ["a", "b", "c"]
    monkeypatch.setenv(NAME, "42")
    assert env_int(NAME, 1, minimum=0, maximum=100) == 42
    monkeypatch.setenv(NAME, "yes")
    assert env_bool(NAME, default=False)
    monkeypatch.setenv(NAME, "/srv/x")
    assert env_path(NAME) == Path("/srv/x")


def test_empty_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "")
    assert env_str(NAME, "default") == "default"
    with pytest.raises(SettingsError, match=NAME):
        env_str(NAME)


@pytest.mark.parametrize("value", ["maybe", "2", "-"])
def test_no_boolean(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(NAME, value)
    with pytest.raises(SettingsError, match=NAME):
        env_bool(NAME, default=True)


@pytest.mark.parametrize("value", ["x", "1.5", "0", "101"])
def test_no_number_in_range(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(NAME, value)
    with pytest.raises(SettingsError, match=NAME):
        env_int(NAME, 50, minimum=1, maximum=100)


def test_a_relative_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "var")
    with pytest.raises(SettingsError, match=NAME):
        env_path(NAME)


def test_a_secret_comes_from_the_value_or_a_file_never_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("from-file\n")
    monkeypatch.setenv(f"{NAME}_FILE", str(file))
    assert env_secret(NAME) == "from-file"
    monkeypatch.setenv(NAME, "from-value")
    with pytest.raises(SettingsError, match="not both"):
        env_secret(NAME)


def test_an_unreadable_file_is_named_without_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "gone"))
    with pytest.raises(SettingsError, match=f"{NAME}_FILE: cannot read"):
        env_secret(NAME)


def start(**changes: str) -> subprocess.CompletedProcess[str]:
    """Imports the product's settings in a process of its own, with nothing but these variables."""
    environment = {"PATH": os.environ["PATH"], **GOOD, **changes}  # noqa: TID251
    return subprocess.run(
        [sys.executable, "-c", "from console import settings; print(settings.DEBUG, settings.HTTPS)"],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_product_starts_with_good_values_and_debug_off() -> None:
    done = start()
    assert done.stdout.split() == ["False", "False"], done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BARTIZAN_SECRET_KEY", "short"),
        ("BARTIZAN_STATE_DIR", "relative"),
        ("BARTIZAN_HTTPS", "perhaps"),
        ("BARTIZAN_JOB_TIME_LIMIT", "1"),
        ("BARTIZAN_KMIP_TIMEOUT", "never"),
        ("BARTIZAN_CONSOLE_KEY", "abc"),
        ("BARTIZAN_CONSOLE_KEY", "zz" * 32),
        ("BARTIZAN_REDIS_SOCKET", ""),
        ("BARTIZAN_SECOND_FACTOR", "perhaps"),
    ],
)
def test_a_wrong_value_stops_the_start(name: str, value: str) -> None:
    done = start(**{name: value})
    assert done.returncode != 0
    assert "SettingsError" in done.stderr and name.removesuffix("_SOCKET") in done.stderr


def test_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "192.0.2.1, 2001:db8::/64")
    assert [str(one) for one in env_networks(NAME)] == ["192.0.2.1/32", "2001:db8::/64"]
    monkeypatch.setenv(NAME, "192.0.2.1/8")
    with pytest.raises(SettingsError, match=f"{NAME} must hold addresses or networks"):
        env_networks(NAME)
