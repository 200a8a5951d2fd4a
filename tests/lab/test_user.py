"""Files and commands of the lab's user."""

import os
import stat
from pathlib import Path

import pytest

from lab.user import LabUser


def test_commands_change_user_only_for_root() -> None:
    ordinary = LabUser("me", 1000, 1000, switch=False)
    assert ordinary.command(["libvirtd"]) == ["libvirtd"]
    switched = LabUser("bartizan", 998, 997, switch=True).command(["libvirtd", "--listen"])
    assert switched == [
        "setpriv",
        "--reuid=998",
        "--regid=997",
        "--init-groups",
        "--",
        "libvirtd",
        "--listen",
    ]


def test_a_command_that_dies_with_its_caller_gets_the_signal_after_the_change_of_user() -> None:
    ordinary = LabUser("me", 1000, 1000, switch=False).command(["x"], dies_with_caller=True)
    assert ordinary == ["setpriv", "--pdeathsig=TERM", "--", "x"]
    switched = LabUser("lab", 998, 997, switch=True).command(["x"], dies_with_caller=True)
    assert switched.count("setpriv") == 1
    assert "--reuid=998" in switched
    assert "--pdeathsig=TERM" in switched


def test_write_sets_the_mode_and_leaves_equal_content_alone(tmp_path: Path) -> None:
    user = LabUser.current()
    path = tmp_path / "file"
    user.write(path, "one", 0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    inode = path.stat().st_ino
    user.write(path, "one", 0o640)
    assert path.stat().st_ino == inode
    user.write(path, "two", 0o640)
    assert path.read_text() == "two"


def test_write_leaves_nothing_else_in_the_folder(tmp_path: Path) -> None:
    LabUser.current().write(tmp_path / "file", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_run_returns_a_failure(tmp_path: Path) -> None:
    assert LabUser.current().run(["test", "-e", str(tmp_path / "missing")]).returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run commands as somebody else")
def test_a_switched_command_really_runs_as_the_other_user() -> None:
    nobody = LabUser("nobody", 65534, 65534, switch=True)
    assert nobody.run(["id", "-u"]).stdout.strip() == "65534"
