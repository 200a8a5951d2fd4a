"""Evidence in files, appraised without a console: nothing is enrolled, and nothing is remembered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography.x509 import Certificate

from attestation.engine.appraisal import Appraisal, Evidence, Identity, appraise
from attestation.engine.boot.check import BootReference
from attestation.engine.boot_appraisal import BootAppraiser
from attestation.engine.errors import Malformed
from attestation.engine.findings import FindingCode
from attestation.engine.ima.check import ImaPolicy
from attestation.engine.ima_appraisal import ImaEvidence
from attestation.engine.reference_json import from_json
from attestation.engine.tpm.attest import parse_quote
from attestation.engine.tpm.endorsement import ChainCheck, certifies, check_chain, parse_certificates
from attestation.engine.tpm.pcr_values import MalformedPcrValues, parse_concatenated, parse_values
from attestation.engine.tpm.pcrs import PcrSelection, PcrValues
from attestation.engine.tpm.public import Public, PublicKey, parse_key
from attestation.engine.tpm.quote import QuoteCheck, verify
from attestation.engine.tpm.signature import parse_signature

# More than the largest of the engine's own limits, so that its message is the one that is seen.
MAX_FILE_BYTES = 128 << 20
_MALFORMED_CODES = {FindingCode.LOG_MALFORMED, FindingCode.QUOTE_MALFORMED, FindingCode.IMA_MALFORMED}


T = TypeVar("T")


class Unusable(Exception):
    """An option or file that nothing can be done with. `code` is stable; the message names the option."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Files:
    """What the command was given. A quote is whole or not there: quote, signature, key and nonce."""

    event_log: Path | None
    quote: Path | None
    signature: Path | None
    ak: Path | None
    nonce: str | None
    pcrs: Path | None
    ek_cert: Path | None
    trust_anchors: Sequence[Path]
    ima: Path | None
    reference: Path | None


def appraise_files(files: Files, *, now: datetime) -> Appraisal:
    """Read all of it and appraise.

    Raises:
        Unusable: options that do not belong together, a file that cannot be read, or one that is malformed. A
            malformed event log or IMA list is no exception but a finding.
    """
    _check_options(files)
    reference = None if files.reference is None else _parsed("--reference", from_json, files.reference)
    key = None if files.ak is None else _parsed("--ak", parse_key, files.ak)
    evidence = Evidence(
        quote=None if key is None else _quote(files, key),
        event_log=None if files.event_log is None else _read("--event-log", files.event_log),
        ima=None if files.ima is None else ImaEvidence(_read("--ima", files.ima)),
    )
    certificates = () if files.ek_cert is None else _parsed("--ek-cert", parse_certificates, files.ek_cert)
    endorsement = _endorsement(certificates, files.trust_anchors, now) if certificates else None
    identity = None
    if endorsement is not None and endorsement.is_trusted and isinstance(key, Public):
        # A certificate for the attestation key itself takes the place of an activation.
        identity = Identity(key.name) if certifies(certificates[0], key) else None
    return appraise(
        evidence,
        BootAppraiser(None if reference is None else BootReference(reference)),
        None if reference is None or reference.ima is None else ImaPolicy(reference.ima),
        identity=identity,
        endorsement=endorsement,
    )


def is_malformed(appraisal: Appraisal, files: Files) -> bool:
    """True when evidence could not be read, which says nothing about the host; an empty log is no log either."""
    codes = {finding.code for finding in appraisal.findings}
    return bool(codes & _MALFORMED_CODES) or (files.event_log is not None and FindingCode.LOG_MISSING in codes)


def _check_options(files: Files) -> None:
    of_quote = {"--quote": files.quote, "--signature": files.signature, "--ak": files.ak, "--nonce": files.nonce}
    given = [name for name, value in of_quote.items() if value is not None]
    if given and len(given) < len(of_quote):
        missing = ", ".join(name for name, value in of_quote.items() if value is None)
        raise Unusable("invalid_arguments", f"{given[0]} also needs {missing}")
    if not given and files.event_log is None:
        raise Unusable("invalid_arguments", "there is nothing to appraise", "give --event-log, or a quote, or both")
    if files.pcrs is not None and not given:
        raise Unusable("invalid_arguments", "--pcrs belongs to a quote", "give --quote, --signature, --ak and --nonce")
    if files.trust_anchors and files.ek_cert is None:
        raise Unusable("invalid_arguments", "--trust-anchor belongs to a certificate", "give --ek-cert")


def _quote(files: Files, key: Public | PublicKey) -> QuoteCheck:
    assert files.quote is not None and files.signature is not None and files.nonce is not None  # noqa: S101
    quote = _parsed("--quote", parse_quote, files.quote)
    return verify(
        quote,
        _parsed("--signature", parse_signature, files.signature),
        key,
        nonce=_nonce(files.nonce),
        values=None if files.pcrs is None else _values(files.pcrs, quote.selection),
    )


def _nonce(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise Unusable("invalid_arguments", "--nonce is not hexadecimal", "an empty nonce is --nonce ''") from None


def _values(path: Path, selection: PcrSelection) -> PcrValues:
    data = _read("--pcrs", path)
    try:
        return parse_concatenated(data, selection)
    except MalformedPcrValues:
        return _parsed("--pcrs", parse_values, path)


def _endorsement(certificates: Sequence[Certificate], anchors: Sequence[Path], now: datetime) -> ChainCheck:
    trusted = [each for path in anchors for each in _parsed("--trust-anchor", parse_certificates, path)]
    return check_chain(certificates[0], certificates[1:], trusted, now=now)


def _parsed(option: str, parse: Callable[[bytes], T], path: Path) -> T:
    data = _read(option, path)
    try:
        return parse(data)
    except Malformed as exc:
        raise Unusable("evidence_malformed", f"{option} {path}: {exc}") from exc


def _read(option: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise Unusable("file_unreadable", f"{option} {path}: {exc.strerror or 'cannot be read'}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise Unusable("file_unreadable", f"{option} {path}: larger than {MAX_FILE_BYTES >> 20} MiB")
    return data
