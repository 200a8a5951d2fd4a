"""What the console's own processes say about the cryptographic modules they compute with."""

import uuid

from django.db import models
from typing_extensions import override


class CryptoProcess(models.Model):
    """One sort of process on one machine, as it last reported: at its start, or when its self-tests ran again.

    `boundaries` and `tests` are the fields of adapters/crypto_modules.py's Boundary and SelfTest as objects.
    """

    class Label(models.TextChoices):
        """All that is ever claimed. Which certificate a build belongs to, only the operator can say."""

        VALIDATED = "validated", "Validated module, as the operator attests"
        ACTIVE = "active", "FIPS provider active, not a validated build"
        APPROVED = "approved", "Approved algorithms only, validated module not present"
        FAILED = "failed", "FAILED"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    machine = models.CharField(max_length=255)
    name = models.CharField(max_length=64)
    pid = models.PositiveIntegerField()
    mode = models.CharField(max_length=16)
    label = models.CharField(max_length=16, choices=Label.choices)
    certificate = models.CharField(max_length=120, blank=True)
    boundaries = models.JSONField(default=list)
    tests = models.JSONField(default=list)
    tested_at = models.DateTimeField()

    class Meta:
        ordering = ["machine", "name"]
        constraints = [models.UniqueConstraint(fields=["machine", "name"], name="one_row_a_process")]

    @override
    def __str__(self) -> str:
        return f"{self.name} on {self.machine}"

    @property
    def passed_count(self) -> int:
        return len(self.tests) - len(self.failed_tests)

    @property
    def failed_tests(self) -> list[dict[str, str]]:
        return [test for test in self.tests if not test["passed"]]
