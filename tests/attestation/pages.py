"""What tests of attestation's pages and API share."""

from typing import Any

from django.test import Client
from django.urls import reverse

from attestation.models import (
    Verdict,
    VerdictReason,
)
from attestation.services import verifier
from inventory.models import Host
from tests.api_client import Answer
from tests.attestation.recorded import EVIDENCE

MAKER = (EVIDENCE / "captured/ca/root.pem").read_text()


def attest(host: Host) -> Verdict:
    assert verifier.attest_hosts([host.pk], reason=VerdictReason.DEMAND) == 1
    return Verdict.objects.filter(host=host)[0]


def url(name: str, *args: object) -> str:
    return reverse(f"attestation:{name}", args=args)


def text_of(who: Client, address: str) -> str:
    answer = who.get(address)
    assert answer.status_code == 200, address
    return answer.content.decode()


def refused(who: Client, address: str, status: int, words: str, **data: Any) -> None:
    answer = who.post(address, data)
    assert (answer.status_code, words in answer.content.decode()) == (status, True), answer.content.decode()


def failed(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code), answer.text
