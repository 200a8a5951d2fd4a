"""Debian packages that the guests are made of: downloaded, never installed.

apt checks what it downloads against the signed archive index. The digest of every package is part of what a
guest image is identified by (lab/images.py), so a changed package means changed images.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

KERNEL = "linux-image-cloud-amd64"
BUSYBOX = "busybox-static"
SHIM = "shim-signed"
GRUB = "grub-efi-amd64-signed"


@dataclass(frozen=True, slots=True)
class Package:
    """One downloaded .deb file."""

    path: Path
    sha256: str


def fetch(folder: Path) -> dict[str, Package]:
    """The packages by the names above, from `folder`, or downloaded into it with apt-get when it lacks them.

    KERNEL stands for the package with the kernel itself, which the one of that name only depends on. Raises
    LabError when a package is missing and cannot be downloaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Package] = {}
    for name in (KERNEL, BUSYBOX, SHIM, GRUB):
        path = _file(folder, name)
        if name == KERNEL:
            depends = _run(["dpkg-deb", "--field", str(path), "Depends"])
            image = re.search(r"linux-image-[0-9][a-z0-9.+-]*", depends)
            if image is None:
                raise LabError(f"{path.name} does not say which kernel it stands for")
            path = _file(folder, image.group())
        found[name] = Package(path, hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def extract(package: Package, patterns: Mapping[str, str]) -> dict[str, bytes]:
    """Contents of the members that the regular expressions match whole, under the patterns' names.

    Raises LabError when a pattern matches no file.
    """
    found: dict[str, bytes] = {}
    with tempfile.TemporaryFile() as tar:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package.path)], stdout=tar, check=True)
        tar.seek(0)
        with tarfile.open(fileobj=tar, mode="r:") as archive:
            for member in archive:
                for name, pattern in patterns.items():
                    if member.isfile() and re.fullmatch(pattern, member.name.removeprefix("./")):
                        content = archive.extractfile(member)
                        if content is not None:
                            found[name] = content.read()
    missing = sorted(patterns.keys() - found.keys())
    if missing:
        raise LabError(f"{package.path.name} lacks {', '.join(missing)}")
    return found


def _file(folder: Path, name: str) -> Path:
    """The package file in `folder`; the newest by modification time when there are several."""
    present = sorted(folder.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
    if present:
        return present[-1]
    if shutil.which("apt-get") is None:
        raise LabError(f"the package {name} is missing: put its .deb file into {folder}")
    # Downloaded aside and renamed, so that an interrupted download is never taken for a package.
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{os.getpid()}-") as aside:
        try:
            _run(["apt-get", "download", "-qq", name], cwd=Path(aside))
        except LabError as exc:
            raise LabError(f"{exc}; run apt-get update, or put {name}'s .deb file into {folder}") from exc
        (downloaded,) = Path(aside).glob("*.deb")
        return downloaded.rename(folder / downloaded.name)


def _run(argv: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv[:2])} failed: {done.stderr.strip()}")
    return done.stdout
