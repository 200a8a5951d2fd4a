"""Set-up of the FIPS provider: where it comes from, and what each mode makes of one that cannot be had."""

import io
import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from console.launch import crypto, provider_package
from console.launch.crypto_start import FOLDER_VARIABLE
from console.launch.main import CRYPTOGRAPHY
from console.launch.provider_package import ProviderUnavailable, Unpacked
from console.launch.steps import LaunchError, Steps
from tests.launch.conftest import ROOT


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an empty venv, on a machine without a provider of its own."""
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(crypto, "_own_provider", lambda: None)
    monkeypatch.setattr(crypto, "_install_start", lambda: None)
    for name in ("BARTIZAN_FIPS", "BARTIZAN_FIPS_PROVIDER", FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def said(tmp_path: Path) -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def steps(tmp_path: Path, said: io.StringIO) -> Steps:
    return Steps(tmp_path / "stamps", said)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No package server answers; one entry for each time that one was asked."""
    times: list[str] = []

    def unpacked() -> AbstractContextManager[Unpacked]:
        times.append("asked")
        raise ProviderUnavailable("downloading openssl-provider-fips failed: no route to host")

    monkeypatch.setattr(provider_package, "unpacked", unpacked)
    return times


def test_auto_goes_on_without_one_says_so_and_asks_again_after_a_day(
    checkout: Path, steps: Steps, said: io.StringIO, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not crypto.prepare(steps, checkout)
    assert "no FIPS provider: downloading openssl-provider-fips failed: no route to host" in said.getvalue()
    assert crypto.environment(checkout) == {}
    assert not crypto.prepare(steps, checkout)
    assert len(asked) == 1
    assert said.getvalue().count("no route to host") == 2
    monkeypatch.setattr(crypto, "_ASK_AGAIN_SECONDS", 0)
    assert not crypto.prepare(steps, checkout)
    assert len(asked) == 2


def test_required_refuses_without_one(
    checkout: Path, steps: Steps, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BARTIZAN_FIPS", "required")
    for _ in range(2):  # the second asks again at once
        with pytest.raises(LaunchError, match="BARTIZAN_FIPS=required, and there is no FIPS provider"):
            crypto.prepare(steps, checkout)
    assert len(asked) == 2


def test_off_asks_nobody(checkout: Path, steps: Steps, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARTIZAN_FIPS", "off")
    assert not crypto.prepare(steps, checkout)
    assert asked == []


def test_another_mode_is_refused(checkout: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARTIZAN_FIPS", "on")
    with pytest.raises(LaunchError, match="BARTIZAN_FIPS is 'on'"):
        crypto.prepare(steps, checkout)


def test_what_is_no_provider_is_refused_in_any_mode(
    checkout: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = checkout / "fips.so"
    wrong.write_bytes(b"no module")
    monkeypatch.setattr(crypto, "_own_provider", lambda: wrong)
    with pytest.raises(LaunchError, match="fipsinstall failed"):
        crypto.prepare(steps, checkout)
    assert crypto.environment(checkout) == {}


def test_a_provider_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for wrong in ("fips.so", str(tmp_path / "fips.so"), str(tmp_path)):
        monkeypatch.setenv("BARTIZAN_FIPS_PROVIDER", wrong)
        with pytest.raises(LaunchError, match="BARTIZAN_FIPS_PROVIDER: there is no file"):
            crypto._own_provider()


@pytest.mark.slow
def test_an_operators_own_is_copied_twice_and_tried(
    checkout: Path, steps: Steps, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = crypto.folder_of(ROOT) / "system" / "fips.so"
    if not own.exists():
        pytest.skip("no FIPS provider could be prepared here")
    monkeypatch.setattr(crypto, "_own_provider", lambda: own)
    assert crypto.prepare(steps, checkout)
    folder = checkout / ".venv" / "crypto"
    assert crypto.environment(checkout) == {FOLDER_VARIABLE: str(folder)}
    assert json.loads((folder / "modules.json").read_text())["origin"] == str(own)
    for name in ("system", "wheel"):
        assert f"module = {folder / name / 'fips.so'}\n" in (folder / name / "fipsmodule.cnf").read_text()
    assert not any(path.stat().st_mode & 0o22 for path in folder.rglob("*"))  # nobody else writes there
    assert crypto.prepare(steps, checkout)
    assert "up to date" in said.getvalue()
    monkeypatch.setenv("BARTIZAN_FIPS", "off")
    assert crypto.environment(checkout) == {}


MACHINE = """\
http://mirror.example/debian/ bookworm main
http://mirror.example/debian/ bookworm main
http://mirror.example/debian/ bookworm contrib
http://mirror.example/debian/ bookworm-updates main
http://mirror.example/debian-security/ bookworm-security main
https://vendor.example/apt/ unstable main
"""


def test_the_package_is_asked_of_the_machines_own_servers_and_of_no_other() -> None:
    text = provider_package.sources(MACHINE, "bookworm", "trixie")
    sections = [dict(line.split(": ") for line in section.splitlines()) for section in text.split("\n\n")]
    assert [(one["URIs"], one["Suites"], one["Components"]) for one in sections] == [
        ("http://mirror.example/debian/", "trixie", "main"),
        ("http://mirror.example/debian-security/", "trixie-security", "main"),
    ]
    assert all(one.get("Signed-By", "").endswith("archive-keyring.gpg") for one in sections)
    assert "trusted" not in text


def test_a_machine_without_a_source_of_its_release() -> None:
    for machine in ("", "https://vendor.example/apt/ debian main", "http://mirror.example/x bookworm-security main"):
        with pytest.raises(ProviderUnavailable, match="no source for bookworm"):
            provider_package.sources(machine, "bookworm", "trixie")


@pytest.mark.parametrize("text", ["", 'ID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n', "ID=debian\n",
                                  'ID=debian\nVERSION_ID="11"\nVERSION_CODENAME=bullseye\n'])  # fmt: skip
def test_a_machine_that_is_not_debian_12_or_newer(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_package, "OS_RELEASE", tmp_path / "os-release")
    (tmp_path / "os-release").write_text(text)
    with pytest.raises(ProviderUnavailable, match="not Debian 12 or newer"), provider_package.unpacked():
        pass


def test_the_selection_without_the_provider_is_there() -> None:
    assert all((ROOT / path).exists() for path in CRYPTOGRAPHY)
