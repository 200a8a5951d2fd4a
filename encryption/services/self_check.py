"""Before a worker takes its first job: one whose ciphers are broken must not touch a disk, and vTPM state in clear that
a killed one has left in memory is destroyed."""

import logging

from celery.signals import worker_init, worker_process_init

from encryption.adapters import memory_folder
from encryption.engine import xts

log = logging.getLogger(__name__)


def register() -> None:
    worker_init.connect(check_ciphers, dispatch_uid="encryption.self_check")
    # Also where one process of the pool was killed and the next takes its place.
    for signal in (worker_init, worker_process_init):
        signal.connect(sweep_memory, dispatch_uid="encryption.memory_folder")


def check_ciphers(**_: object) -> None:
    """Ends the worker's process where the known answers are not met. Celery logs exceptions of a signal's receivers
    and goes on, so it has to be SystemExit. Pool processes are forks of the one that checks."""
    try:
        xts.self_check()
    except xts.SelfCheckFailed as exc:
        log.critical("this worker does not start: %s", exc)
        raise SystemExit(70) from exc  # EX_SOFTWARE


def sweep_memory(**_: object) -> None:
    memory_folder.sweep()
