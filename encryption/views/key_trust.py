"""Both directions of trust with key servers: review of a server's certificate, four ways to a client identity."""

from functools import partial
from typing import Any, Final
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from encryption.forms import kms as forms
from encryption.services import key_providers, key_trust
from encryption.views.kms_dialogs import act, page_of
from inventory.authorize import authorize
from inventory.views.dialogs import confirm, form

_MADE: Final = {
    "console_ca": (
        "Certificate from the console's CA",
        "Make a CA of this console for {}, if there is none yet, and a client certificate from it? Give the CA to the "
        "KMS administrator; later certificates are then trusted without a further step.",
    ),
    "self_signed": (
        "Self-signed certificate",
        "Make a self-signed client certificate for {}? Give it to the KMS administrator, and each later one again.",
    ),
}
_STAYS: Final = " A certificate in use stays until you put the new one into use."


def fetch(request: HttpRequest, server_id: UUID) -> HttpResponse:
    """A worker looks; the review follows when it has."""
    authorize(request.user, key_providers.MANAGE)
    server = key_providers.server(server_id, actor=request.user)

    def submit(_: dict[str, Any]) -> str:
        key_trust.fetch_certificate(server_id=server_id, actor=request.user)
        return page_of(server.cluster_id)

    return confirm(
        request, submit, f"Have a worker fetch the certificate that {server} shows? Nothing is trusted by that.",
        title="Fetch certificate", button="Fetch", back=page_of(server.cluster_id),
    )  # fmt: skip


def review(request: HttpRequest, server_id: UUID) -> HttpResponse:
    """Shows the server's certificate; accepting it trusts exactly the one that was shown."""
    authorize(request.user, key_providers.MANAGE)
    server = key_providers.server(server_id, actor=request.user)
    chain = key_trust.shown_certificate(server)

    def submit(data: dict[str, Any]) -> str:
        key_trust.accept_certificate(
            server_id=server_id, fingerprint=data["fingerprint"], pin=data["pin"], actor=request.user
        )
        return page_of(server.cluster_id)

    return form(
        request, partial(forms.AcceptCertificateForm, with_issuer=key_trust.can_pin_issuer(server)), submit,
        {"fingerprint": server.certificate_fingerprint, "pin": "certificate"},
        template="encryption/kms_certificate.html", title=f"Certificate of {server}", button="Trust",
        back=page_of(server.cluster_id), server=server, chain=chain,
    )  # fmt: skip


def distrust(request: HttpRequest, cluster_id: UUID, fingerprint: str) -> HttpResponse:
    def service(**given: Any) -> None:
        key_trust.distrust_certificate(fingerprint=fingerprint, **given)

    question = "Trust servers of {} no longer that show this certificate, or one that it issued? "
    question += f"SHA-256: {fingerprint[:64]}"
    return act(request, cluster_id, service, question, title="Remove trusted certificate", button="Remove")


def make(request: HttpRequest, cluster_id: UUID, method: str) -> HttpResponse:
    title, question = _MADE.get(method, ("Client certificate", "Make a client certificate for {}?"))

    def service(**given: Any) -> None:
        key_trust.request_client_certificate(method=method, **given)

    return act(request, cluster_id, service, question + _STAYS, title=title, button="Make")


def upload(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    """The private key is sealed to the workers before anything is written, and is never shown again."""
    authorize(request.user, key_providers.MANAGE)
    key_providers.cluster(cluster_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        key_trust.upload_client_key(
            cluster_id=cluster_id, certificate_pem=data["certificate"], private_key_pem=data["private_key"],
            actor=request.user,
        )  # fmt: skip
        return page_of(cluster_id)

    return form(
        request, forms.ClientKeyForm, submit, title="Upload certificate and key", button="Upload",
        back=page_of(cluster_id), text="As the KMS administrator issued them. The key is kept sealed." + _STAYS,
    )  # fmt: skip


def use(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Try the new client certificate at the servers of {} and use it from now on if one of them takes it?"
    return act(
        request, cluster_id, key_trust.use_client_certificate, question, title="Put into use", button="Put into use"
    )


@require_safe
def download(request: HttpRequest, cluster_id: UUID, what: str) -> HttpResponse:
    """A certificate of ours as a file."""
    pem = key_trust.download(cluster_id=cluster_id, what=what, actor=request.user)
    answer = HttpResponse(pem, content_type="application/x-pem-file")
    answer["Content-Disposition"] = f'attachment; filename="bartizan-{what}.pem"'
    return answer
