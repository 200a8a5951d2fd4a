import pytest

from attestation.engine.errors import Malformed
from attestation.engine.findings import Finding, FindingCode, Severity, Verdict, verdict_of


def finding(severity: Severity) -> Finding:
    return Finding(FindingCode.NOT_PROVEN, severity, "nothing is proven", "give a quote")


@pytest.mark.parametrize(
    ("severities", "verdict"),
    [
        ([], Verdict.PASSED),
        ([Severity.INFO], Verdict.PASSED),
        ([Severity.INFO, Severity.WARNING], Verdict.WARNING),
        ([Severity.WARNING, Severity.ERROR, Severity.INFO], Verdict.FAILED),
    ],
)
def test_the_worst_finding_decides(severities: list[Severity], verdict: Verdict) -> None:
    assert verdict_of(map(finding, severities)) is verdict


def test_malformed_tells_what_and_where() -> None:
    class MalformedSelection(Malformed):
        what = "PCR selection"

    assert str(MalformedSelection("3 bytes", offset=7)) == "malformed PCR selection: expected 3 bytes at byte 7"
    assert str(Malformed("a certificate")) == "malformed attestation evidence: expected a certificate"
