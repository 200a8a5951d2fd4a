"""Identities of hosts' TPMs, what is asked of hosts, what they have shown, and the verdicts on it.

Nothing an agent says of itself changes a TpmIdentity before its TPM has answered a challenge: until then it is a
PendingRegistration. Keys of TPMs are public parts; the console's own key toward agents is sealed under the console key.
"""

import uuid

from django.db import models
from django.db.models import Q
from typing_extensions import override

from inventory.models import Cluster, Host


class VerifierIdentity(models.Model):
    """By what hosts know this console: a CA that agents trust (`trusted_client_ca`), and its one client certificate.

    One row at most. Both keys are sealed under the console key, which only workers have.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    ca_pem = models.TextField(help_text="what hosts get before they are enrolled")
    ca_key_sealed = models.BinaryField()
    certificate_pem = models.TextField()
    key_sealed = models.BinaryField()
    not_after = models.DateTimeField(help_text="end of the client certificate; a new one is made before")
    made_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="one_verifier_identity")]

    @override
    def __str__(self) -> str:
        return "the console toward agents"


class TrustAnchor(models.Model):
    """A certificate that vouches for endorsement keys: a TPM maker's CA. Pinned by its key, never by its name."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=200, unique=True)
    certificate_pem = models.TextField()
    spki_sha256 = models.CharField(max_length=64, unique=True, help_text="of its SubjectPublicKeyInfo, hexadecimal")
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of the certificate, hexadecimal")
    not_after = models.DateTimeField()
    added_by = models.CharField(max_length=150)
    added_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    @override
    def __str__(self) -> str:
        return self.name


class AgentOffer(models.Model):
    """What an agent says of its TPM and itself. Fields alone: believed in a TpmIdentity, not yet in the other."""

    ek_public = models.BinaryField(help_text="TPMT_PUBLIC or TPM2B_PUBLIC; by the TCG's template where only a"
                                   " certificate came")  # fmt: skip
    ek_name = models.CharField(max_length=132, db_index=True, help_text="the EK's TPM name, hexadecimal")
    ek_certificate_pem = models.TextField(blank=True, help_text="leaf first, then CAs that came along; empty: none")
    ak_public = models.BinaryField(help_text="TPM2B_PUBLIC")
    ak_name = models.CharField(max_length=132, help_text="the AK's TPM name, hexadecimal")
    mtls_certificate_pem = models.TextField(blank=True, help_text="the agent's own, pinned; empty: it has no TLS")
    contact_host = models.CharField(max_length=253, blank=True)
    contact_port = models.PositiveIntegerField(default=9002)
    api_version = models.CharField(max_length=8, default="2.1", help_text="of the agent's API, as in its URLs")

    class Meta:
        abstract = True


class PendingRegistration(AgentOffer):
    """One registration of one agent. Disturbs no TpmIdentity until its TPM has answered (`activated_at`).

    Activated without a refusal, and of an agent that is nobody's: it waits to be enrolled to a host.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    agent_id = models.CharField(max_length=200, db_index=True)
    expected_auth_tag = models.CharField(max_length=96, help_text="the right answer (HMAC); the secret is not kept")
    source_address = models.GenericIPAddressField()
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(help_text="until then the TPM may answer; unanswered rows go")
    activated_at = models.DateTimeField(null=True, blank=True)
    refusal_code = models.CharField(max_length=64, blank=True, help_text="tpm_changed ...: an administrator decides")
    refusal = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["expires_at"])]

    @override
    def __str__(self) -> str:
        return f"registration of {self.agent_id}"


class TpmIdentity(AgentOffer):
    """The TPM that a host is known by, the activated key that signs its quotes, and where its agent is asked."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    host = models.OneToOneField(Host, on_delete=models.CASCADE, related_name="tpm_identity")
    agent_id = models.CharField(max_length=200, unique=True)
    ek_anchor = models.ForeignKey(
        TrustAnchor, null=True, blank=True, on_delete=models.SET_NULL, related_name="identities",
        help_text="that vouched for the EK when it was last looked at",
    )  # fmt: skip
    ek_accepted_by = models.CharField(
        max_length=150, blank=True, help_text="who vouches for an EK that no trust anchor does; empty: nobody"
    )
    ek_accepted_reason = models.CharField(max_length=300, blank=True)
    has_fixed_contact = models.BooleanField(
        default=False, help_text="contact_host was given at enrolment: registrations do not change it"
    )
    enrolled_by = models.CharField(max_length=150)
    enrolled_at = models.DateTimeField(auto_now_add=True)
    activated_at = models.DateTimeField(help_text="of the attestation key in use")
    registrations = models.PositiveIntegerField(default=1, help_text="how often its agent has registered it")

    class Meta:
        ordering = ["agent_id"]
        constraints = [models.UniqueConstraint(fields=["ek_name"], name="one_host_for_a_tpm")]

    @override
    def __str__(self) -> str:
        return f"TPM of {self.host}"


