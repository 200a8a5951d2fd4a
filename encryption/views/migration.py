"""Migration of a VM: the dialog with its hosts and plan, Encrypted vMotion, and which hosts of a cluster can."""

from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from encryption.forms import AUTO, STAY, EncryptedVmotionForm, MigrateForm
from encryption.models import EncryptedVmotion
from encryption.services import migration, migration_probes, vmotion
from encryption.services.migration import TargetChoice
from inventory.authorize import Actor, authorize, may
from inventory.errors import ServiceError
from inventory.models import TargetKind, VirtualMachine
from inventory.views import pages
from inventory.views.dialogs import confirm, dialog, form
from inventory.views.extensions import Action


def actions(target: Model, actor: Actor) -> Sequence[Action]:
    if not isinstance(target, VirtualMachine):
        return []
    why_not = "" if target.is_present else "its host does not list it"
    url = reverse("encryption:vm-migrate", args=[target.pk])
    return [Action("Migrate…", url, "deploy", "Move", why_not=why_not, action=migration.ACTION)]


def migrate(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """Asks for the host and the datastore, shows the plan, and starts the job."""
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, migration.ACTION, vm)
    choices = migration.migration_targets(vm_id=vm_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        migration.migrate_vm(
            vm_id=vm_id,
            target_id=UUID(data["target"]),
            datastore_id=_datastore(choices, data["target"], data["datastore"]),
            actor=request.user,
        )
        return reverse("inventory:monitor", args=[TargetKind.VIRTUAL_MACHINE, vm_id])

    first = next(iter(choices), None)
    context = {
        "title": f"Migrate {vm}",
        "button": "Migrate",
        "vm": vm,
        "mode": vmotion.effective_mode(vm).value,
        "is_fixed": vmotion.is_encrypted(vm),
        "fixed": vmotion.FIXED,
        "choices": choices,
        "plan": first.plan if first is not None and request.method != "POST" else None,
        "back": reverse("inventory:summary", args=[TargetKind.VIRTUAL_MACHINE, vm_id]),
    }
    initial = {"target": str(first.host.pk) if first is not None else "", "datastore": AUTO}
    return dialog(
        request, template="encryption/vm_migrate.html", form=partial(MigrateForm, choices=choices), submit=submit,
        initial=initial, context=context,
    )  # fmt: skip


def _datastore(choices: Sequence[TargetChoice], target: str, chosen: str) -> UUID | None:
    if chosen == STAY:
        return None
    if chosen != AUTO:
        return UUID(chosen)
    store = next((one.datastore for one in choices if str(one.host.pk) == target), None)
    return None if store is None else store.pk


@require_safe
def plan(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """The plan for the dialog's present input, as a fragment."""
    choices = migration.migration_targets(vm_id=vm_id, actor=request.user)
    form = MigrateForm(request.GET, choices=choices)
    if not form.is_valid():
        return render(request, "encryption/_migration_plan.html", {"plan": None})
    data = form.cleaned_data
    try:
        found = migration.plan_migration(
            vm_id=vm_id,
            target_id=UUID(data["target"]),
            datastore_id=_datastore(choices, data["target"], data["datastore"]),
            actor=request.user,
        )
    except ServiceError as exc:
        return render(request, "encryption/_migration_plan.html", {"plan": None, "error": exc})
    return render(request, "encryption/_migration_plan.html", {"plan": found})


def encrypted_vmotion(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """Sets the mode; of an encrypted VM it is fixed."""
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, vmotion.ACTION, vm)

    def submit(data: dict[str, Any]) -> str:
        vmotion.set_encrypted_vmotion(vm_id=vm_id, mode=EncryptedVmotion(data["mode"]), actor=request.user)
        return reverse("encryption:vm-options", args=[vm_id])

    return form(
        request, EncryptedVmotionForm, submit, {"mode": vmotion.effective_mode(vm).value},
        title=f"Encrypted vMotion of {vm}", button="Set", back=reverse("encryption:vm-options", args=[vm_id]),
        text="Required: under TLS or not at all. Opportunistic: in clear where the two hosts cannot do TLS.",
    )  # fmt: skip


@require_safe
def matrix(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    cluster = pages.load(TargetKind.CLUSTER, cluster_id, request.user)
    context = pages.context(cluster, request.user, tab="monitor", section="encryption:cluster-migration") | {
        "matrix": migration_probes.matrix(cluster_id=cluster_id, actor=request.user),
        "may_probe": may(request.user, migration_probes.ACTION, cluster),
    }
    return render(request, "encryption/migration_matrix.html", context)


def probe(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    cluster = pages.load(TargetKind.CLUSTER, cluster_id, request.user)
    authorize(request.user, migration_probes.ACTION, cluster)
    back = reverse("encryption:cluster-migration", args=[cluster_id])

    def submit(_: dict[str, Any]) -> str:
        migration_probes.probe_cluster(cluster_id=cluster_id, actor=request.user)
        return back

    question = f"Migrate an empty domain between all pairs of hosts of {cluster}? It takes some seconds a pair."
    return confirm(request, submit, question, title="Probe encrypted migration", button="Probe", back=back)
