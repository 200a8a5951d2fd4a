"""Attests hosts: a fresh nonce to the agent, its answer appraised, a verdict written. Worker side.

1. Claim: one worker at a time asks one agent (a conditional UPDATE; a dead worker's claim ends by itself).
2. Ask, many agents at the same time: only this part waits for the network, and it touches no database.
3. Appraise. After a boot, or where the IMA list does not go on from what was seen, the whole list is asked for with a
   new nonce, and only that answer counts.
4. Write evidence, verdict and standing in one transaction, if the claim and the TPM's identity are still the same.
   Changes become events; a failed host raises an alarm; the apps above hear whether the host may be trusted.

An agent that does not answer changes nothing about what was concluded before: such a host is UNREACHABLE, is asked
again soon, and its last good verdict grows old.
"""

import gzip
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from ssl import SSLContext
from typing import Any, Final
from uuid import UUID

from django.db import transaction
from django.db.models import Subquery
from django.utils import timezone

from attestation.adapters import agent_client
from attestation.adapters.agent_client import AgentAnswer, AgentError, AgentMalformed
from attestation.engine.appraisal import Appraisal
from attestation.engine.findings import FindingCode, Severity
from attestation.models import (
    GOOD,
    EventLog,
    Evidence,
    HostAttestation,
    Verdict,
    VerdictReason,
    VerdictStatus,
)
from attestation.services import appraisals, schedule, verifier_identity
from attestation.services.questions import Question, claim_hosts, release
from inventory import alarms, events
from inventory import models as inventory_models
from inventory.authorize import SYSTEM
from inventory.models import Host

log = logging.getLogger(__name__)

FAILED_ALARM: Final = "host.attestation_failed"
UNREACHABLE_ALARM: Final = "host.agent_unreachable"
ALARM_AFTER_FAILURES: Final = 3
# A real boot log has some tens of kilobytes, and an IMA list some megabytes; longer ones are judged and not kept.
MOST_LOG_BYTES: Final = 4 << 20
MOST_IMA_BYTES: Final = 32 << 20
# 290 million years of milliseconds: what a database's integer holds, and no TPM of ours reaches.
_MOST_CLOCK: Final = 2**63 - 1
_AT_ONCE: Final = 25
_GRAVITY: Final = (Severity.ERROR, Severity.WARNING, Severity.INFO)
_ASK_WHOLE_LIST: Final = frozenset({FindingCode.IMA_DOES_NOT_REPLAY, FindingCode.IMA_MALFORMED})

# All that an answer changes. Not what others write meanwhile: the claim, and since when no verdict counts.
_WRITTEN: Final = (
    "status", "message", "verdict", "checked_at", "failures", "unreachable_since", "next_check_at", "passed_at",
    "clock", "clock_safe", "reset_count", "restart_count", "ima_state",
)  # fmt: skip

TrustHook = Callable[[Host, bool], None]
_TRUST_CHANGED: Final[list[TrustHook]] = []


def register_trust_changed(hook: TrustHook) -> None:
    """`hook(host, is_trusted)` runs on a worker when a host's verdict became good, or ceased to be. It must only queue
    work: it is called inside the verifier's transaction."""
    _TRUST_CHANGED.append(hook)


@dataclass(frozen=True, slots=True)
class _Reply:
    """`found` is an answer, or why there is none."""

    found: AgentAnswer | AgentError
    took_ms: int


def attest_hosts(host_ids: Sequence[UUID], *, reason: VerdictReason) -> int:
    """Attests these hosts now, except those that another worker is asking; returns how many were asked.

    Raises Unavailable `console_key_missing` on a worker that cannot show itself to agents.
    """
    context = verifier_identity.credentials().context()
    questions = claim_hosts(host_ids)
    if not questions:
        return 0
    try:
        replies = _ask_all(questions, context)
        again: list[Question] = []
        for question, reply in zip(questions, replies, strict=True):
            repeated = _conclude(question, reply, reason)
            if repeated is not None:
                again.append(repeated)
        for question, reply in zip(again, _ask_all(again, context), strict=True):
            _conclude(question, reply, reason)
    finally:
        release(questions)
    return len(questions)


def _ask_all(questions: Sequence[Question], context: SSLContext) -> list[_Reply]:
    if len(questions) < 2:
        return [_ask(each, context) for each in questions]
    with ThreadPoolExecutor(min(_AT_ONCE, len(questions)), thread_name_prefix="agent") as pool:
        return list(pool.map(partial(_ask, context=context), questions))


def _ask(question: Question, context: SSLContext) -> _Reply:
    began = time.monotonic()
    found: AgentAnswer | AgentError
    try:
        found = agent_client.fetch_quote(
            question.address, context, nonce=question.nonce, pcrs=appraisals.ASKED_PCRS,
            ima_first_line=question.first_line,
        )  # fmt: skip
    except AgentError as exc:
        found = exc
    return _Reply(found, int((time.monotonic() - began) * 1000))