class AttestationPolicy(models.Model):
    """What a cluster asks of its hosts. Without a row: the defaults of the fields."""

    class Require(models.TextChoices):
        AUTO = "auto", "Hosts with an enrolled TPM"
        ALWAYS = "always", "All hosts"
        NEVER = "never", "No host"

    cluster = models.OneToOneField(
        Cluster, primary_key=True, on_delete=models.CASCADE, related_name="attestation_policy"
    )
    require = models.CharField(max_length=8, choices=Require, default=Require.AUTO)
    freshness_minutes = models.PositiveIntegerField(
        default=60, help_text="so old may the last good verdict be when a key is released"
    )
    interval_minutes = models.PositiveIntegerField(default=10, help_text="between two attestations of a host")
    two_person_references = models.BooleanField(
        default=False, help_text="reference values hold only when a second administrator has approved them"
    )

    @override
    def __str__(self) -> str:
        return f"attestation policy of {self.cluster}"


class EventLog(models.Model):
    """A boot log, kept once however many hosts and polls have shown it."""

    sha256 = models.CharField(primary_key=True, max_length=64, help_text="of the log, not of what is stored")
    content_gz = models.BinaryField()
    event_count = models.PositiveIntegerField()
    size_bytes = models.PositiveIntegerField()
    first_seen_at = models.DateTimeField(auto_now_add=True)

    @override
    def __str__(self) -> str:
        return f"boot log {self.sha256[:12]}"


