"""From rows and an agent's answer to the engine's appraisal, and from kept evidence to the same again.

Reference values are compiled once for each process and version, and what was concluded from a boot log is remembered
with them (engine BootAppraiser): thousands of hosts with a few kinds of boots cost little. Not for several threads of
one process: workers have one each, and the web process appraises nothing by these caches.
"""

import gzip
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from cryptography.x509 import Certificate
from django.db.models import QuerySet

from attestation.adapters.agent_client import AgentAnswer
from attestation.engine.appraisal import Appraisal, Evidence, Identity, appraise
from attestation.engine.boot.check import BootReference
from attestation.engine.boot_appraisal import BootAppraiser
from attestation.engine.errors import Malformed
from attestation.engine.findings import Finding, FindingCode, Severity, Verdict
from attestation.engine.ima.check import ImaPolicy
from attestation.engine.ima.measurements import ImaState
from attestation.engine.ima_appraisal import ImaEvidence
from attestation.engine.reference_json import from_json
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.attest import ClockInfo
from attestation.engine.tpm.endorsement import ChainCheck, certifies, check_chain, parse_certificates
from attestation.engine.tpm.keylime_quote import parse_quote_text
from attestation.engine.tpm.pcrs import PcrSelection, PcrValues
from attestation.engine.tpm.public import Public, parse_key
from attestation.engine.tpm.quote import QuoteCheck, verify
from attestation.models import Evidence as EvidenceRow
from attestation.models import HostAttestation, ReferenceSet, TpmIdentity, TrustAnchor

# What a boot log tells of, MokList's register, and IMA's. 11 to 13 and 15 belong to systemd, 16 and 23 to anybody.
ASKED_PCRS: Final = frozenset({*range(11), 14})
_MOST_REFERENCES: Final = 64


@dataclass(frozen=True, slots=True)
class References:
    """Reference values made ready for many appraisals. `row` None: nobody has said what should boot."""

    row: ReferenceSet | None
    boots: BootAppraiser
    files: ImaPolicy | None


_MOST_KEYS: Final = 8_192
# Loading a key takes as long as several verifications, and each poll of a host needs the same two.
_parsed_key: Final = lru_cache(maxsize=_MOST_KEYS)(parse_key)


_COMPILED: Final[OrderedDict[object, References]] = OrderedDict()


def compiled(row: ReferenceSet | None) -> References:
    """Remembered in this process: a version is never changed."""
    key = None if row is None else row.pk
    found = _COMPILED.get(key)
    if found is None:
        found = _COMPILED[key] = compile_anew(row)
        if len(_COMPILED) > _MOST_REFERENCES:
            _COMPILED.popitem(last=False)
    else:
        _COMPILED.move_to_end(key)
    return found


def compile_anew(row: ReferenceSet | None) -> References:
    """Shared with nobody, so for any thread."""
    if row is None:
        return References(None, BootAppraiser(None), None)
    values = from_json(row.body.encode())
    return References(row, BootAppraiser(BootReference(values)), None if values.ima is None else ImaPolicy(values.ima))


def active_reference(cluster_id: UUID) -> ReferenceSet | None:
    """The newest approved version."""
    return active_references(cluster_id).first()