def _conclude(question: Question, reply: _Reply, reason: VerdictReason) -> Question | None:
    """Writes what was concluded; or returns the question that has to be asked first."""
    answer = reply.found
    if isinstance(answer, AgentMalformed):
        appraisal = appraisals.malformed_quote(answer.message)
        _write(question, None, appraisal, reason, reply.took_ms)
        return None
    if isinstance(answer, AgentError):
        _write_silence(question, answer, reason)
        return None
    appraisal = appraisals.appraise_answer(answer, question.nonce, question.expected, question.references)
    if question.first_line and _needs_whole_list(question, appraisal):
        return question.anew()
    _write(question, answer, appraisal, reason, reply.took_ms)
    return None


def _needs_whole_list(question: Question, appraisal: Appraisal) -> bool:
    """Lines from the middle of a list say nothing after a boot, and may only seem wrong where an agent began anew."""
    before, quote = question.expected.identity.clock, appraisal.quote
    if quote is not None and before is not None and quote.attested.clock.reset_count != before.reset_count:
        return True
    return any(finding.code in _ASK_WHOLE_LIST for finding in appraisal.findings)


def _write(
    question: Question, answer: AgentAnswer | None, appraisal: Appraisal, reason: VerdictReason, took_ms: int
) -> None:
    now = timezone.now()
    status = VerdictStatus(appraisal.verdict.value)
    with transaction.atomic():
        found = _still_asked(question)
        if found is None:
            return
        voided_at, reference_in_force = found
        standing = question.standing
        evidence = None if answer is None else _kept(question, answer, appraisal)
        gravest_first = sorted(appraisal.findings, key=lambda finding: _GRAVITY.index(finding.severity))
        findings = [appraisals.finding_as_json(finding) for finding in gravest_first]
        last = standing.verdict
        is_change = last is None or last.status != status or last.findings != findings or standing.status != last.status
        message = message_of(appraisal, has_reference=question.references.row is not None)
        verdict = Verdict.objects.create(
            host=question.host, status=status, message=message, findings=findings, secure_boot=appraisal.secure_boot,
            evidence=evidence, reference=question.references.row, reason=reason, is_change=is_change,
            checked_at=now, took_ms=took_ms,
        )  # fmt: skip
        is_good, was_good, stood_good = (
            status in GOOD,
            last is not None and last.status in GOOD,
            standing.status in GOOD,
        )
        _tell(question.host, standing, verdict)
        standing.status, standing.message, standing.verdict, standing.checked_at = status, message, verdict, now
        standing.failures, standing.unreachable_since = 0, None
        standing.next_check_at = schedule.next_after_answer(question.interval, now)
        compared_with = None if question.references.row is None else question.references.row.pk
        is_outdated = reference_in_force != compared_with
        if is_outdated or voided_at != standing.voided_at:
            standing.next_check_at = now  # it was asked for anew while this answer was on its way
        if is_good:
            standing.passed_at = question.asked_at
        if appraisal.quote is not None:
            clock = appraisal.quote.attested.clock
            standing.clock, standing.clock_safe = min(clock.clock, _MOST_CLOCK), clock.safe
            standing.reset_count, standing.restart_count = clock.reset_count, clock.restart_count
        # Under other reference values every file of the list is judged again.
        standing.ima_state = appraisals.kept_ima_state(appraisal) if is_good and not is_outdated else None
        standing.save(update_fields=_WRITTEN)
        if (is_good and not stood_good) or (was_good and not is_good):
            for hook in _TRUST_CHANGED:
                hook(question.host, is_good)


def _write_silence(question: Question, error: AgentError, reason: VerdictReason) -> None:
    """Nothing is concluded: the last verdict stays, and grows old."""
    now = timezone.now()
    with transaction.atomic():
        if _still_asked(question) is None:
            return
        standing = question.standing
        if standing.status != VerdictStatus.UNREACHABLE:
            verdict = Verdict.objects.create(
                host=question.host, status=VerdictStatus.UNREACHABLE, message=error.message[:500],
                reason=reason, is_change=True, checked_at=now,
            )  # fmt: skip
            _record(question.host, verdict, hint=error.hint, code=error.code)
            standing.unreachable_since = now
        standing.status, standing.message = VerdictStatus.UNREACHABLE, error.message[:500]
        standing.failures += 1
        standing.next_check_at = schedule.next_after_silence(question.interval, standing.failures, now)
        standing.save(update_fields=["status", "message", "failures", "unreachable_since", "next_check_at"])
        if standing.failures >= ALARM_AFTER_FAILURES:
            alarms.raise_alarm(
                UNREACHABLE_ALARM, f"{question.host} cannot be attested: {error.message}", target=question.host,
                remedy=error.hint, evidence=[f"{error.code}: {error.message}"],
            )  # fmt: skip


