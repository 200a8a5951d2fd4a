"""Key Providers: the list, one provider with its servers and both directions of trust, and its dialogs."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from encryption import forms
from encryption.services import key_providers as services
from inventory.authorize import authorize, may
from inventory.forms import ConfirmForm
from inventory.views.dialogs import dialog


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    context = {
        "clusters": services.clusters(actor=request.user),
        "may_manage": may(request.user, services.MANAGE),
    }
    return render(request, "encryption/kms_list.html", context)


@require_safe
def detail(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    cluster = services.cluster(cluster_id, actor=request.user)
    context = {
        "cluster": cluster,
        "servers": cluster.servers.all(),
        "trusted": services.describe(cluster.trusted_pem),
        "client": services.describe(cluster.client_certificate_pem),
        "keys": cluster.keys.prefetch_related("wrapped_secrets__virtual_machine")[:200],
        "may_manage": may(request.user, services.MANAGE),
    }
    return render(request, "encryption/kms_detail.html", context)


def add(request: HttpRequest) -> HttpResponse:
    authorize(request.user, services.MANAGE)

    def submit(data: dict[str, Any]) -> str:
        added = services.add_provider(name=data["name"], host=data["host"], port=data["port"], actor=request.user)
        return _page(added.pk)

    return _form(
        request, forms.KeyProviderForm, submit, title="Add key provider", button="Add", back=reverse("encryption:kms")
    )


def add_server(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)

    def submit(data: dict[str, Any]) -> str:
        services.add_server(cluster_id=cluster_id, host=data["host"], port=data["port"], actor=request.user)
        return _page(cluster_id)

    return _form(request, forms.KeyServerForm, submit, title="Add key server", button="Add", back=_page(cluster_id))


def remove_server(request: HttpRequest, server_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)
    server = services.server(server_id, actor=request.user)

    def submit(_: dict[str, Any]) -> str:
        services.remove_server(server_id=server_id, actor=request.user)
        return _page(server.cluster_id)

    question = f"Remove {server} from {server.cluster}? Keys stay on the server."
    return _confirm(
        request, submit, question, title="Remove key server", button="Remove", back=_page(server.cluster_id)
    )


def trust(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)

    def submit(data: dict[str, Any]) -> str:
        services.trust_server(cluster_id=cluster_id, certificate_pem=data["certificate"], actor=request.user)
        return _page(cluster_id)

    return _form(
        request, forms.CertificateForm, submit, title="Trust key servers", button="Trust", back=_page(cluster_id),
        text="The CA that issues the key servers' certificates, or one server's own certificate.",
    )  # fmt: skip


def create_client_key(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Create a client key for {}? A worker makes it and a signing request for the KMS administrator. "
    question += "A certificate in use stays until the new one is installed."
    return _act(request, cluster_id, services.request_client_key, question, title="Create client key", button="Create")


@require_safe
def client_request(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    """The signing request as a file."""
    cluster = services.cluster(cluster_id, actor=request.user)
    answer = HttpResponse(cluster.client_csr_pem, content_type="application/pkcs10")
    answer["Content-Disposition"] = 'attachment; filename="bartizan-client-request.pem"'
    return answer


def install_client_certificate(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)

    def submit(data: dict[str, Any]) -> str:
        services.install_client_certificate(
            cluster_id=cluster_id, certificate_pem=data["certificate"], actor=request.user
        )
        return _page(cluster_id)

    return _form(
        request, forms.CertificateForm, submit, title="Install client certificate", button="Install",
        back=_page(cluster_id),
        text="The certificate that the KMS administrator made from the signing request, intermediates behind it.",
    )  # fmt: skip


def check(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Connect to every server of {} and note what is found?"
    return _act(request, cluster_id, services.check, question, title="Check connection", button="Check")


def set_default(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Take new keys from {} from now on? VMs that are encrypted keep their keys."
    return _act(request, cluster_id, services.set_default, question, title="Set as default", button="Set as default")


def remove(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Remove the key provider {}? Its servers are not touched."
    page = reverse("encryption:kms")
    return _act(
        request, cluster_id, services.remove_cluster, question, page, title="Remove key provider", button="Remove"
    )


def _act(
    request: HttpRequest, cluster_id: UUID, service: Callable[..., Any], question: str, page: str = "", **context: str
) -> HttpResponse:
    """Asks `question` of one key provider and calls the service at a yes; then `page`, or the provider's own."""
    authorize(request.user, services.MANAGE)
    cluster = services.cluster(cluster_id, actor=request.user)

    def submit(_: dict[str, Any]) -> str:
        service(cluster_id=cluster_id, actor=request.user)
        return page or _page(cluster_id)

    return _confirm(request, submit, question.format(cluster), back=_page(cluster_id), **context)


def _page(cluster_id: UUID) -> str:
    return reverse("encryption:kms-cluster", args=[cluster_id])


def _form(request: HttpRequest, form: Any, submit: Any, **context: str) -> HttpResponse:
    return dialog(request, template="encryption/kms_form.html", form=form, submit=submit, context=context)


def _confirm(request: HttpRequest, submit: Any, question: str, **context: str) -> HttpResponse:
    return _form(request, ConfirmForm, submit, text=question, **context)
