"""Key Providers: the list, one provider with its servers and both directions of trust, and its dialogs."""

from functools import partial
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from encryption.forms import kms as forms
from encryption.services import adoption, certificates
from encryption.services import key_providers as services
from encryption.services import keys as key_services
from encryption.services.recrypt import recrypt_provider
from encryption.views.kms_dialogs import act, page_of
from inventory.authorize import authorize, may
from inventory.views.dialogs import confirm, done, form
from inventory.views.paging import asked_page, pager


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
    keys = key_services.keys(cluster_id=cluster_id, actor=request.user, paging=asked_page(request))
    context = {
        "cluster": cluster,
        "servers": cluster.servers.all(),
        "soon": timezone.now() + certificates.WARN_BEFORE,
        "trusted": certificates.describe(cluster.trusted_pem),
        "client": certificates.describe(cluster.client_certificate_pem),
        "staged": certificates.describe(cluster.client_certificate_next_pem),
        "console_ca": certificates.describe(cluster.client_ca_pem),
        "keys": keys,
        "foreign": adoption.foreign_providers(actor=request.user),
        "page": pager(keys),
        "may_manage": may(request.user, services.MANAGE),
        "may_manage_keys": may(request.user, key_services.MANAGE),
    }
    return render(request, "encryption/kms_detail.html", context)


def add(request: HttpRequest) -> HttpResponse:
    authorize(request.user, services.MANAGE)

    def submit(data: dict[str, Any]) -> str:
        added = services.add_provider(
            name=data["name"],
            host=data["host"],
            port=data["port"],
            identity=UUID(data["identity"]) if data["identity"] else None,
            actor=request.user,
        )
        return page_of(added.pk)

    shape = partial(forms.KeyProviderForm, foreign=adoption.foreign_providers(actor=request.user))
    return form(request, shape, submit, title="Add key provider", button="Add", back=reverse("encryption:kms"))


def adopt_keys(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    """Says that this provider holds the keys of one that VMs name and that is not known here."""
    authorize(request.user, services.MANAGE)
    cluster = services.cluster(cluster_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        adoption.adopt_keys(cluster_id=cluster_id, identity=UUID(data["identity"]), actor=request.user)
        return page_of(cluster_id)

    return form(
        request, partial(forms.AdoptKeysForm, foreign=adoption.foreign_providers(actor=request.user)), submit,
        title="Take over keys", button="Take over", back=page_of(cluster_id),
        text=f"Locked VMs name a key provider that is not known here. If {cluster} holds its keys, they are tried one "
        "by one; a VM whose keys are not there stays as it is.",
    )  # fmt: skip


def add_server(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)

    def submit(data: dict[str, Any]) -> str:
        services.add_server(cluster_id=cluster_id, host=data["host"], port=data["port"], actor=request.user)
        return page_of(cluster_id)

    return form(request, forms.KeyServerForm, submit, title="Add key server", button="Add", back=page_of(cluster_id))


def edit_server(request: HttpRequest, server_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)
    server = services.server(server_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        services.edit_server(server_id=server_id, host=data["host"], port=data["port"], actor=request.user)
        return page_of(server.cluster_id)

    return form(
        request, forms.KeyServerForm, submit, {"host": server.host, "port": server.port},
        title="Edit key server", button="Save", back=page_of(server.cluster_id),
    )  # fmt: skip


@require_POST
def move_server(request: HttpRequest, server_id: UUID, direction: str) -> HttpResponse:
    moved = services.move_server(server_id=server_id, direction=direction, actor=request.user)
    return done(request, page_of(moved.cluster_id))


def remove_server(request: HttpRequest, server_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)
    server = services.server(server_id, actor=request.user)

    def submit(_: dict[str, Any]) -> str:
        services.remove_server(server_id=server_id, actor=request.user)
        return page_of(server.cluster_id)

    question = f"Remove {server} from {server.cluster}? Keys stay on the server."
    return confirm(
        request, submit, question, title="Remove key server", button="Remove", back=page_of(server.cluster_id)
    )


def trust(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)

    def submit(data: dict[str, Any]) -> str:
        services.trust_server(cluster_id=cluster_id, certificate_pem=data["certificate"], actor=request.user)
        return page_of(cluster_id)

    return form(
        request, forms.CertificateForm, submit, title="Trust key servers", button="Trust", back=page_of(cluster_id),
        text="The CA that issues the key servers' certificates, or one server's own certificate.",
    )  # fmt: skip


def create_client_key(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Create a client key for {}? A worker makes it and a signing request for the KMS administrator. "
    question += "A certificate in use stays until the new one is installed."
    return act(request, cluster_id, services.request_client_key, question, title="Create client key", button="Create")


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
        return page_of(cluster_id)

    return form(
        request, forms.CertificateForm, submit, title="Install client certificate", button="Install",
        back=page_of(cluster_id),
        text="The certificate that the KMS administrator made from the signing request, intermediates behind it.",
    )  # fmt: skip


def check(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Connect to every server of {} and note what is found?"
    return act(request, cluster_id, services.check, question, title="Check connection", button="Check")


def recrypt(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Give every VM with a key of {} a new key? Data keys and data stay as they are; the VMs may run."
    return act(request, cluster_id, recrypt_provider, question, title="Recrypt all VMs", button="Recrypt")


def set_default(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Take new keys from {} from now on? VMs that are encrypted keep their keys."
    return act(request, cluster_id, services.set_default, question, title="Set as default", button="Set as default")


def remove(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Remove the key provider {}? Its servers are not touched."
    page = reverse("encryption:kms")
    return act(
        request, cluster_id, services.remove_cluster, question, page, title="Remove key provider", button="Remove"
    )
