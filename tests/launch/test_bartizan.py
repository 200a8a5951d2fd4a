"""The launcher script itself: what it says when it cannot go on, and that it asks nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT

# What the script needs of the system before any package is looked at.
TOOLS = ("dirname", "id", "sed", "tr", "cat", "date", "env", "tail", "rm", "mktemp")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The launcher alone in a folder, without a venv."""
    shutil.copy(ROOT / "bartizan", tmp_path / "bartizan")
    return tmp_path


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with the basic tools only."""
    made = tmp_path / "programs"
    made.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (made / name).symlink_to(found)
    return made


def script(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def run(checkout: Path, programs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(checkout / "bartizan"), *arguments], env={"PATH": str(programs)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_missing_packages_without_rights_are_named(checkout: Path, programs: Path) -> None:
    script(programs, "id", "echo 1000")
    script(programs, "apt-get", "echo must not run >&2; exit 99")
    script(programs, "dpkg-query", 'case "$*" in *redis-tools*|*libvirt-dev*) exit 1;; *) printf "ii ";; esac')
    done = run(checkout, programs, "up", "--no-lab")
    assert done.returncode == 1
    assert "these Debian packages are missing: libvirt-dev redis-tools\n" in done.stderr
    assert "apt-get install --no-install-recommends libvirt-dev redis-tools" in done.stderr
    assert "must not run" not in done.stderr


def test_a_package_that_was_removed_counts_as_missing(checkout: Path, programs: Path) -> None:
    script(programs, "dpkg-query", 'case "$*" in *redis-tools*) printf "rc ";; *) printf "ii ";; esac')
    done = run(checkout, programs, "up", "--no-lab")
    assert done.returncode == 1
    assert "these Debian packages are missing: redis-tools\n" in done.stderr
    assert "no apt-get" in done.stderr


def test_another_distribution_is_told_how_to_go_on(checkout: Path, programs: Path) -> None:
    done = run(checkout, programs, "up", "--no-lab")
    assert done.returncode == 1
    assert "this is not Debian" in done.stderr
    assert "BARTIZAN_SKIP_PACKAGES=1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "present", "absent"),
    [
        (["up", "--no-lab"], {"redis-tools", "swtpm"}, {"ovmf", "chromium"}),
        (["up"], {"redis-tools", "swtpm", "ovmf"}, {"chromium"}),
        (["test", "quick"], {"redis-tools", "swtpm", "cryptsetup-bin"}, {"chromium"}),
        (["test"], {"swtpm", "chromium", "cryptsetup-bin"}, set()),
        (["check"], {"libvirt-dev"}, {"ovmf", "chromium"}),
        (["manage", "disk", "info"], {"libvirt-dev"}, {"redis-tools", "swtpm"}),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "packages",
)
def test_each_command_wants_its_own_packages(
    checkout: Path, programs: Path, arguments: list[str], present: set[str], absent: set[str]
) -> None:
    script(programs, "dpkg-query", "exit 1")
    done = run(checkout, programs, *arguments)
    line = next(line for line in done.stderr.splitlines() if "packages are missing: " in line)
    wanted = set(line.partition("missing: ")[2].split())
    assert present <= wanted
    assert not absent & wanted


def test_recovery_takes_the_venv_that_is_there(checkout: Path, programs: Path) -> None:
    """No package is looked for, and one that was made for older requirements is not renewed."""
    script(programs, "dpkg-query", "exit 1")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    script(checkout / ".venv" / "bin", "python", 'echo "$@"')
    assert "packages are missing" in run(checkout, programs, "manage", "disk", "info", "x").stderr
    (checkout / ".venv" / "installed-requirements.txt").write_text("of long ago")
    done = run(checkout, programs, "manage", "disk", "info", "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "-P -m console.launch manage disk info x\n"
    done = run(checkout, programs, "manage", "appraise", "--json")
    assert (done.returncode, done.stdout) == (0, "-P -m console.launch manage appraise --json\n")


@pytest.mark.parametrize("command", ["down", "status"])
def test_what_needs_a_set_up_says_so(checkout: Path, programs: Path, command: str) -> None:
    done = run(checkout, programs, command)
    assert done.returncode == 1
    assert "nothing is set up here" in done.stderr


def test_an_unknown_command_is_refused_with_the_usage(checkout: Path, programs: Path) -> None:
    done = run(checkout, programs, "upp")
    assert done.returncode == 1
    assert "there is no command 'upp'" in done.stderr
    assert "./bartizan up" in done.stderr


def test_help_names_every_command(checkout: Path, programs: Path) -> None:
    done = run(checkout, programs, "help")
    assert done.returncode == 0
    for command in ("up", "down", "status", "test", "check", "manage", "assets"):
        assert f"./bartizan {command}" in done.stdout
