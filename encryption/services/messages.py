"""Short work for a worker that needs no job: nobody waits for it, and if it is lost the schedule does it later."""

import logging
from typing import Final

from celery import current_app
from kombu.exceptions import OperationalError

log = logging.getLogger(__name__)

QUEUE: Final = "attestation"  # beside hosts and power, so that a key server that hangs delays neither
EXPIRES_SECONDS: Final = 240


def send(task: str, *arguments: str) -> None:
    """Arguments are ids, never secrets. A broker that is down is logged and nothing more."""
    try:
        current_app.send_task(
            task, args=list(arguments), queue=QUEUE, retry=False, expires=EXPIRES_SECONDS, ignore_result=True
        )
    except (OSError, OperationalError) as exc:
        log.warning("%s waits for the schedule: the broker did not take it (%s)", task, type(exc).__name__)
