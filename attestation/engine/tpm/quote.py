"""From an untrusted quote to a verified one. What `verify` proves, in this order:

1. the key is an attestation key by its attributes: restricted, fixed to its TPM, made there;
2. the signature is of the key's own scheme and hash, and the key made it over exactly these bytes;
3. the quote names a signer whose name has the key's name algorithm;
4. it holds the nonce that was asked for, so it is not older than the question;
5. the PCR values that came along have the digest that was signed.

NOT proven here: that the key sits in a TPM, and in which one. That is the activation of its name (credential.py), and
the caller compares names: `VerifiedQuote.ak_name` is None for a key that has none, and such a quote proves little.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from attestation.engine.findings import Finding, FindingCode, Severity
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.attest import UntrustedQuote
from attestation.engine.tpm.pcrs import PcrSelection, PcrValues
from attestation.engine.tpm.public import Public, PublicKey
from attestation.engine.tpm.signature import Signature

_SEAL = object()
_MAKE_AGAIN = "have the agent make a new quote; if it comes again, look at what stands between console and host"
_ENROL_AGAIN = "enrol the host with an attestation key that its agent has made in the TPM"


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """A quote whose signature and nonce hold. Only this module makes one.

    `pcrs` are the quoted values, proven by the signed digest; None when no values came, or wrong ones: then only
    `covering` can prove some. `hash_alg` is that of the signature.
    """

    attested: UntrustedQuote
    ak_name: bytes | None
    hash_alg: HashAlg
    pcrs: PcrValues | None
    seal: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise TypeError("a verified quote comes from quote.verify alone")

    def covering(self, values: PcrValues) -> "VerifiedQuote | None":
        """The same quote with `values` proven by its digest, or None where they are not what was quoted."""
        pcrs = _covered(self.attested, self.hash_alg, values)
        return None if pcrs is None else replace(self, pcrs=pcrs)


@dataclass(frozen=True, slots=True)
class QuoteCheck:
    """`quote` is None when the quote proves nothing, and then an error among `findings` says why."""

    quote: VerifiedQuote | None
    findings: tuple[Finding, ...]


def verify(
    quote: UntrustedQuote,
    signature: Signature,
    ak: Public | PublicKey,
    *,
    nonce: bytes,
    values: PcrValues | None = None,
    asked: PcrSelection | None = None,
) -> QuoteCheck:
    """Check a quote as the head of this file says.

    `values` are PCR values that came with it, also more than the quoted ones; `asked` are PCRs that have to be in it.
    """
    findings: list[Finding] = [*_key_findings(ak)]
    key = ak.key if isinstance(ak, Public) else ak
    if isinstance(ak, Public) and ak.scheme is not None and (ak.scheme, ak.scheme_hash) != _form(signature):
        findings.append(_error(FindingCode.BAD_SIGNATURE, "the signature is of another scheme or hash than the key's"))
    elif not signature.is_by(key, quote.raw):
        findings.append(_error(FindingCode.BAD_SIGNATURE, "the quote is not signed by the attestation key"))
    elif isinstance(ak, Public) and not _names_signer(quote.qualified_signer, ak.name_alg):
        findings.append(_error(FindingCode.BAD_SIGNATURE, "the quote names a signer of another name algorithm"))
    if quote.extra_data != nonce:
        findings.append(
            Finding(
                FindingCode.NONCE_MISMATCH,
                Severity.ERROR,
                "the quote does not hold the nonce that was asked for: it may be an old one",
                _MAKE_AGAIN,
                expected=nonce.hex(),
                observed=quote.extra_data.hex(),
            )
        )
    if any(finding.severity is Severity.ERROR for finding in findings):
        return QuoteCheck(None, tuple(findings))
    findings += _selection_findings(quote.selection, asked)
    findings += _weak_findings(quote, signature)
    pcrs = None if values is None else _covered(quote, signature.hash_alg, values)
    if values is not None and pcrs is None:
        findings.append(
            _error(FindingCode.PCR_MISMATCH, "the PCR values that came with the quote are not the quoted ones")
        )
    ak_name = ak.name if isinstance(ak, Public) else None
    return QuoteCheck(VerifiedQuote(quote, ak_name, signature.hash_alg, pcrs, _SEAL), tuple(findings))


def _covered(quote: UntrustedQuote, alg: HashAlg, values: PcrValues) -> PcrValues | None:
    if quote.selection.digest(alg, values) != quote.pcr_digest:
        return None
    return quote.selection.pick(values)


def _form(signature: Signature) -> tuple[object, object]:
    return signature.scheme, signature.hash_alg


def _names_signer(qualified_name: bytes, alg: HashAlg) -> bool:
    # The rest of a qualified name depends on the key's ancestors, which a verifier does not know.
    return len(qualified_name) == 2 + alg.size and qualified_name[:2] == alg.to_bytes(2, "big")


def _error(code: FindingCode, message: str) -> Finding:
    return Finding(code, Severity.ERROR, message, _MAKE_AGAIN)


def _key_findings(ak: Public | PublicKey) -> Sequence[Finding]:
    if not isinstance(ak, Public):
        message = "the key came without its attributes: nobody can say whether it signs what the TPM did not make"
        remedy = "give the key's TPM2B_PUBLIC instead of the bare public key"
        return [Finding(FindingCode.KEY_UNRESTRICTED, Severity.WARNING, message, remedy)]
    defects = ak.attestation_defects
    if not defects:
        return []
    message = f"the key that signed is no attestation key: it {'; it '.join(defects)}"
    return [Finding(FindingCode.KEY_UNRESTRICTED, Severity.ERROR, message, _ENROL_AGAIN)]


def _selection_findings(selection: PcrSelection, asked: PcrSelection | None) -> list[Finding]:
    findings = []
    if not any(pcrs for _, pcrs in selection.banks):
        message, remedy = "the quote covers no PCR", "switch a SHA-256 bank on in the firmware's set-up, and ask for it"
        findings.append(Finding(FindingCode.BANK_INACTIVE, Severity.ERROR, message, remedy))
    for bank, pcrs in asked.banks if asked is not None else ():
        quoted = selection.pcrs_of(bank)
        if pcrs and not quoted:
            message = f"the TPM's {bank.label} bank is not in the quote: it is switched off"
            remedy = f"switch the {bank.label} bank on in the firmware's set-up"
            findings.append(Finding(FindingCode.BANK_INACTIVE, Severity.ERROR, message, remedy))
            continue
        findings += [
            Finding(
                FindingCode.PCR_MISMATCH, Severity.ERROR, f"PCR {pcr} was asked for and is not quoted", _MAKE_AGAIN, pcr
            )
            for pcr in pcrs
            if pcr not in quoted
        ]
    return findings


def _weak_findings(quote: UntrustedQuote, signature: Signature) -> list[Finding]:
    findings = []
    if signature.hash_alg.is_weak:
        message = f"the quote is signed with {signature.hash_alg.label}, of which collisions are known"
        findings.append(Finding(FindingCode.WEAK_DIGEST, Severity.WARNING, message, _ENROL_AGAIN))
    banks = [bank for bank, pcrs in quote.selection.banks if pcrs]
    if banks and all(bank.is_weak for bank in banks):
        message = f"only the {banks[0].label} bank is quoted: other software with the same digests can be made"
        remedy = "switch the SHA-256 bank on in the firmware's set-up, and have it quoted"
        findings.append(Finding(FindingCode.WEAK_DIGEST, Severity.WARNING, message, remedy))
    return findings
