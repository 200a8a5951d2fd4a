"""The servers that tests talk to: downloaded and unpacked once, installed never."""

import io
from pathlib import Path

import pytest

from console.launch import receivers
from console.launch.steps import LaunchError, Steps

APT = """#!/bin/sh
[ "$1" = download ] || exit 1
shift 2
for package in "$@"; do echo "$package" >"$package.deb"; done
"""
DPKG = """#!/bin/sh
mkdir -p "$3/usr/sbin"
case $(cat "$2") in
  rsyslog) touch "$3/usr/sbin/rsyslogd" ;;
  syslog-ng-core) touch "$3/usr/sbin/syslog-ng" ;;
  slapd) touch "$3/usr/sbin/slapd" ;;
esac
"""


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, apt: str = APT, dpkg: str = DPKG) -> None:
    """In PATH before the machine's own."""
    folder.mkdir(exist_ok=True)
    for name, text in (("apt-get", apt), ("dpkg-deb", dpkg)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_they_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path / "bin", monkeypatch)
    said = io.StringIO()
    for _ in range(2):
        receivers.prepare(Steps(tmp_path / "stamps", said), tmp_path / "receivers")
    assert receivers.are_in(tmp_path / "receivers")
    assert said.getvalue().count("unpacking") == 1 and "up to date" in said.getvalue()


@pytest.mark.parametrize(
    ("apt", "dpkg", "words"),
    [
        ("#!/bin/sh\nexit 100\n", DPKG, "download of servers for the tests failed"),
        (APT, "#!/bin/sh\nexit 2\n", r"unpacking .*\.deb failed"),
        (APT, "#!/bin/sh\n", "not where its package had it"),
    ],
    ids=["no download", "a package that is none", "an empty one"],
)
def test_what_goes_wrong_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apt: str, dpkg: str, words: str
) -> None:
    programs(tmp_path / "bin", monkeypatch, apt, dpkg)
    steps = Steps(tmp_path / "stamps", io.StringIO())
    with pytest.raises(LaunchError, match=words):
        receivers.prepare(steps, tmp_path / "receivers")
    programs(tmp_path / "bin", monkeypatch)
    receivers.prepare(steps, tmp_path / "receivers")
    assert receivers.are_in(tmp_path / "receivers")
