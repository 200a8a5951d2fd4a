"""The initial file system and packages, without a network."""

import gzip
import os
import stat
import subprocess
from pathlib import Path

import pytest

from lab import images, packages
from lab.errors import LabError
from lab.packages import Package

INIT_SYNTAX = ["busybox", "sh", "-n", str(images.INIT)]


def deb(folder: Path, name: str, files: dict[str, bytes], control: str = "") -> Path:
    """A real package that holds `files`."""
    tree = folder / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    text = f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@example.org>\n{control}Description: x\n"
    (tree / "DEBIAN" / "control").write_text(text)
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    tree.chmod(0o755)
    (tree / "DEBIAN").chmod(0o755)
    made = folder / f"{name}_1_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", str(tree), str(made)], check=True, capture_output=True)
    return made


def test_init_is_valid_for_the_shell_that_runs_it() -> None:
    done = subprocess.run(INIT_SYNTAX, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_initrd_unpacks_to_what_went_in(tmp_path: Path) -> None:
    packed = images._initrd(b"the busybox", b"#!/bin/busybox sh\n", {"virtio": b"v" * 1001, "evdev": b"e"})
    subprocess.run(
        ["busybox", "cpio", "-idm"], input=gzip.decompress(packed), cwd=tmp_path, check=True, capture_output=True
    )
    assert (tmp_path / "bin/busybox").read_bytes() == b"the busybox"
    assert (tmp_path / "init").read_bytes() == b"#!/bin/busybox sh\n"
    assert (tmp_path / "modules/order").read_text() == "virtio\nevdev\n"
    assert (tmp_path / "modules/virtio.ko").read_bytes() == b"v" * 1001
    assert stat.S_IMODE((tmp_path / "init").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "modules/evdev.ko").stat().st_mode) == 0o644


def test_initrd_is_the_same_for_the_same_inputs() -> None:
    assert images._initrd(b"b", b"i", {"m": b"1"}) == images._initrd(b"b", b"i", {"m": b"1"})


def test_extract_finds_files_by_pattern(tmp_path: Path) -> None:
    made = deb(tmp_path, "kernel", {"boot/vmlinuz-6.1": b"kernel", "lib/modules/6.1/kernel/x/m.ko": b"module"})
    patterns = {"vmlinuz": r"boot/vmlinuz-[^/]+", "m": r"lib/modules/[^/]+/kernel/.*/m\.ko"}
    assert packages.extract(Package(made, ""), patterns) == {"vmlinuz": b"kernel", "m": b"module"}


def test_extract_names_what_is_missing(tmp_path: Path) -> None:
    made = deb(tmp_path, "kernel", {"boot/vmlinuz-6.1": b"kernel"})
    with pytest.raises(LabError, match=r"kernel_1_amd64\.deb lacks m"):
        packages.extract(Package(made, ""), {"m": r"lib/m\.ko"})


def test_fetch_follows_the_kernel_package_to_the_kernel(tmp_path: Path) -> None:
    deb(tmp_path, packages.KERNEL, {}, "Depends: linux-image-6.1.0-1-cloud-amd64 (= 6.1)\n")
    kernel = deb(tmp_path, "linux-image-6.1.0-1-cloud-amd64", {"boot/vmlinuz": b""})
    for name in (packages.BUSYBOX, packages.SHIM, packages.GRUB):
        deb(tmp_path, name, {})
    found = packages.fetch(tmp_path)
    assert found[packages.KERNEL].path == kernel
    assert len({package.sha256 for package in found.values()}) == 4


def test_a_package_that_cannot_be_downloaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"linux-image-cloud-amd64 is missing: put its \.deb file into"):
        packages.fetch(tmp_path)


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text("#!/bin/sh\necho 'E: no such package' >&2\nexit 100\n")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin")
    target = tmp_path / "packages"
    with pytest.raises(LabError, match="E: no such package; run apt-get update"):
        packages.fetch(target)
    assert list(target.iterdir()) == []