def _still_asked(question: Question) -> tuple[datetime | None, UUID | None] | None:
    """Locks the host's row; how its `voided_at` and the reference values in force are now. None where another worker
    has it by now, or the host has another identity since. One small query, as this is asked at each poll."""
    in_force = appraisals.active_references(question.host.cluster_id).values("pk")[:1]
    found = (
        HostAttestation.objects.select_for_update(of=("self",))
        .only("voided_at")
        .annotate(reference_in_force=Subquery(in_force))
        .filter(host=question.host, claim=question.claim, host__tpm_identity__ak_name=question.identity.ak_name)
    )
    row = next(iter(found), None)
    if row is None:
        log.info("an answer of %s came too late and is dropped", question.host)
        return None
    return row.voided_at, row.reference_in_force


def _kept(question: Question, answer: AgentAnswer, appraisal: Appraisal) -> Evidence:
    quote = appraisal.quote
    proven = {} if quote is None or quote.pcrs is None else appraisals.pcrs_as_json(quote.pcrs)
    ima = answer.ima if answer.ima and len(answer.ima) <= MOST_IMA_BYTES else b""
    return Evidence.objects.create(
        host=question.host, nonce=question.nonce, quote=answer.quote, pcrs=proven,
        ak_public=question.identity.ak_public, event_log_id=_kept_log(answer.event_log, appraisal.event_count),
        ima_gz=gzip.compress(ima, 6, mtime=0) if ima else b"", ima_first_line=answer.ima_first_line,
        taken_at=question.asked_at,
    )  # fmt: skip


def _kept_log(content: bytes | None, event_count: int) -> str | None:
    if not content or len(content) > MOST_LOG_BYTES:
        return None
    sha256 = hashlib.sha256(content).hexdigest()
    if not EventLog.objects.filter(pk=sha256).exists():
        EventLog.objects.create(
            sha256=sha256, content_gz=gzip.compress(content, 6, mtime=0), event_count=event_count,
            size_bytes=len(content),
        )  # fmt: skip
    return sha256


def message_of(appraisal: Appraisal, *, has_reference: bool) -> str:
    """One line for people: the gravest finding, or what was proven."""
    worst: dict[Severity, list[str]] = {}
    for finding in appraisal.findings:
        worst.setdefault(finding.severity, []).append(finding.message)
    for severity in (Severity.ERROR, Severity.WARNING):
        if messages := worst.get(severity):
            more = f", and {len(messages) - 1} more" if len(messages) > 1 else ""
            return f"{messages[0]}{more}"[:500]
    on = {True: "with Secure Boot on", False: "with Secure Boot off", None: "Secure Boot not known"}
    known = "what booted is approved" if has_reference else "no reference values say what should boot"
    return f"the boot is proven, {on[appraisal.secure_boot]}; {known}"


def _tell(host: Host, standing: HostAttestation, verdict: Verdict) -> None:
    """Events of changes, and the alarms. `standing` is as it was before."""
    lines = [f"{each['message']}; {each['remedy']}" for each in verdict.findings if each["severity"] != Severity.INFO]
    if verdict.status == VerdictStatus.FAILED:
        alarms.raise_alarm(
            FAILED_ALARM, f"{host} failed its attestation: {verdict.message}", target=host,
            severity=inventory_models.Severity.ERROR, evidence=lines[:20], is_told=True,
            remedy=next((each["remedy"] for each in verdict.findings if each["severity"] == Severity.ERROR), ""),
        )  # fmt: skip
    live = alarms.live_kinds(target=host)
    if verdict.status != VerdictStatus.FAILED and FAILED_ALARM in live:
        alarms.clear_alarm(FAILED_ALARM, target=host, is_told=True)
    if UNREACHABLE_ALARM in live:
        alarms.clear_alarm(UNREACHABLE_ALARM, target=host)
    if any(each["code"] == FindingCode.HOST_REBOOTED for each in verdict.findings):
        events.record("host.rebooted", f"{host} has booted since it was last attested", target=host, actor=SYSTEM)
    if standing.status != verdict.status or (verdict.is_change and verdict.status == VerdictStatus.FAILED):
        _record(host, verdict)


_KINDS: Final[dict[str, tuple[str, inventory_models.Severity, str]]] = {
    VerdictStatus.PASSED: ("host.attestation_passed", inventory_models.Severity.INFO, "passed its attestation"),
    VerdictStatus.WARNING: (
        "host.attestation_warned", inventory_models.Severity.WARNING, "passed its attestation with warnings",
    ),
    VerdictStatus.FAILED: ("host.attestation_failed", inventory_models.Severity.ERROR, "failed its attestation"),
    VerdictStatus.UNREACHABLE: (
        "host.attestation_unreachable", inventory_models.Severity.WARNING, "cannot be attested",
    ),
}  # fmt: skip


def _record(host: Host, verdict: Verdict, **data: Any) -> None:
    kind, severity, words = _KINDS[verdict.status]
    events.record(
        kind, f"{host} {words}: {verdict.message}", target=host, actor=SYSTEM, severity=severity, verdict=verdict.pk,
        findings=sorted({each["code"] for each in verdict.findings}), reason=verdict.reason, **data,
    )  # fmt: skip
