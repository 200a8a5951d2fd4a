"""The cryptographic modules: self-tests of each process, what they report, and what may be claimed of it.

Each process tests itself before its work (`started`), workers once a day and on request again. One whose tests fail
goes no further: workers and listeners end, a worker's process that fails later takes no job, the web process answers
503.
"""

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, transaction
from django.utils import timezone

from encryption.adapters import crypto_modules as modules
from encryption.adapters.crypto_modules import Boundary, SelfTest
from encryption.models import CryptoProcess
from inventory import events, jobs
from inventory.alarms import clear_alarm, raise_alarm
from inventory.authorize import SYSTEM, VIEW_ALL, Actor, authorize
from inventory.errors import Conflict, NotFound, Untrusted
from inventory.jobs import Progress
from inventory.models import Job, Severity

log = logging.getLogger(__name__)

TEST: Final = "encryption.test_crypto_modules"
WEB: Final = "web"
WORKER: Final = "worker-"
ALARM: Final = "crypto.self_tests_failed"
# A worker takes its own queue's: workers are named for their queue (celery worker -Q control -n control@%h).
KINDS: Final = {
    queue: jobs.register(jobs.JobKind(f"encryption.test_crypto_modules_{queue}", "Self-tests", queue=queue))
    for queue in ("attestation", "control", "crypto")
}
KEPT: Final = timedelta(days=90)
_EXIT_CODE: Final = 70  # EX_SOFTWARE
_LABELS: Final = CryptoProcess.Label


@dataclass(slots=True)
class _ThisProcess:
    """`failed`: why this process goes no further; empty while its tests pass."""

    name: str = ""
    failed: str = ""


_this: Final = _ThisProcess()


def require_mode() -> None:
    """Raises ImproperlyConfigured where this process is to have the provider and has it not.

    In mode `required` it must; in any, it must where copies are named for it (it was started outside of the venv).
    """
    if settings.FIPS_MODE == "off" or modules.is_active():
        return
    if settings.FIPS_MODE == "required":
        raise ImproperlyConfigured(
            "BARTIZAN_FIPS=required, and this process has no FIPS provider; start it with the venv's Python and "
            "BARTIZAN_CRYPTO_MODULES, as ./bartizan does (docs/install.md)"
        )
    if settings.CRYPTO_MODULES_DIR:
        raise ImproperlyConfigured(
            f"this process has not loaded the FIPS provider in {settings.CRYPTO_MODULES_DIR}; start it with the "
            "venv's Python, or take BARTIZAN_CRYPTO_MODULES out of its environment"
        )


def started(name: str) -> None:
    """First of what a process does: test, report, and end where a test failed. The web process stays, to say so."""
    _this.name = name
    tests = _tested()
    try:
        _report(tests)
    except Error as exc:  # the database may be away, or not yet migrated; the tests count all the same
        log.warning("the self-tests of %s were not reported: %s", name, type(exc).__name__)
    finally:
        connections.close_all()  # before the process forks
    if _this.failed and name != WEB:
        raise SystemExit(_EXIT_CODE)


def why_not_ready() -> str:
    """Why this process may not compute; empty while it may."""
    return _this.failed


def processes(*, actor: Actor) -> Sequence[CryptoProcess]:
    """Every process's last report, by machine and name."""
    authorize(actor, VIEW_ALL)
    return list(CryptoProcess.objects.all())


def label_of(found: Sequence[CryptoProcess]) -> CryptoProcess.Label | None:
    """What may be said of all: the least of what each says. None where none has reported."""
    order = (_LABELS.FAILED, _LABELS.APPROVED, _LABELS.ACTIVE, _LABELS.VALIDATED)
    said = {one.label for one in found}
    return next((label for label in order if label.value in said), None)


def request_self_tests(*, actor: Actor) -> list[Job]:
    """Tests again: this web process at once, each worker by a job. Raises Conflict, Refused."""
    authorize(actor, TEST)
    workers = [row for row in CryptoProcess.objects.all() if _queue_of(row) in KINDS]
    if not workers:
        raise Conflict(
            "no_worker_reported", "no worker has reported its cryptographic modules yet",
            hint="see that the workers run; each reports when it starts",
        )  # fmt: skip
    with transaction.atomic():
        events.record("crypto.self_tests_requested", "Self-tests were asked for", target=None, actor=actor)
        started_jobs = [jobs.start(KINDS[_queue_of(row)], target=row, actor=actor) for row in workers]
    if _this.name == WEB:
        _report(_tested())
    return started_jobs


