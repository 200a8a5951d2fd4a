"""What is noted of a key server when a request to it fails or is answered, and what the caller of a service is told."""

from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Final

from django.db import transaction
from django.utils import timezone

from encryption.engine.key_server import (
    KeyNotFound,
    KmsError,
    KmsUnreachable,
    KmsUntrusted,
    NotPermitted,
    TrustDirection,
)
from encryption.models import KmsCluster, KmsServer, VmSecurity
from encryption.services import kms_alarms, messages
from inventory import events
from inventory.authorize import SYSTEM
from inventory.errors import Conflict, NotFound, Refused, ServiceError, Unavailable, Untrusted
from inventory.models import Severity

UNLOCK_OF_PROVIDER: Final = "encryption.unlock_of_provider"


def service_error(exc: KmsError) -> ServiceError:
    """The named KMIP failure as what the caller of a service sees."""
    kinds: dict[type[KmsError], type[ServiceError]] = {
        KmsUnreachable: Unavailable,
        KmsUntrusted: Untrusted,
        KeyNotFound: NotFound,
        NotPermitted: Refused,
    }
    return kinds.get(type(exc), Conflict)(exc.code, str(exc), hint=exc.hint)


def note_failure(server: KmsServer, exc: KmsError | ServiceError, *, asked_at: datetime | None = None) -> None:
    """Writes why a server cannot be used, and what that says of the two directions of trust.

    `asked_at`: when the request began. A server that has answered somebody since is not called lost because of it: a
    request into a server that was down may end, by its timeout, long after another has found it up again.
    """
    fields: dict[str, object] = {"latency_ms": None, "console_trusts_server": None, "server_trusts_console": None}
    if isinstance(exc, KmsUntrusted):
        state = KmsServer.State.UNTRUSTED
        by_us = exc.direction is TrustDirection.CONSOLE_TRUSTS_SERVER
        fields["console_trusts_server"] = not by_us
        # The server is verified first: whether it would trust us is not known until we trust it.
        fields["server_trusts_console"] = None if by_us else False
    elif isinstance(exc, KmsUnreachable):
        state = KmsServer.State.UNREACHABLE
    elif isinstance(exc, KmsError):
        state = KmsServer.State.FAILING
        if isinstance(exc, NotPermitted):
            fields |= {"console_trusts_server": True, "server_trusts_console": True}
    else:
        state = KmsServer.State.UNTRUSTED
        missing = exc.code == "kms_server_not_trusted"
        fields["console_trusts_server" if missing else "server_trusts_console"] = False
    reason = f"{exc}; {exc.hint}" if isinstance(exc, KmsError) else str(exc)
    _note(server, state, exc.code, reason, fields, asked_at)


def note_connected(server: KmsServer, **fields: object) -> None:
    """Writes that a server answered a request, which takes both directions of trust."""
    _note(
        server, KmsServer.State.CONNECTED, "", "",
        {"console_trusts_server": True, "server_trusts_console": True, **fields},
    )  # fmt: skip


def _note(
    server: KmsServer, state: KmsServer.State, code: str, reason: str, fields: dict[str, object],
    asked_at: datetime | None = None,
) -> None:  # fmt: skip
    """Events only for a change: a server that stays down does not fill the history. Whoever notes it first tells it.

    A server that is back may have the keys of locked VMs: a worker tries them once.
    """
    now = timezone.now()
    found = KmsServer.objects.filter(pk=server.pk)
    if asked_at is not None:
        found = found.exclude(state=KmsServer.State.CONNECTED, checked_at__gt=asked_at)
    with transaction.atomic():
        KmsCluster.objects.hold(server.cluster_id)
        changed = found.exclude(state=state, state_code=code).update(state=state, state_code=code)
        found.update(state_reason=reason[:500], checked_at=now, **fields)
        if changed:
            bad = state != KmsServer.State.CONNECTED
            events.record(
                "kms.server_lost" if bad else "kms.server_connected",
                f"Key server {server} of {server.cluster}: {state.label.lower()}" + (f": {reason}" if reason else ""),
                target=server.cluster, actor=SYSTEM, severity=Severity.ERROR if bad else Severity.INFO,
                server=str(server), code=code,
            )  # fmt: skip
            if not bad and _has_locked_vms(server.cluster):
                transaction.on_commit(partial(messages.send, UNLOCK_OF_PROVIDER, str(server.cluster_id)))
            kms_alarms.review_servers(server.cluster)
    with suppress(KmsServer.DoesNotExist):  # removed since
        server.refresh_from_db()


def _has_locked_vms(cluster: KmsCluster) -> bool:
    waiting = VmSecurity.objects.filter(foreign_kms=cluster.pk)
    return (
        waiting.exists()
        or cluster.keys.filter(wrapped_secrets__virtual_machine__security__locked_at__isnull=False).exists()
    )
