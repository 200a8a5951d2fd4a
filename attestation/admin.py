"""TPM identities, verdicts and reference values in Django's admin: to look at. Evidence and sealed keys are not shown.

Fields are listed one by one, so that a new column of a model does not appear here by itself.
"""

from django.contrib import admin

from attestation.models import (
    AttestationPolicy,
    HostAttestation,
    PendingRegistration,
    ReferenceSet,
    TpmIdentity,
    TrustAnchor,
    Verdict,
)
from inventory.admin import LookOnly


@admin.register(TrustAnchor)
class TrustAnchorAdmin(LookOnly):
    list_display = ["name", "not_after", "added_by", "added_at"]
    search_fields = ["name"]
    fields = ["id", "name", "fingerprint", "spki_sha256", "certificate_pem", "not_after", "added_by", "added_at"]


@admin.register(TpmIdentity)
class TpmIdentityAdmin(LookOnly):
    list_display = ["host", "agent_id", "contact_host", "enrolled_by", "enrolled_at"]
    list_select_related = ["host"]
    search_fields = ["host__name", "agent_id"]
    fields = [
        "host", "agent_id", "ek_name", "ek_certificate_pem", "ek_anchor", "ek_accepted_by", "ek_accepted_reason",
        "ak_name", "mtls_certificate_pem", "contact_host", "has_fixed_contact", "contact_port", "api_version",
        "enrolled_by", "enrolled_at", "activated_at", "registrations",
    ]  # fmt: skip


@admin.register(PendingRegistration)
class PendingRegistrationAdmin(LookOnly):
    list_display = ["agent_id", "source_address", "created_at", "activated_at", "refusal_code"]
    search_fields = ["agent_id", "source_address"]
    fields = [
        "agent_id", "ek_name", "ak_name", "contact_host", "contact_port", "api_version", "source_address",
        "created_at", "expires_at", "activated_at", "refusal_code", "refusal",
    ]  # fmt: skip


@admin.register(AttestationPolicy)
class AttestationPolicyAdmin(LookOnly):
    list_display = ["cluster", "require", "freshness_minutes", "interval_minutes", "two_person_references"]
    list_select_related = ["cluster"]
    fields = ["cluster", "require", "freshness_minutes", "interval_minutes", "two_person_references"]


@admin.register(ReferenceSet)
class ReferenceSetAdmin(LookOnly):
    list_display = ["cluster", "version", "reason", "made_by", "made_at", "approved_by", "approved_at"]
    list_select_related = ["cluster"]
    list_filter = ["cluster"]
    fields = ["cluster", "version", "reason", "made_by", "made_at", "approved_by", "approved_at", "body"]


@admin.register(HostAttestation)
class HostAttestationAdmin(LookOnly):
    list_display = ["host", "status", "checked_at", "passed_at", "failures", "next_check_at"]
    list_select_related = ["host"]
    list_filter = ["status"]
    search_fields = ["host__name"]
    fields = [
        "host", "status", "message", "checked_at", "passed_at", "voided_at", "clock", "reset_count", "restart_count",
        "next_check_at", "failures", "unreachable_since",
    ]  # fmt: skip


@admin.register(Verdict)
class VerdictAdmin(LookOnly):
    list_display = ["host", "status", "reason", "is_change", "checked_at"]
    list_select_related = ["host"]
    list_filter = ["status", "reason"]
    search_fields = ["host__name", "message"]
    fields = [
        "host", "status", "message", "findings", "secure_boot", "reference", "reason", "is_change", "checked_at",
        "took_ms",
    ]  # fmt: skip
