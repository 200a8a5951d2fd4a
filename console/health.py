"""Does this process live, and can it serve? For load balancers and monitors, which have no account here.

Answers name the check and one word; what exactly is wrong stands in the log.
"""

import logging
from typing import Final

from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as BrokerError

from console import broker
from encryption.services import crypto_modules

OK: Final = "ok"
UNREACHABLE: Final = "unreachable"
BEHIND: Final = "behind"
FAILED: Final = "failed"

_log = logging.getLogger("bartizan.health")
_migrated: set[str] = set()  # a database that has been migrated stays so while this process lives


@login_not_required
@never_cache
@require_safe
def live(request: HttpRequest) -> HttpResponse:
    """/healthz: the process answers. Nothing outside it is asked, so that a database in trouble restarts nobody."""
    return HttpResponse("ok\n", content_type="text/plain")


@login_not_required
@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """/readyz: 200 if each check is `ok`, else 503.

    The checks: database, migrations, broker, and the cryptographic modules of this process.
    """
    database = _database()
    checks = {
        "database": database,
        "migrations": _migrations() if database == OK else UNREACHABLE,
        "broker": _broker(),
        "crypto": FAILED if crypto_modules.why_not_ready() else OK,
    }
    is_ready = set(checks.values()) == {OK}
    return JsonResponse({"ready": is_ready, "checks": checks}, status=200 if is_ready else 503)


def _database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    except DatabaseError as exc:
        _log.warning("database: %s", type(exc).__name__)
        return UNREACHABLE
    return OK


def _migrations() -> str:
    if not _migrated:
        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return BEHIND
        _migrated.add(connection.alias)
    return OK


def _broker() -> str:
    try:
        broker.waiting_messages()
    except (BrokerError, KombuError, OSError) as exc:
        _log.warning("broker: %s", type(exc).__name__)
        return UNREACHABLE
    return OK
