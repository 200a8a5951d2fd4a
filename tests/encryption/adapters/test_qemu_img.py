"""qemu-img as the worker uses it: images described, copied in and out of LUKS, compared; children that die in time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from encryption.adapters import qemu_img
from encryption.adapters.qemu_img import QemuImgFailed
from encryption.engine import luks
from encryption.engine.secret import Secret

SIZE = 2**20
PASSPHRASE = Secret(b"5a" * 32)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """qcow2, with a comma in its name and something in it."""
    path = tmp_path / "a,b.qcow2"
    qemu_img.create_qcow2(str(path), SIZE)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 64k 128k", path], check=True, capture_output=True)
    return path


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "c,d.luks"
    with path.open("wb") as file:
        file.write(luks.create(PASSPHRASE).header_bytes)
        file.truncate(luks.PREFIX_BYTES + SIZE)
    return path


def test_info(image: Path) -> None:
    found = qemu_img.info(str(image), "qcow2")
    assert (found.format, found.virtual_size, found.backing, found.data_file) == ("qcow2", SIZE, "", "")
    assert found.snapshots == () and not found.is_encrypted
    subprocess.run(["qemu-img", "snapshot", "-c", "one", image], check=True)
    assert qemu_img.info(str(image), "qcow2").snapshots == ("one",)


def test_format_is_not_guessed_from_content(image: Path, tmp_path: Path) -> None:
    assert qemu_img.info(str(image), "raw").format == "raw"
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no qcow2" * 100)
    with pytest.raises(QemuImgFailed):
        qemu_img.info(str(garbage), "qcow2")


def test_into_luks_and_out_again(image: Path, volume: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    qemu_img.copy_into_luks(str(image), "qcow2", str(volume), PASSPHRASE, seen.append)
    assert seen[-1] == 100 and seen == sorted(seen)
    assert qemu_img.equal(str(image), "qcow2", str(volume), PASSPHRASE)
    out = tmp_path / "out.qcow2"
    qemu_img.copy_out_of_luks(str(volume), str(out), "qcow2", PASSPHRASE, seen.append)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", image, out], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 512", out], check=True, capture_output=True)
    assert not qemu_img.equal(str(out), "qcow2", str(volume), PASSPHRASE)


def test_wrong_passphrase_is_refused_without_being_told(image: Path, volume: Path) -> None:
    wrong = Secret(b"planted-wrong-passphrase-planted-")
    with pytest.raises(QemuImgFailed) as told:
        qemu_img.copy_into_luks(str(image), "qcow2", str(volume), wrong, lambda _: None)
    assert "planted" not in str(told.value) and str(told.value)


def test_exception_of_progress_ends_the_child(image: Path, volume: Path) -> None:
    def cancel(percent: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qemu_img.copy_into_luks(str(image), "qcow2", str(volume), PASSPHRASE, cancel)


def test_child_dies_with_a_killed_worker(tmp_path: Path) -> None:
    """Left behind, it would go on writing and keep the image locked against the worker that resumes the job."""
    code = (
        "import subprocess, time\n"
        "from pathlib import Path\n"
        "from encryption.adapters.qemu_img import _DIES_WITH_US\n"
        "child = subprocess.Popen([*_DIES_WITH_US, 'sleep', '600'])\n"
        "while Path(f'/proc/{child.pid}/comm').read_text() != 'sleep\\n': time.sleep(0.01)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    root = Path(qemu_img.__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) as worker:
        assert worker.stdout is not None
        child = int(worker.stdout.readline())
        os.kill(child, 0)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    deadline = time.monotonic() + 30
    while _is_alive(child):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # before the file was opened, and after
        return False
    return state != "Z"