class Evidence(models.Model):
    """What one answer of an agent held, so that a verdict can be checked again by anybody."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="evidence")
    nonce = models.CharField(max_length=128, help_text="as it was asked with: text whose bytes the quote holds")
    quote = models.TextField(help_text="r<base64>:<base64>:<base64>, as it came")
    pcrs = models.JSONField(default=dict, help_text="that the quote proves: {bank: {index: hex}}; empty: none")
    ak_public = models.BinaryField(help_text="of the key the quote was checked with")
    event_log = models.ForeignKey(
        EventLog, null=True, blank=True, on_delete=models.PROTECT, related_name="evidence"
    )  # fmt: skip
    ima_gz = models.BinaryField(blank=True, default=b"", help_text="lines of the IMA list from ima_first_line on")
    ima_first_line = models.PositiveIntegerField(default=0)
    taken_at = models.DateTimeField(help_text="when the question was sent")

    class Meta:
        ordering = ["-taken_at"]

    @override
    def __str__(self) -> str:
        return f"evidence of {self.host}"


class VerdictStatus(models.TextChoices):
    """attestation.engine.findings.Verdict, with words for people."""

    PASSED = "passed", "Passed"
    WARNING = "warning", "Passed with warnings"
    FAILED = "failed", "Failed"
    UNREACHABLE = "unreachable", "Not reachable"
    PENDING = "pending", "Not attested yet"
    NOT_APPLICABLE = "not_applicable", "No TPM enrolled"


GOOD = (VerdictStatus.PASSED, VerdictStatus.WARNING)


class VerdictReason(models.TextChoices):
    REGISTRATION = "registration", "The agent registered"
    RECONNECT = "reconnect", "The host came back"
    SCHEDULE = "schedule", "Schedule"
    DEMAND = "demand", "Asked for"
    GATE = "gate", "A key was asked for"
    REFERENCES = "references", "Reference values changed"


class Verdict(models.Model):
    """What was concluded of one answer, or that none came. Written once, never changed.

    `reference` is what it was compared with; `is_change`: another status, or other findings, than the one before.
    """

    id = models.BigAutoField(primary_key=True)
    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="verdicts")
    status = models.CharField(max_length=16, choices=VerdictStatus)
    message = models.CharField(max_length=500, help_text="one line for people")
    findings = models.JSONField(
        default=list, help_text="[{code, severity, message, remedy, pcr, event, expected, observed}]"
    )
    secure_boot = models.BooleanField(null=True, blank=True, help_text="null: not proven, one way or the other")
    evidence = models.OneToOneField(
        Evidence, null=True, blank=True, on_delete=models.SET_NULL, related_name="verdict"
    )  # fmt: skip
    reference = models.ForeignKey(
        "ReferenceSet", null=True, blank=True, on_delete=models.SET_NULL, related_name="verdicts"
    )  # fmt: skip
    reason = models.CharField(max_length=16, choices=VerdictReason)
    is_change = models.BooleanField(default=False)
    checked_at = models.DateTimeField()
    took_ms = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["host", "-id"]), models.Index(fields=["host", "is_change", "-id"])]

    @override
    def __str__(self) -> str:
        return f"{self.host}: {self.get_status_display()}"


class ReferenceSet(models.Model):
    """Reference values of one cluster, a version. In force is the newest approved one. Written once, then approved."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    cluster = models.ForeignKey(Cluster, on_delete=models.CASCADE, related_name="reference_sets")
    version = models.PositiveIntegerField()
    body = models.TextField(help_text="canonical JSON, as attestation/engine/reference_json.py writes it")
    reason = models.CharField(max_length=300)
    made_by = models.CharField(max_length=150)
    made_at = models.DateTimeField(auto_now_add=True)
    approved_by = models.CharField(max_length=150, blank=True)
    approved_at = models.DateTimeField(null=True, blank=True)
    from_verdict = models.ForeignKey(
        Verdict, null=True, blank=True, on_delete=models.SET_NULL, related_name="made_references"
    )  # fmt: skip

    class Meta:
        ordering = ["-version"]
        constraints = [models.UniqueConstraint(fields=["cluster", "version"], name="reference_version_of_cluster")]

    @override
    def __str__(self) -> str:
        return f"reference values {self.version} of {self.cluster}"


class HostAttestation(models.Model):
    """How a host stands now. `status` may be UNREACHABLE or PENDING while `verdict` keeps what was last concluded."""

    host = models.OneToOneField(Host, primary_key=True, on_delete=models.CASCADE, related_name="attestation")
    status = models.CharField(max_length=16, choices=VerdictStatus, default=VerdictStatus.PENDING, db_index=True)
    message = models.CharField(max_length=500, blank=True)
    checked_at = models.DateTimeField(null=True, blank=True, help_text="of the last answer")
    passed_at = models.DateTimeField(
        null=True, blank=True, help_text="when evidence of the last good verdict was taken"
    )
    verdict = models.ForeignKey(
        Verdict, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", help_text="the last on evidence"
    )
    clock = models.BigIntegerField(null=True, blank=True, help_text="TPM clock in ms at the last verified quote")
    reset_count = models.BigIntegerField(null=True, blank=True)
    restart_count = models.BigIntegerField(null=True, blank=True)
    clock_safe = models.BooleanField(default=True)
    ima_state = models.JSONField(
        null=True, blank=True, help_text="{bank, lines, value}: where the next poll goes on; null: from line 0"
    )
    voided_at = models.DateTimeField(
        null=True, blank=True, help_text="the host was away until then: no evidence from before opens the gate"
    )
    next_check_at = models.DateTimeField(null=True, blank=True, db_index=True)
    claim = models.UUIDField(null=True, blank=True, help_text="of the worker that asks the agent now")
    claimed_at = models.DateTimeField(null=True, blank=True)
    failures = models.PositiveIntegerField(default=0, help_text="attempts without an answer, in a row")
    unreachable_since = models.DateTimeField(null=True, blank=True)

    @override
    def __str__(self) -> str:
        return f"attestation of {self.host}"
