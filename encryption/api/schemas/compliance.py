"""Whether a VM is as its policies say."""

from datetime import datetime
from typing import Literal, Self

from ninja import Schema

from encryption.models import (
    Compliance,
)

ComplianceState = Literal["compliant", "noncompliant", "unknown"]


class ComplianceFindingOut(Schema):
    """`part` is a disk's target, `nvram`, `vtpm`, or `vm` for the definition as a whole.

    `is_unknown`: it could not be found out, which is no breach and no compliance either.
    """

    code: str
    part: str
    expected: str
    observed: str
    evidence: str
    remedy: str
    is_unknown: bool


class ObservationOut(Schema):
    """What was seen of one part; `state` is encrypted, weak, plain, absent or unreadable."""

    part: str
    state: str
    evidence: str


class ComplianceOut(Schema):
    """`state` is null for a VM that is not protected or was not looked at yet."""

    state: ComplianceState | None
    checked_at: datetime | None
    findings: list[ComplianceFindingOut]
    observations: list[ObservationOut]

    @classmethod
    def of(cls, row: Compliance | None) -> Self:
        if row is None:
            return cls(state=None, checked_at=None, findings=[], observations=[])
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})
