"""vTPM state in clear does not outlive the process that has it in memory, however that process ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery.signals import worker_init, worker_process_init
from celery.utils.dispatch import Signal

from encryption.adapters import memory_folder

STATE = b"the TPM's memory in clear" * 100
_USER = """
import sys, time
from pathlib import Path
from encryption.adapters import memory_folder
memory_folder.MEMORY = Path(sys.argv[1])
with memory_folder.memory_folder() as place:
    (place / "old").mkdir()
    (place / "old" / "tpm2-00.permall").write_bytes(sys.argv[2].encode())
    print(place, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory_folder, "MEMORY", tmp_path)
    return tmp_path


@contextmanager
def worker(memory: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process in the middle of a conversion, and its folder."""
    command = [sys.executable, "-c", _USER, str(memory), STATE.decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_killed_workers_state_is_overwritten_and_deleted_at_the_next_use(memory: Path) -> None:
    with worker(memory) as (process, place):
        state = place / "old" / "tpm2-00.permall"
        assert state.read_bytes() == STATE
        seen = memory / "seen"
        os.link(state, seen)  # another name for the same bytes, to see them go
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert state.exists()
    with memory_folder.memory_folder() as own:
        assert not place.exists()
        assert seen.read_bytes() == bytes(len(STATE))
        assert [own] == list(memory.glob(f"{memory_folder.PREFIX}*"))
    assert not own.exists()


def test_a_living_workers_state_stays(memory: Path) -> None:
    with worker(memory) as (_, place):
        assert memory_folder.sweep() == 0
        assert (place / "old" / "tpm2-00.permall").read_bytes() == STATE


@pytest.mark.parametrize("started", [worker_init, worker_process_init])
def test_what_killed_workers_left_is_destroyed_when_one_starts(
    memory: Path, started: Signal, caplog: pytest.LogCaptureFixture
) -> None:
    left = memory / f"{memory_folder.PREFIX}left"
    (left / "new").mkdir(parents=True)
    (left / "new" / "tpm2-00.permall").write_bytes(STATE)
    started.send(sender=None)
    assert not left.exists()
    assert "left by killed workers" in caplog.text


def test_other_folders_and_links_stay(memory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "file").write_bytes(b"kept")
    (memory / f"{memory_folder.PREFIX}link").symlink_to(elsewhere)
    (memory / "other").mkdir()
    assert memory_folder.sweep() == 0
    assert (elsewhere / "file").read_bytes() == b"kept"
    assert (memory / "other").exists()


def test_the_folder_is_private_and_emptied_when_its_user_fails(memory: Path) -> None:
    with pytest.raises(RuntimeError), memory_folder.memory_folder() as place:
        assert place.stat().st_mode & 0o777 == 0o700
        (place / "state").write_bytes(STATE)
        raise RuntimeError
    assert not place.exists()