def active_references(cluster_id: UUID) -> "QuerySet[ReferenceSet]":
    """The approved ones, newest first."""
    return ReferenceSet.objects.filter(cluster=cluster_id, approved_at__isnull=False).order_by("-version")


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a host before it is asked: who it is, and where its clock and IMA list stood."""

    ak: Public
    identity: Identity
    endorsement: ChainCheck | None
    ima_state: ImaState | None


def expected_of(
    identity: TpmIdentity, standing: HostAttestation, pinned: Sequence[Certificate], *, now: datetime
) -> Expected:
    """`pinned`: the certificates of all trust anchors."""
    ak = _parsed_key(bytes(identity.ak_public))
    if not isinstance(ak, Public):
        raise TypeError("an attestation key without attributes is never enrolled")
    clock = None
    if standing.clock is not None and standing.reset_count is not None and standing.restart_count is not None:
        clock = ClockInfo(standing.clock, standing.reset_count, standing.restart_count, standing.clock_safe)
    return Expected(
        ak=ak,
        identity=Identity(bytes.fromhex(identity.ak_name), clock),
        endorsement=endorsement_of(identity, pinned, now=now),
        ima_state=_ima_state(standing.ima_state),
    )


def _ima_state(kept: dict[str, Any] | None) -> ImaState | None:
    if kept is None:
        return None
    return ImaState(HashAlg.of_label(kept["bank"]), int(kept["lines"]), bytes.fromhex(kept["value"]))


def kept_ima_state(appraisal: Appraisal) -> dict[str, Any] | None:
    """Where the next poll goes on. None, so that the whole list is judged again, while it holds anything to tell."""
    of_ima = {FindingCode.IMA_MISSING, FindingCode.IMA_MALFORMED, FindingCode.IMA_VIOLATION,
              FindingCode.IMA_DOES_NOT_REPLAY, FindingCode.UNAPPROVED_FILE}  # fmt: skip
    state = appraisal.ima_state
    if state is None or any(finding.code in of_ima for finding in appraisal.findings):
        return None
    return {"bank": state.bank.label, "lines": state.lines, "value": state.value.hex()}


def trusted_anchors() -> list[TrustAnchor]:
    return list(TrustAnchor.objects.all())


def pinned_certificates(anchors: Sequence[TrustAnchor]) -> list[Certificate]:
    return [each for anchor in anchors for each in parse_certificates(anchor.certificate_pem.encode())]


def endorsement_of(offer: Any, pinned: Sequence[Certificate], *, now: datetime) -> ChainCheck | None:
    """The check of an AgentOffer's EK certificate. None: an administrator vouches for the EK instead.

    NOT checked: revocation, see engine/tpm/endorsement.py.
    """
    if getattr(offer, "ek_accepted_by", ""):
        return None
    if not offer.ek_certificate_pem:
        return ChainCheck("it has no certificate for its endorsement key")
    try:
        certificates = parse_certificates(offer.ek_certificate_pem.encode())
        if not certifies(certificates[0], _parsed_key(bytes(offer.ek_public))):
            return ChainCheck("its certificate is for another endorsement key")
    except Malformed as exc:
        return ChainCheck(str(exc))
    return check_chain(certificates[0], certificates[1:], pinned, now=now)


def appraise_answer(answer: AgentAnswer, nonce: str, expected: Expected, references: References) -> Appraisal:
    """What an answer says of a host. A malformed one is a finding like any other."""
    asked = PcrSelection.of(_bank_of(answer.hash_alg), *ASKED_PCRS)
    check = checked_quote(answer.quote, nonce, expected.ak, asked)
    if check is None:
        return malformed_quote("the quote cannot be read")
    ima = None
    if answer.ima is not None:
        ima = ImaEvidence(answer.ima, answer.ima_first_line, expected.ima_state)
    return appraise(
        Evidence(check, answer.event_log, ima),
        references.boots,
        references.files,
        identity=expected.identity,
        endorsement=expected.endorsement,
    )


def appraise_again(row: EvidenceRow, references: References) -> Appraisal:
    """Kept evidence, for what a verdict's row does not hold: the boot, its components. Clock and endorsement are not
    looked at again, they were of that time."""
    key = parse_key(bytes(row.ak_public))
    check = checked_quote(row.quote, row.nonce, key, None) if isinstance(key, Public) else None
    if check is None or not isinstance(key, Public):
        return malformed_quote("the kept quote cannot be read")
    log = None if row.event_log is None else gzip.decompress(bytes(row.event_log.content_gz))
    ima = None
    if row.ima_gz and row.ima_first_line == 0:
        ima = ImaEvidence(gzip.decompress(bytes(row.ima_gz)))
    return appraise(Evidence(check, log, ima), references.boots, references.files, identity=Identity(key.name))


def checked_quote(text: str, nonce: str, ak: Public, asked: PcrSelection | None) -> QuoteCheck | None:
    """None: not to be read."""
    try:
        parsed = parse_quote_text(text)
    except Malformed:
        return None
    return verify(parsed.quote, parsed.signature, ak, nonce=nonce.encode("ascii"), values=parsed.values, asked=asked)


def _bank_of(label: str) -> HashAlg:
    """The bank that has to be quoted: what the agent names, if that is a strong one."""
    try:
        bank = HashAlg.of_label(label.lower())
    except KeyError:
        return HashAlg.SHA256
    return HashAlg.SHA256 if bank.is_weak else bank


def malformed_quote(message: str) -> Appraisal:
    """The appraisal of an answer in which nothing can be read."""
    finding = Finding(
        FindingCode.QUOTE_MALFORMED, Severity.ERROR, message,
        "update or repair the agent; if that does not help, see what stands between console and host",
    )  # fmt: skip
    return Appraisal(
        verdict=Verdict.FAILED, findings=(finding,), secure_boot=None, pcrs={}, event_count=0, authorities=(),
        quote=None, boot=None, measurements=None, ima_state=None,
    )  # fmt: skip


def pcrs_as_json(values: PcrValues) -> dict[str, dict[str, str]]:
    return {
        bank.label: {str(pcr): value.hex() for pcr, value in sorted(of_bank.items())}
        for bank, of_bank in values.items()
    }


def finding_as_json(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code.value, "severity": finding.severity.value, "message": finding.message[:1000],
        "remedy": finding.remedy[:500], "pcr": finding.pcr, "event": finding.event,
        "expected": finding.expected[:500], "observed": finding.observed[:500],
    }  # fmt: skip
