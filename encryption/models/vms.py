"""What is wanted of one VM's protection, and what is known of it."""

from datetime import datetime, timedelta

from django.db import models
from typing_extensions import override

from encryption.models.keys import Key
from encryption.models.policies import StoragePolicy
from encryption.models.secrets import Purpose
from inventory.models import Host, VirtualMachine


class LockCause(models.TextChoices):
    """Why a VM's keys cannot be had."""

    KMS_ERROR = "kms_error", "KMS cluster error"
    KMS_UNTRUSTED = "kms_untrusted", "KMS cluster not trusted"
    KEY_MISSING = "key_missing_at_kms", "Key missing at the KMS"
    KEY_REFUSED = "key_refused", "Key refused by the KMS"
    SECRET_DAMAGED = "secret_damaged", "Wrapped key damaged"
    CONSOLE_KEY = "console_key", "Console key missing or changed"
    KEY_MISSING_ON_HOST = "key_missing_on_host", "Key missing on the host"
    PROVIDER_UNKNOWN = "provider_unknown", "No such key provider"
    COPY = "copy", "Copy of another VM"
    HOST_UNTRUSTED = "host_untrusted", "Host not trusted"


class VmSecurity(models.Model):
    """What is wanted of one VM, as last applied: its home policy and the key that wraps its secrets.

    A VM is locked while `locked_at` is set: its keys could not be had when they were last asked for. The VM's row is
    protected while this one stands: with it would go the wrapped keys.
    """

    virtual_machine = models.OneToOneField(VirtualMachine, on_delete=models.PROTECT, related_name="security")
    policy = models.ForeignKey(StoragePolicy, on_delete=models.PROTECT, related_name="virtual_machines")
    key = models.ForeignKey(Key, null=True, blank=True, on_delete=models.PROTECT, related_name="virtual_machines")
    locked_at = models.DateTimeField(null=True, blank=True)
    lock_cause = models.CharField(max_length=32, choices=LockCause, blank=True)
    lock_detail = models.CharField(max_length=1000, blank=True, help_text="what failed, with the server or the key")
    lock_remedy = models.CharField(max_length=500, blank=True)
    lock_parts = models.JSONField(default=list, blank=True, help_text="without a key: vda ..., nvram, vtpm")
    released_at = models.DateTimeField(null=True, blank=True, help_text="when its keys last went to a host")
    released_host = models.CharField(max_length=120, blank=True)
    released_verdict = models.BigIntegerField(
        null=True, blank=True, help_text="the host's verdict that the release relied on; null: none was required"
    )
    foreign_kms = models.UUIDField(
        null=True,
        blank=True,
        help_text="of a VM that was found: the key provider that its metadata names, not known here",
    )
    foreign_kms_name = models.CharField(max_length=255, blank=True, help_text="what it is called there")
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name_plural = "VM security"

    @override
    def __str__(self) -> str:
        return f"security of {self.virtual_machine}"

    @property
    def key_age_policy(self) -> StoragePolicy | None:
        """Of the policies of home and disks the one that allows the least key age; None where none limits it."""
        of_disks = (one.policy for one in self.virtual_machine.disk_policies.all())
        limited = [one for one in (self.policy, *of_disks) if one.encrypts and one.max_key_age_days]
        return min(limited, key=lambda one: one.max_key_age_days or 0, default=None)

    @property
    def key_due_at(self) -> datetime | None:
        """When its KEK is older than its policies allow."""
        policy = self.key_age_policy
        if policy is None or self.key is None:
            return None
        return self.key.created_at + timedelta(days=policy.max_key_age_days or 0)

    @property
    def lock_told(self) -> str:
        return f"Locked: {LockCause(self.lock_cause).label}: {self.lock_detail}" if self.locked_at else ""

    @property
    def locked_parts(self) -> str:
        """For people: "home (NVRAM, vTPM state), disks vda, vdb", so that home and disks are told apart."""
        homes = [str(purpose.label) for purpose in (Purpose.NVRAM, Purpose.VTPM) if purpose in self.lock_parts]
        disks = [part for part in self.lock_parts if part not in (Purpose.NVRAM, Purpose.VTPM)]
        told = [f"home ({', '.join(homes)})"] if homes else []
        if disks:
            told.append(f"{'disk' if len(disks) == 1 else 'disks'} {', '.join(disks)}")
        return ", ".join(told)


class EncryptedVmotion(models.TextChoices):
    """Whether a live migration goes under TLS; see engine/migration.py."""

    DISABLED = "disabled", "Disabled"
    OPPORTUNISTIC = "opportunistic", "Opportunistic"
    REQUIRED = "required", "Required"


class VmMigration(models.Model):
    """What is wanted of a VM's migrations. A VM without a row is *opportunistic*; one that was encrypted is *required*,
    and stays so after its decryption until somebody changes it (vSphere's rule)."""

    virtual_machine = models.OneToOneField(VirtualMachine, on_delete=models.CASCADE, related_name="migration")
    encrypted = models.CharField(
        max_length=16,
        choices=EncryptedVmotion,
        default=EncryptedVmotion.OPPORTUNISTIC,
        verbose_name="encrypted vMotion",
    )

    class Meta:
        verbose_name = "VM migration"

    @override
    def __str__(self) -> str:
        return f"{self.get_encrypted_display()} for {self.virtual_machine}"


class MigrationProbe(models.Model):
    """Whether one host could migrate encrypted to another, when it was last tried with a domain made for that."""

    source = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="probes_from")
    target = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="probes_to")
    is_ready = models.BooleanField()
    code = models.CharField(max_length=64, blank=True, help_text="of the failure; empty while ready")
    reason = models.CharField(max_length=500, blank=True)
    remedy = models.CharField(max_length=500, blank=True)
    checked_at = models.DateTimeField()

    class Meta:
        ordering = ["source__name", "target__name"]
        constraints = [models.UniqueConstraint(fields=["source", "target"], name="one_probe_of_a_pair")]

    @override
    def __str__(self) -> str:
        return f"{self.source} to {self.target}"


class VtpmEndorsement(models.Model):
    """An endorsement key of a VM's vTPM with its certificate, as a worker last read them from the state. All public;
    what the certificate says is the guest's word as much as its issuer's, for a guest may replace it."""

    virtual_machine = models.ForeignKey(VirtualMachine, on_delete=models.CASCADE, related_name="vtpm_endorsements")
    kind = models.CharField(max_length=20, help_text="RSA 2048, ECC P-384 ...")
    nv_index = models.PositiveBigIntegerField(help_text="of the certificate in the TPM")
    certificate = models.BinaryField(blank=True, default=b"", help_text="DER; empty: there is none")
    public_key = models.BinaryField(help_text="DER, SubjectPublicKeyInfo")
    read_at = models.DateTimeField()

    class Meta:
        ordering = ["nv_index"]
        verbose_name = "vTPM endorsement key"
        constraints = [models.UniqueConstraint(fields=["virtual_machine", "nv_index"], name="one_endorsement_of_index")]

    @override
    def __str__(self) -> str:
        return f"{self.kind} endorsement key of {self.virtual_machine}"
