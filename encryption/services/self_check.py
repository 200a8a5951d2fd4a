"""A worker whose ciphers are broken must not touch a disk: checked once, before it takes its first job."""

import logging

from celery.signals import worker_init

from encryption.engine import xts

log = logging.getLogger(__name__)


def register() -> None:
    worker_init.connect(check_ciphers, dispatch_uid="encryption.self_check")


def check_ciphers(**_: object) -> None:
    """Ends the worker's process where the known answers are not met. Celery logs exceptions of a signal's receivers
    and goes on, so it has to be SystemExit. Pool processes are forks of the one that checks."""
    try:
        xts.self_check()
    except xts.SelfCheckFailed as exc:
        log.critical("this worker does not start: %s", exc)
        raise SystemExit(70) from exc  # EX_SOFTWARE
