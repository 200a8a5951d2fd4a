"""Key providers, keys and policies in Django's admin: to look at. What is sealed or wrapped is not shown at all.

Fields are listed one by one, so that a new column of a model does not appear here by itself.
"""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from typing_extensions import override

from encryption.models import (
    Bundle,
    Compliance,
    CryptoInventory,
    CryptoProcess,
    DiskPolicy,
    Key,
    KmsCluster,
    KmsServer,
    Leftover,
    MigrationProbe,
    StoragePolicy,
    VmMigration,
    VmSecurity,
    WrappedSecret,
)
from inventory.admin import LookOnly, LookOnlyLines


class KmsServerLines(LookOnlyLines):
    model = KmsServer
    fields = [
        "position", "host", "port", "state", "state_reason", "certificate_not_after", "vendor", "latency_ms",
        "checked_at",
    ]  # fmt: skip


@admin.register(KmsCluster)
class KmsClusterAdmin(LookOnly):
    list_display = ["name", "is_default", "is_lab", "created_at"]
    list_filter = ["is_default", "is_lab"]
    search_fields = ["name"]
    fields = [
        "id",
        "name",
        "is_default",
        "is_lab",
        "trusted_pem",
        "client_csr_pem",
        "client_certificate_pem",
        "client_certificate_next_pem",
        "client_ca_pem",
        "created_at",
    ]
    inlines = [KmsServerLines]


@admin.register(KmsServer)
class KmsServerAdmin(LookOnly):
    list_display = ["host", "port", "cluster", "position", "state", "vendor", "checked_at"]
    list_filter = ["state", "cluster"]
    search_fields = ["host", "cluster__name"]
    list_select_related = ["cluster"]
    fields = [
        "cluster", "position", "host", "port", "state", "state_code", "state_reason", "console_trusts_server",
        "server_trusts_console", "certificate_subject", "certificate_issuer", "certificate_fingerprint",
        "certificate_not_after", "certificate_seen_at", "vendor", "latency_ms", "checked_at",
    ]  # fmt: skip


@admin.register(Key)
class KeyAdmin(LookOnly):
    list_display = ["key_id", "cluster", "name", "algorithm", "state", "created_at"]
    list_filter = ["state", "cluster"]
    search_fields = ["key_id", "name"]
    list_select_related = ["cluster"]
    fields = ["cluster", "key_id", "name", "algorithm", "state", "created_at", "checked_at", "last_used_at"]


@admin.register(StoragePolicy)
class StoragePolicyAdmin(LookOnly):
    list_display = ["name", "encrypts", "is_builtin", "description"]
    list_filter = ["encrypts", "is_builtin"]
    search_fields = ["name"]
    fields = ["name", "description", "encrypts", "is_builtin"]


@admin.register(VmSecurity)
class VmSecurityAdmin(LookOnly):
    list_display = ["virtual_machine", "policy", "key", "lock_cause", "changed_at"]
    list_filter = ["policy", "lock_cause"]
    search_fields = ["virtual_machine__name", "key__key_id"]
    list_select_related = ["virtual_machine", "policy", "key"]
    fields = [
        "virtual_machine", "policy", "key", "locked_at", "lock_cause", "lock_detail", "lock_remedy", "lock_parts",
        "changed_at",
    ]  # fmt: skip


@admin.register(WrappedSecret)
class WrappedSecretAdmin(LookOnly):
    """That there is one, of what and under which key; `wrapped` itself is not even read from the database."""

    list_display = ["virtual_machine", "purpose", "target", "key", "stage", "created_at"]
    list_filter = ["purpose", "stage"]
    search_fields = ["virtual_machine__name", "key__key_id", "secret_uuid"]
    list_select_related = ["virtual_machine", "key"]
    fields = [
        "secret_uuid", "virtual_machine", "purpose", "target", "key", "path", "plain_path", "plain_format",
        "size_bytes", "stage", "job_id", "created_at",
    ]  # fmt: skip

    @override
    def get_queryset(self, request: HttpRequest) -> QuerySet[WrappedSecret]:
        return super().get_queryset(request).defer("wrapped")


@admin.register(VmMigration)
class VmMigrationAdmin(LookOnly):
    list_display = ["virtual_machine", "encrypted"]
    list_filter = ["encrypted"]
    search_fields = ["virtual_machine__name"]
    list_select_related = ["virtual_machine"]
    fields = ["virtual_machine", "encrypted"]


@admin.register(MigrationProbe)
class MigrationProbeAdmin(LookOnly):
    list_display = ["source", "target", "is_ready", "code", "checked_at"]
    list_filter = ["is_ready"]
    list_select_related = ["source", "target"]
    fields = ["source", "target", "is_ready", "code", "reason", "remedy", "checked_at"]


@admin.register(DiskPolicy)
class DiskPolicyAdmin(LookOnly):
    list_display = ["virtual_machine", "target", "policy"]
    list_filter = ["policy"]
    search_fields = ["virtual_machine__name"]
    list_select_related = ["virtual_machine", "policy"]
    fields = ["virtual_machine", "target", "policy"]


@admin.register(Compliance)
class ComplianceAdmin(LookOnly):
    list_display = ["virtual_machine", "state", "checked_at"]
    list_filter = ["state"]
    search_fields = ["virtual_machine__name"]
    list_select_related = ["virtual_machine"]
    fields = ["virtual_machine", "state", "findings", "observations", "checked_at"]


@admin.register(Leftover)
class LeftoverAdmin(LookOnly):
    list_display = ["path", "host", "kind", "size_bytes", "virtual_machine", "found_at", "kept_by"]
    list_filter = ["kind"]
    search_fields = ["path", "host__name", "virtual_machine__name"]
    list_select_related = ["host", "virtual_machine"]
    fields = [
        "host", "path", "kind", "size_bytes", "evidence", "virtual_machine", "found_at", "seen_at", "kept_at",
        "kept_by", "kept_reason",
    ]  # fmt: skip


@admin.register(Bundle)
class BundleAdmin(LookOnly):
    list_display = ["folder", "state", "vm_name", "is_clear", "made_at", "made_by"]
    list_filter = ["state", "is_clear"]
    search_fields = ["folder", "vm_name", "vm_uuid", "key_id"]
    fields = [
        "folder", "state", "reason", "vm_name", "vm_uuid", "size_bytes", "is_clear", "made_at", "made_by", "console",
        "kms_cluster", "kms_cluster_name", "key_id", "found_at",
    ]  # fmt: skip


@admin.register(CryptoProcess)
class CryptoProcessAdmin(LookOnly):
    list_display = ["name", "machine", "mode", "label", "certificate", "tested_at"]
    list_filter = ["label", "mode"]
    fields = ["name", "machine", "pid", "mode", "label", "certificate", "boundaries", "tests", "tested_at"]


@admin.register(CryptoInventory)
class CryptoInventoryAdmin(LookOnly):
    list_display = ["asked_at", "asked_by", "made_at", "virtual_machines", "encrypted_parts", "key"]
    fields = ["asked_at", "asked_by", "made_at", "virtual_machines", "encrypted_parts", "key"]

    @override
    def get_queryset(self, request: HttpRequest) -> QuerySet[CryptoInventory]:
        return super().get_queryset(request).defer("content")
