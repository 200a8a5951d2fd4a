"""What the console's processes compute with."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Self
from uuid import UUID

from ninja import Schema

from encryption.models import CryptoProcess

ModulesLabel = Literal["validated", "active", "approved", "failed"]


class BoundaryOut(Schema):
    """One library or program that computes. `is_tested`: by the self-tests; `sha256`: of its FIPS provider's file."""

    name: str
    library: str
    used_for: str
    is_tested: bool
    provider: str
    provider_file: str
    sha256: str
    note: str


class SelfTestOut(Schema):
    boundary: str
    name: str
    passed: bool
    detail: str


class CryptoProcessOut(Schema):
    """`certificate`: what the operator says this build is certified by; nothing here checks that."""

    id: UUID
    machine: str
    name: str
    pid: int
    mode: Literal["auto", "required", "off"]
    label: ModulesLabel
    certificate: str
    boundaries: list[BoundaryOut]
    tests: list[SelfTestOut]
    tested_at: datetime


class CryptoModulesOut(Schema):
    """`label`: what may be said of all processes, that is the least; null before any has reported."""

    label: ModulesLabel | None
    processes: list[CryptoProcessOut]

    @classmethod
    def of(cls, found: Sequence[CryptoProcess], label: CryptoProcess.Label | None) -> Self:
        rows = [{name: getattr(one, name) for name in CryptoProcessOut.model_fields} for one in found]
        return cls.model_validate({"label": None if label is None else label.value, "processes": rows})
