"""Django's admin for operators: what the database says, to look at. Changes go through the services, so nothing is
edited here; a job can be cancelled."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from typing_extensions import override

from inventory import jobs
from inventory.authorize import VIEW_ALL, may
from inventory.errors import ServiceError
from inventory.models import (
    Alarm,
    Cluster,
    Datacenter,
    Datastore,
    Disk,
    Event,
    Host,
    Job,
    RoleAssignment,
    TwoPersonRule,
    VirtualMachine,
)
from inventory.services import activity

if TYPE_CHECKING:  # only django-stubs knows them as generic
    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Any]
else:
    ModelAdmin, TabularInline = admin.ModelAdmin, admin.TabularInline


class LookOnly(ModelAdmin):
    """Rows to search and read. Adding, changing and deleting are the services' business."""

    show_full_result_count = False
    list_per_page = 50

    @override
    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Rows are of all places: who looks here may look at the root."""
        return may(request.user, VIEW_ALL) and super().has_view_permission(request, obj)

    @override
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    @override
    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @override
    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class LookOnlyLines(TabularInline):
    """Rows that belong to another, below it."""

    extra = 0
    can_delete = False
    show_change_link = False

    @override
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @override
    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Datacenter)
class DatacenterAdmin(LookOnly):
    list_display = ["name", "id"]
    search_fields = ["name"]


@admin.register(Cluster)
class ClusterAdmin(LookOnly):
    list_display = ["name", "datacenter", "id"]
    list_filter = ["datacenter"]
    search_fields = ["name"]
    list_select_related = ["datacenter"]


@admin.register(Host)
class HostAdmin(LookOnly):
    list_display = [
        "name",
        "cluster",
        "state",
        "hostname",
        "libvirt_version",
        "is_encrypted_connection",
        "last_seen_at",
    ]
    list_filter = ["state", "is_encrypted_connection", "cluster"]
    search_fields = ["name", "hostname", "uri", "host_uuid"]
    list_select_related = ["cluster"]


@admin.register(Datastore)
class DatastoreAdmin(LookOnly):
    list_display = ["name", "host", "kind", "path", "is_active", "capacity_bytes", "available_bytes"]
    list_filter = ["kind", "is_active"]
    search_fields = ["name", "path", "host__name"]
    list_select_related = ["host"]


class DiskLines(LookOnlyLines):
    model = Disk


@admin.register(VirtualMachine)
class VirtualMachineAdmin(LookOnly):
    list_display = ["name", "host", "power_state", "firmware", "is_nvram_encrypted", "is_tpm_encrypted", "is_present"]
    list_filter = ["power_state", "firmware", "is_present", "is_nvram_encrypted", "is_tpm_encrypted"]
    search_fields = ["name", "uuid", "host__name"]
    list_select_related = ["host"]
    inlines = [DiskLines]


@admin.register(Job)
class JobAdmin(LookOnly):
    list_display = ["created_at", "what", "target_name", "actor", "status", "step", "error_code"]
    list_filter = ["status", "target_kind", "kind"]
    search_fields = ["id", "target_name", "actor", "error_code"]
    date_hierarchy = "created_at"
    actions = ["cancel"]

    @admin.display(description="kind", ordering="kind")
    def what(self, job: Job) -> str:
        return jobs.label(job)

    @admin.action(description="Cancel selected jobs")
    def cancel(self, request: HttpRequest, chosen: QuerySet[Job]) -> None:
        """Each job for itself: one that has ended does not keep the others from being cancelled."""
        cancelled = 0
        for job_id in chosen.values_list("pk", flat=True):
            try:
                activity.cancel_job(job_id=job_id, actor=request.user)
            except ServiceError as exc:
                self.message_user(request, str(exc), messages.ERROR)
            else:
                cancelled += 1
        if cancelled:
            self.message_user(
                request,
                f"{cancelled} {'job' if cancelled == 1 else 'jobs'} cancelled or asked to end",
                messages.SUCCESS,
            )


@admin.register(Event)
class EventAdmin(LookOnly):
    list_display = ["time", "severity", "kind", "target_name", "actor", "message"]
    list_filter = ["severity", "target_kind"]
    search_fields = ["message", "target_name", "actor", "kind"]
    date_hierarchy = "time"


@admin.register(Alarm)
class AlarmAdmin(LookOnly):
    list_display = ["raised_at", "severity", "kind", "target_name", "message", "acknowledged_by", "cleared_at"]
    list_filter = ["severity", "target_kind", "kind"]
    search_fields = ["message", "target_name", "kind"]
    date_hierarchy = "raised_at"


@admin.register(RoleAssignment)
class RoleAssignmentAdmin(LookOnly):
    list_display = ["role", "user", "group", "datacenter", "cluster", "assigned_at", "assigned_by"]
    list_filter = ["role"]
    search_fields = ["user__username", "group__name"]
    list_select_related = ["user", "group", "datacenter", "cluster"]


@admin.register(TwoPersonRule)
class TwoPersonRuleAdmin(LookOnly):
    list_display = ["action", "is_on"]
