"""Appliance, Syslog: the targets with their state, and the dialogs that change them."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_safe

from console.appliance import forms
from console.appliance.services import syslog_targets as services
from console.appliance.views.sections import all_sections
from console.models import SyslogTarget
from encryption.forms.kms import ClientKeyForm
from inventory.authorize import authorize, may
from inventory.views.dialogs import confirm, form


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    found = services.targets(actor=request.user)
    context = {
        "appliance_sections": all_sections(),
        "targets": found,
        "most": SyslogTarget.MOST,
        "may_manage": may(request.user, services.MANAGE),
    }
    return render(request, "console/appliance/syslog.html", context)


@require_safe
def target(request: HttpRequest, syslog_target_id: UUID) -> HttpResponse:
    """Where links of jobs, events and alarms lead: its place on the page of all."""
    services.target(syslog_target_id, actor=request.user)
    return redirect(f"{_page()}#target-{syslog_target_id}")


def add(request: HttpRequest) -> HttpResponse:
    authorize(request.user, services.MANAGE)

    def submit(data: dict[str, Any]) -> str:
        services.add_target(**_wanted(data), actor=request.user)
        return _page()

    return _form(
        request, forms.SyslogTargetForm, submit, title="Add syslog target", button="Add",
        text="It gets every event from now on, all of them and in order.",
    )  # fmt: skip


def edit(request: HttpRequest, syslog_target_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)
    row = services.target(syslog_target_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        services.edit_target(target_id=syslog_target_id, **_wanted(data), actor=request.user)
        return _page()

    initial = {
        "protocol": row.protocol, "host": row.host, "port": row.port, "trusted": row.trusted_pem,
        "logs": row.includes_logs,
    }  # fmt: skip
    return _form(
        request, forms.SyslogTargetForm, submit, initial, title="Edit syslog target", button="Save",
        text="It goes on with the event where it stood.",
    )  # fmt: skip


def remove(request: HttpRequest, syslog_target_id: UUID) -> HttpResponse:
    question = "Remove {}? It gets nothing more, and what waits for it is not sent."
    return _act(
        request, syslog_target_id, services.remove_target, question, title="Remove syslog target", button="Remove",
        is_danger=True,
    )  # fmt: skip


def send_test(request: HttpRequest, syslog_target_id: UUID) -> HttpResponse:
    question = "Have a worker connect to {} and send one message? The result then stands beside the target."
    return _act(request, syslog_target_id, services.send_test, question, title="Send test message", button="Send")


def upload_client(request: HttpRequest, syslog_target_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)
    row = services.target(syslog_target_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        services.upload_client_key(
            target_id=syslog_target_id,
            certificate_pem=data["certificate"],
            private_key_pem=data["private_key"],
            actor=request.user,
        )
        return _page()

    return _form(
        request, ClientKeyForm, submit, title="Upload client certificate", button="Upload",
        text=f"By which the console shows itself to {row}, where the collector asks for that.",
    )  # fmt: skip


def remove_client(request: HttpRequest, syslog_target_id: UUID) -> HttpResponse:
    question = "Show no client certificate to {} any more? Its key is deleted."
    return _act(request, syslog_target_id, services.remove_client_key, question, title="Remove client certificate",
                button="Remove", is_danger=True)  # fmt: skip


def _wanted(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "host": data["host"],
        "port": data["port"],
        "protocol": data["protocol"],
        "includes_logs": data["logs"],
        "trusted_pem": data["trusted"],
    }


def _page() -> str:
    return reverse("appliance:syslog")


def _form(
    request: HttpRequest, shape: Any, submit: Any, initial: dict[str, Any] | None = None, **context: Any
) -> HttpResponse:
    return form(request, shape, submit, initial, back=_page(), **context)


def _act(request: HttpRequest, syslog_target_id: UUID, service: Any, question: str, **context: Any) -> HttpResponse:
    """Asks `question` of one target and calls the service at a yes."""
    authorize(request.user, services.MANAGE)
    row = services.target(syslog_target_id, actor=request.user)

    def submit(_: dict[str, Any]) -> str:
        service(target_id=syslog_target_id, actor=request.user)
        return _page()

    return confirm(request, submit, question.format(row), back=_page(), **context)
