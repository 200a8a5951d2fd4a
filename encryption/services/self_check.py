"""Before a worker takes its first job: one whose ciphers are broken must not touch a disk, and vTPM state in clear that
a killed one has left in memory is destroyed."""

from celery.signals import beat_init, worker_init, worker_process_init

from encryption.adapters import memory_folder
from encryption.services import crypto_modules
from inventory import jobs
from inventory.services import processes


def register() -> None:
    crypto_modules.require_mode()
    jobs.register_obstacle(crypto_modules.why_not_ready)
    processes.register_first_step(crypto_modules.started)
    worker_init.connect(worker_starts, dispatch_uid="encryption.self_check")
    beat_init.connect(beat_starts, dispatch_uid="encryption.self_check")
    # Also where one process of the pool was killed and the next takes its place.
    for signal in (worker_init, worker_process_init):
        signal.connect(sweep_memory, dispatch_uid="encryption.memory_folder")


def worker_starts(sender: object = None, **_: object) -> None:
    """Celery logs exceptions of a signal's receivers and goes on, but for SystemExit. Pool processes are forks of the
    one that tests itself here. Workers are known by what stands before the @ of their name: their queue."""
    queue = str(getattr(sender, "hostname", "")).partition("@")[0]
    processes.started(f"{crypto_modules.WORKER}{queue or 'unnamed'}")


def beat_starts(**_: object) -> None:
    processes.started("beat")


def sweep_memory(**_: object) -> None:
    memory_folder.sweep()
