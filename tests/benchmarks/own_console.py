"""A console for one benchmark: settings of the tests, an empty database in a folder of its own."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_console() -> Iterator[Path]:
    """The folder, gone afterwards; other users reach what is in it (key servers run as one). Models can be imported
    within, not before."""
    with tempfile.TemporaryDirectory(prefix="bartizan-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        os.environ["BARTIZAN_TEST_STATE"] = folder  # noqa: TID251  before the settings are read
        set_up()
        yield Path(folder)


def set_up() -> None:
    """Also in each process of such a console."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")  # noqa: TID251
    import django

    django.setup()


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far, in user and system mode (proc(5), stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
