"""Until a host has on its storage what it was sent: nobody can ask libvirt for a sync, so this waits.

What is destroyed afterwards is what a host that loses power would need.
"""

import time

from django.conf import settings

from encryption.services.part_files import PartFiles
from inventory.jobs import Progress

_DONE = "written_back"


def begun(progress: Progress, **also: bool) -> None:
    """Something is about to be sent (again), as the job's checkpoint now says; `also` goes into it."""
    progress.checkpoint(**{_DONE: False, **also})


def wait(files: PartFiles, progress: Progress, what: str, then: str) -> None:
    """Once in a job; not where the worker itself has written the files, and has synced them. `then`: the next step.

    Linux writes what is dirty for 30 s (vm.dirty_expire_centisecs), and looks every 5 s. NOT known: how a host is tuned
    (BARTIZAN_HOST_WRITE_BACK), and whether its disks keep what they say they have.
    """
    if files.are_reached or progress.job.checkpoint.get(_DONE):
        return
    progress.step(f"waiting until {files.host} has written {what} to its storage")
    time.sleep(settings.HOST_WRITE_BACK_SECONDS)
    progress.checkpoint(**{_DONE: True})
    progress.step(then)
