"""VM Options of the VMs that were chosen in a list."""

from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from encryption.forms import ManyOptionsForm
from encryption.services import options, options_many
from inventory.authorize import may_somewhere
from inventory.errors import Invalid


@require_http_methods(["GET", "HEAD", "POST"])
def show(request: HttpRequest) -> HttpResponse:
    """GET with `vm` once for each VM shows the form; POST with `preview` each VM's plan, without it applies them."""
    sent = request.POST if request.method == "POST" else request.GET
    vm_ids = [_id(text) for text in sent.getlist("vm")]
    form = ManyOptionsForm(request.POST if request.method == "POST" else None)
    valid = form.is_valid()
    wish = form.wish() if valid else options_many.ManyWish()
    context = {"form": form, "plans": options_many.plan_many(vm_ids=vm_ids, wish=wish, actor=request.user)}
    context["may_apply"] = may_somewhere(request.user, options.CONFIGURE)
    if valid and "preview" not in request.POST:
        approved = {vm_id: request.POST.get(f"digest-{vm_id}", "")[:64] for vm_id in vm_ids}
        context["results"] = options_many.apply_many(vm_ids=vm_ids, wish=wish, approved=approved, actor=request.user)
    status = 422 if form.is_bound and not valid else 200
    return render(request, "encryption/vm_options_many.html", context, status=status)


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as exc:
        raise Invalid("vm_id_malformed", "that is no virtual machine's id", hint="choose VMs in a list") from exc
