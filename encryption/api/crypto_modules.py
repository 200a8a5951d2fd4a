"""Routes of the cryptographic modules: what each process reported, and asking for the self-tests."""

from django.http import HttpRequest
from ninja import Router

from encryption.api.schemas import CryptoModulesOut
from encryption.services import crypto_modules
from inventory.api.frame import actor_of
from inventory.api.schemas import JobOut

router = Router(tags=["Appliance"])


@router.get("/crypto-modules", response=CryptoModulesOut)
def get_crypto_modules(request: HttpRequest) -> CryptoModulesOut:
    """As each process last reported, when it started or was tested again."""
    found = crypto_modules.processes(actor=actor_of(request))
    return CryptoModulesOut.of(found, crypto_modules.label_of(found))


@router.post("/crypto-modules/test", response={202: list[JobOut]})
def test_crypto_modules(request: HttpRequest) -> list[JobOut]:
    """The web process that answers tests itself; a job for each queue has one of its workers do the same."""
    return [JobOut.of(job) for job in crypto_modules.request_self_tests(actor=actor_of(request))]