def test_worker(job: Job, progress: Progress) -> None:
    """Worker side: the one that took the job tests itself and reports. Raises Untrusted where a test failed."""
    progress.step("running the self-tests")
    row = CryptoProcess.objects.filter(pk=job.target_id).first()
    if row is None:
        raise NotFound("process_not_found", "that process's row is gone", hint="it comes back when it starts")
    _this.name = _this.name or row.name
    tests = _tested()
    _report(tests, job=job)
    if _this.failed:
        raise Untrusted(
            "self_tests_failed", f"{row}: {_this.failed}",
            hint="restart it; where they fail again, have its FIPS provider prepared anew (docs/install.md)",
        )  # fmt: skip


def repeat() -> None:
    """By schedule, in the worker that takes it. Drops what was reported long ago: by machines that are no more."""
    if _this.name:
        _report(_tested())
    CryptoProcess.objects.filter(tested_at__lt=timezone.now() - KEPT).delete()


def _queue_of(row: CryptoProcess) -> str:
    return row.name.removeprefix(WORKER) if row.name.startswith(WORKER) else ""


def _tested() -> list[SelfTest]:
    tests = modules.run_self_tests()
    failed = [f"{test.boundary}: {test.name}: {test.detail}" for test in tests if not test.passed]
    _this.failed = f"self-tests failed ({'; '.join(failed)})" if failed else ""
    if failed:
        log.critical("%s goes no further: %s", _this.name or "this process", _this.failed)
    return tests


def _report(tests: Sequence[SelfTest], *, job: Job | None = None) -> None:
    directory = settings.LDAP.url if settings.LDAP else ""
    found = modules.boundaries(database=_database(), broker=_broker(), directory=directory)
    label, certificate = _label(tests, found)
    with transaction.atomic():
        before = CryptoProcess.objects.filter(machine=socket.gethostname(), name=_this.name).first()
        row, _ = CryptoProcess.objects.update_or_create(
            machine=socket.gethostname(),
            name=_this.name,
            defaults={
                "pid": os.getpid(),
                "mode": settings.FIPS_MODE,
                "label": label,
                "certificate": certificate,
                "boundaries": [asdict(one) for one in found],
                "tests": [asdict(one) for one in tests],
                "tested_at": timezone.now(),
            },
        )
        _tell_failure(row, job)
        if _this.name == WEB:  # for all: they are started from one environment
            _tell_change(before, row)


def _tell_failure(row: CryptoProcess, job: Job | None) -> None:
    if row.label == _LABELS.FAILED:
        message = f"{row}: {_this.failed}"
        raise_alarm(
            ALARM, message, target=row, severity=Severity.ERROR, job=job,
            remedy="Restart it. Where they fail again, have its FIPS provider prepared anew (docs/install.md).",
            evidence=[f"{test['boundary']}: {test['name']}: {test['detail']}" for test in row.failed_tests],
        )  # fmt: skip
    else:
        clear_alarm(ALARM, target=row, job=job)


def _tell_change(before: CryptoProcess | None, row: CryptoProcess) -> None:
    """That the mode or what may be claimed is another than at the last start; at the very first, that it is off."""
    if before is None and row.mode != "off":
        return
    if before is not None and (before.mode, before.label) == (row.mode, row.label):
        return
    events.record(
        "crypto.modules_changed",
        f"FIPS mode {row.mode}: {row.get_label_display()}"
        + (f" (before: {before.mode}: {before.get_label_display()})" if before is not None else ""),
        target=None, actor=SYSTEM, severity=Severity.INFO if row.label == _LABELS.VALIDATED else Severity.WARNING,
        mode=row.mode, label=row.label,
    )  # fmt: skip


def _label(tests: Sequence[SelfTest], found: Sequence[Boundary]) -> tuple[CryptoProcess.Label, str]:
    """One of the four, and the certificate where somebody has named one for both copies' digest."""
    if not tests or any(not test.passed for test in tests):
        return _LABELS.FAILED, ""
    tested = [one for one in found if one.is_tested]
    if not all(one.provider for one in tested):
        return _LABELS.APPROVED, ""
    certificates = {settings.FIPS_VALIDATED.get(one.sha256, "") for one in tested}
    if len(certificates) == 1 and (certificate := certificates.pop()):
        return _LABELS.VALIDATED, certificate
    return _LABELS.ACTIVE, ""


def _database() -> str:
    return str(connections["default"].display_name)


def _broker() -> str:
    scheme = str(settings.BROKER_URL).partition("://")[0]
    return {"redis+socket": "unix socket, no TLS", "rediss": "TLS by the system OpenSSL"}.get(scheme, "TCP, no TLS")
