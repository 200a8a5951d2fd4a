"""Evidence of a host appraised from files: see docs/attestation.md.

Needs no database, broker, web process or secrets, and runs as whoever calls it: `./bartizan manage appraise` comes with
settings of its own (console/recovery_settings.py).
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone
from typing_extensions import override

from attestation.engine.appraisal import Appraisal
from attestation.engine.boot.authorities import Authority
from attestation.engine.boot.uefi import printable
from attestation.engine.findings import Finding, Verdict
from attestation.management.offline import Files, Unusable, appraise_files, is_malformed

_PASSED, _FAILED, _MALFORMED = 0, 1, 2


class Command(BaseCommand):
    help = "Verify a host's boot log, TPM quote and IMA list from files, without the console."
    requires_system_checks: list[str] = []
    suppressed_base_arguments = {
        "--version", "--verbosity", "--settings", "--pythonpath", "--traceback", "--no-color", "--force-color",
    }  # fmt: skip

    @override
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--event-log", type=Path, metavar="FILE", help="the firmware's log, binary")
        parser.add_argument("--quote", type=Path, metavar="FILE", help="TPMS_ATTEST, as tpm2_quote -m writes it")
        parser.add_argument("--signature", type=Path, metavar="FILE", help="TPMT_SIGNATURE, as tpm2_quote -s writes it")
        parser.add_argument(
            "--ak", type=Path, metavar="FILE", help="TPM2B_PUBLIC or TPMT_PUBLIC of the key; or DER, PEM"
        )
        parser.add_argument("--nonce", metavar="HEX", help="what the quote was asked for with; '' if with nothing")
        parser.add_argument(
            "--pcrs", type=Path, metavar="FILE", help="values: tpm2_quote -o, the text of tpm2_pcrread, or JSON"
        )
        parser.add_argument(
            "--ek-cert", type=Path, metavar="FILE", help="the TPM's certificate, intermediates behind it"
        )
        parser.add_argument(
            "--trust-anchor", type=Path, metavar="FILE", action="append", default=[], help="may be given several times"
        )
        parser.add_argument("--ima", type=Path, metavar="FILE", help="ascii_runtime_measurements")
        parser.add_argument("--reference", type=Path, metavar="FILE", help="reference values, JSON")
        parser.add_argument("--json", action="store_true", help="print one object, whatever happens")

    @override
    def run_from_argv(self, argv: list[str]) -> None:
        """As Django does, but a caller who wants JSON gets it for options that argparse refuses, too."""
        try:
            super().run_from_argv(argv)
        except SystemExit as exc:
            if exc.code == _MALFORMED and "--json" in argv and not getattr(self, "_told", False):
                self._tell(_refusal(Unusable("invalid_arguments", "the options are wrong", "see --help")))
            raise

    @override
    def handle(self, *args: Any, **options: Any) -> None:
        files = Files(
            event_log=options["event_log"],
            quote=options["quote"],
            signature=options["signature"],
            ak=options["ak"],
            nonce=options["nonce"],
            pcrs=options["pcrs"],
            ek_cert=options["ek_cert"],
            trust_anchors=options["trust_anchor"],
            ima=options["ima"],
            reference=options["reference"],
        )
        try:
            appraisal = appraise_files(files, now=timezone.now())
        except Unusable as exc:
            if options["json"]:
                self._tell(_refusal(exc))
            else:
                self.stderr.write(f"{exc} ({exc.code})" + (f"\n  {exc.hint}" if exc.hint else ""))
            sys.exit(_MALFORMED)
        if options["json"]:
            self._tell(_as_json(appraisal))
        else:
            self.stdout.write("\n".join(map(printable, _lines(appraisal))))
        if is_malformed(appraisal, files):
            sys.exit(_MALFORMED)
        if appraisal.verdict is Verdict.FAILED:
            sys.exit(_FAILED)

    def _tell(self, answer: dict[str, object]) -> None:
        self._told = True
        self.stdout.write(json.dumps(answer))


def _answer(
    verdict: Verdict,
    findings: Sequence[dict[str, object]],
    secure_boot: bool | None = None,
    pcrs: dict[str, dict[str, str]] | None = None,
    event_count: int = 0,
    authorities: Sequence[dict[str, object]] = (),
) -> dict[str, object]:
    return {
        "verdict": verdict,
        "findings": list(findings),
        "secure_boot": secure_boot,
        "pcrs": pcrs or {},
        "event_count": event_count,
        "authorities": list(authorities),
    }


def _as_json(appraisal: Appraisal) -> dict[str, object]:
    return _answer(
        appraisal.verdict,
        [_finding(finding) for finding in appraisal.findings],
        appraisal.secure_boot,
        {bank.label: {str(pcr): value.hex() for pcr, value in of.items()} for bank, of in appraisal.pcrs.items()},
        appraisal.event_count,
        [_authority(authority) for authority in appraisal.authorities],
    )


def _refusal(error: Unusable) -> dict[str, object]:
    finding: dict[str, object] = {
        "code": error.code,
        "pcr": None,
        "event": None,
        "message": str(error),
        "remedy": error.hint,
    }
    return _answer(Verdict.FAILED, [finding])


def _finding(finding: Finding) -> dict[str, object]:
    return {
        "code": finding.code,
        "pcr": finding.pcr,
        "event": finding.event,
        "message": finding.message,
        "remedy": finding.remedy,
    }


def _authority(authority: Authority) -> dict[str, object]:
    certificate = authority.certificate
    return {
        "pcr": authority.pcr,
        "event": authority.event,
        "variable": authority.variable,
        "subject": certificate.subject if certificate else "",
        "cert_sha256": certificate.sha256 if certificate else "",
        "image_sha256": authority.image_sha256,
    }


def _lines(appraisal: Appraisal) -> list[str]:
    state = {True: "on", False: "off", None: "not known"}[appraisal.secure_boot]
    lines = [f"verdict      {appraisal.verdict}", f"secure boot  {state}", f"events       {appraisal.event_count}"]
    for bank, values in appraisal.pcrs.items():
        lines += [f"{bank.label:<7}{pcr:>4}  {value.hex()}" for pcr, value in values.items()]
    for authority in appraisal.authorities:
        signer = authority.certificate.subject if authority.certificate else authority.image_sha256
        lines.append(f"authority    {authority.variable}  {signer}".rstrip())
    for finding in appraisal.findings:
        lines += ["", f"{finding.severity}: {finding.message} ({finding.code})", f"  {finding.remedy}"]
        if finding.expected or finding.observed:
            lines += [f"  expected  {finding.expected}", f"  observed  {finding.observed}"]
    return lines
