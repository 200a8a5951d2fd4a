"""Appliance, Cryptographic modules: what computes, what is claimed of it, and the self-tests."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from console.appliance.views.sections import all_sections
from encryption.services import crypto_modules as services
from inventory.authorize import authorize, may
from inventory.views.dialogs import confirm


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    found = services.processes(actor=request.user)
    context = {
        "appliance_sections": all_sections(),
        "processes": found,
        "label": services.label_of(found),
        "certificates": sorted({one.certificate for one in found if one.certificate}),
        "may_test": may(request.user, services.TEST),
    }
    return render(request, "console/appliance/crypto_modules.html", context)


def test(request: HttpRequest) -> HttpResponse:
    authorize(request.user, services.TEST)
    back = reverse("appliance:crypto-modules")

    def submit(_: dict[str, Any]) -> str:
        services.request_self_tests(actor=request.user)
        return back

    question = (
        "Have this web process and a worker of each queue test their cryptographic modules again? A process whose"
        " tests fail takes no more work."
    )
    return confirm(request, submit, question, title="Run self-tests", button="Run", back=back)
