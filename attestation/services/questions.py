"""Which hosts are asked, and what: claimed for one worker, and all that the hosts of a batch have in common read once.

A claim says that a worker asks a host's agent now, so that no other does; a dead worker's claim ends by itself.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from django.db.models import Q
from django.utils import timezone

from attestation.adapters.agent_client import AgentAddress
from attestation.models import HostAttestation, TpmIdentity
from attestation.services import appraisals, schedule
from attestation.services.appraisals import Expected, References
from inventory.models import Host

NONCE_BYTES: Final = 20  # 40 digits; agents take up to 64


@dataclass(frozen=True, slots=True)
class Question:
    """One claimed host, and what it is asked. `host` has its cluster; `interval` is that between two attestations.

    `standing` is the host's row as it was claimed, with its verdict: nobody else changes what an answer changes.
    """

    host: Host
    identity: TpmIdentity
    expected: Expected
    references: References
    address: AgentAddress
    claim: UUID
    nonce: str
    asked_at: datetime
    first_line: int
    standing: HostAttestation
    interval: timedelta

    def anew(self) -> "Question":
        """The same question with a new nonce, for the whole IMA list."""
        expected = replace(self.expected, ima_state=None)
        return replace(self, expected=expected, nonce=_nonce(), asked_at=timezone.now(), first_line=0)


def claim_hosts(host_ids: Sequence[UUID]) -> list[Question]:
    """Those of these hosts that are enrolled and that no other worker is asking, in their order."""
    now, claim = timezone.now(), uuid4()
    found = TpmIdentity.objects.select_related("host__cluster").filter(host__in=host_ids)
    identities = {identity.host_id: identity for identity in found}
    standings = _claimed(identities, claim, now)
    clusters = {identity.host.cluster_id for identity in identities.values()}
    references = {each: appraisals.compiled(appraisals.active_reference(each)) for each in clusters}
    intervals = schedule.intervals_of(clusters)
    pinned = appraisals.pinned_certificates(appraisals.trusted_anchors())
    questions = []
    for host_id in dict.fromkeys(host_ids):
        if host_id not in standings:
            continue
        identity, standing = identities[host_id], standings[host_id]
        expected = appraisals.expected_of(identity, standing, pinned, now=now)
        questions.append(
            Question(
                host=identity.host,
                identity=identity,
                expected=expected,
                references=references[identity.host.cluster_id],
                address=address_of(identity),
                claim=claim,
                nonce=_nonce(),
                asked_at=timezone.now(),
                first_line=0 if expected.ima_state is None else expected.ima_state.lines,
                standing=standing,
                interval=intervals[identity.host.cluster_id],
            )
        )
    return questions


def release(questions: Iterable[Question]) -> None:
    """Others may ask these hosts again."""
    claims = {each.claim for each in questions}
    HostAttestation.objects.filter(claim__in=claims).update(claim=None, claimed_at=None)


def _claimed(host_ids: Iterable[UUID], claim: UUID, now: datetime) -> dict[UUID, HostAttestation]:
    wanted = set(host_ids)
    free = Q(claim__isnull=True) | Q(claimed_at__lt=now - schedule.CLAIM_LASTS)
    rows = HostAttestation.objects.filter(host__in=wanted)
    if rows.filter(free).update(claim=claim, claimed_at=now) < len(wanted):
        missing = wanted - set(rows.values_list("host_id", flat=True))
        HostAttestation.objects.bulk_create((HostAttestation(host_id=each) for each in missing), ignore_conflicts=True)
        rows.filter(free, host__in=missing).update(claim=claim, claimed_at=now)
    return {row.host_id: row for row in rows.filter(claim=claim).select_related("verdict")}


def address_of(identity: TpmIdentity) -> AgentAddress:
    certificate = x509.load_pem_x509_certificate(identity.mtls_certificate_pem.encode())
    return AgentAddress(
        identity.contact_host, identity.contact_port, certificate.public_bytes(Encoding.DER), identity.api_version
    )


def _nonce() -> str:
    return secrets.token_hex(NONCE_BYTES)
