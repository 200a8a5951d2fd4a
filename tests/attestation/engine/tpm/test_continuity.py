from dataclasses import replace

import pytest

from attestation.engine.findings import FindingCode
from attestation.engine.tpm.attest import ClockInfo
from attestation.engine.tpm.continuity import clock_findings

BEFORE = ClockInfo(clock=1_000_000, reset_count=7, restart_count=2, safe=True)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (replace(BEFORE, clock=1_000_001), []),
        (BEFORE, []),
        (replace(BEFORE, clock=1_000_001, restart_count=3), []),
        (replace(BEFORE, clock=2_000_000, reset_count=8, restart_count=0), [FindingCode.HOST_REBOOTED]),
        (replace(BEFORE, clock=999_999), [FindingCode.CLOCK_WENT_BACK]),
        (replace(BEFORE, restart_count=1), [FindingCode.CLOCK_WENT_BACK]),
        (replace(BEFORE, clock=2_000_000, reset_count=6), [FindingCode.CLOCK_WENT_BACK]),
        (ClockInfo(0, 0, 0, True), [FindingCode.CLOCK_WENT_BACK] * 3),
        (
            replace(BEFORE, clock=999_999, reset_count=8, safe=True),
            [FindingCode.CLOCK_WENT_BACK, FindingCode.HOST_REBOOTED],
        ),
        (
            replace(BEFORE, clock=999_999, reset_count=8, safe=False),
            [FindingCode.CLOCK_UNSAFE, FindingCode.HOST_REBOOTED],
        ),
        (replace(BEFORE, clock=999_999, safe=False), [FindingCode.CLOCK_UNSAFE, FindingCode.CLOCK_WENT_BACK]),
    ],
)
def test_clock_and_counters_only_go_on(now: ClockInfo, expected: list[FindingCode]) -> None:
    assert [finding.code for finding in clock_findings(BEFORE, now)] == expected


def test_a_first_quote_has_nothing_to_be_compared_with() -> None:
    assert clock_findings(None, BEFORE) == ()
    assert [finding.code for finding in clock_findings(None, replace(BEFORE, safe=False))] == [FindingCode.CLOCK_UNSAFE]


def test_the_values_are_told() -> None:
    (finding,) = clock_findings(BEFORE, replace(BEFORE, clock=5))
    assert (finding.expected, finding.observed) == ("at least 1000000", "5")
