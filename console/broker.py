"""What waits at the broker. Nothing is taken from it."""

from collections.abc import Mapping
from typing import Final

from kombu import Connection, Queue
from kombu.exceptions import ChannelError

from console.celery import app

QUEUES: Final = ("control", "attestation", "crypto")
TIMEOUT_SECONDS: Final = 2


def waiting_messages() -> Mapping[str, int]:
    """How many messages no worker has taken yet, for each queue.

    Raises kombu's OperationalError or OSError where the broker does not answer within about two seconds.
    """
    with _connection() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=TIMEOUT_SECONDS)
        return {queue: _waiting(connection, queue) for queue in QUEUES}


def _connection() -> Connection:
    options = app.conf.broker_transport_options
    limits = {"socket_connect_timeout": TIMEOUT_SECONDS, "socket_timeout": TIMEOUT_SECONDS}
    return app.connection_for_read(transport_options={**options, **limits})


def _waiting(connection: Connection, queue: str) -> int:
    try:
        told = Queue(queue, channel=connection.default_channel).queue_declare(passive=True)
        return int(told.message_count)  # type: ignore[union-attr]  # the stubs know AMQP's answer as a name only
    except ChannelError:  # nobody has used it since the broker was empty
        return 0
