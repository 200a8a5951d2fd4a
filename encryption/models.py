"""Key providers, keys, wrapped secrets, storage policies and what is wanted of one VM.

No row holds a key in clear: keys of the KMS are known by their IDs, data keys are kept wrapped, and the console's own
client keys are sealed under the console key, which only workers have.
"""

import uuid
from datetime import datetime, timedelta

from django.db import models
from django.db.models import Q
from typing_extensions import override

from inventory.models import Host, VirtualMachine


class KmsCluster(models.Model):
    """Key servers that replicate each other. `id` travels in the VMs' metadata and so survives a rebuilt console."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    name = models.CharField(max_length=80, unique=True)
    is_default = models.BooleanField(default=False)
    is_lab = models.BooleanField(default=False, help_text="a key server of the local lab: not for real keys")
    trusted_pem = models.TextField(blank=True, help_text="the CA, or the server's own certificate, that is trusted")
    client_csr_pem = models.TextField(blank=True, help_text="for the next client key, until its certificate comes")
    client_key_next_sealed = models.BinaryField(blank=True, default=b"")
    client_certificate_pem = models.TextField(blank=True)
    client_key_sealed = models.BinaryField(blank=True, default=b"")
    client_certificate_next_pem = models.TextField(
        blank=True, help_text="made or uploaded, and not in use until the key servers were told of it"
    )
    client_ca_pem = models.TextField(blank=True, help_text="the console's own CA for this key provider")
    client_ca_key_sealed = models.BinaryField(blank=True, default=b"")
    client_warned = models.CharField(
        max_length=64, blank=True, help_text="SHA-256 of the client certificate whose near end was told already"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["is_default"], condition=Q(is_default=True), name="one_default_kms_cluster")
        ]

    @override
    def __str__(self) -> str:
        return self.name


class KmsServer(models.Model):
    class State(models.TextChoices):
        UNKNOWN = "unknown", "Not checked"
        CONNECTED = "connected", "Connected"
        UNREACHABLE = "unreachable", "Not reachable"
        UNTRUSTED = "untrusted", "Not trusted"
        FAILING = "failing", "Answers with an error"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    cluster = models.ForeignKey(KmsCluster, on_delete=models.CASCADE, related_name="servers")
    position = models.PositiveIntegerField(help_text="servers are tried in this order")
    host = models.CharField(max_length=253)
    port = models.PositiveIntegerField(default=5696)
    state = models.CharField(max_length=16, choices=State, default=State.UNKNOWN)
    state_code = models.CharField(max_length=64, blank=True, help_text="of the error; empty while connected")
    state_reason = models.CharField(max_length=500, blank=True)
    console_trusts_server = models.BooleanField(null=True, blank=True, help_text="null: not known")
    server_trusts_console = models.BooleanField(null=True, blank=True, help_text="null: not known")
    vendor = models.CharField(max_length=200, blank=True)
    latency_ms = models.PositiveIntegerField(null=True, blank=True)
    checked_at = models.DateTimeField(null=True, blank=True)
    certificate_pem = models.TextField(blank=True, help_text="what the server showed, UNVERIFIED; issuers behind it")
    certificate_subject = models.CharField(max_length=500, blank=True)
    certificate_issuer = models.CharField(max_length=500, blank=True)
    certificate_fingerprint = models.CharField(max_length=64, blank=True, help_text="SHA-256, hexadecimal")
    certificate_not_after = models.DateTimeField(null=True, blank=True)
    certificate_seen_at = models.DateTimeField(null=True, blank=True)
    certificate_warned = models.CharField(
        max_length=64, blank=True, help_text="SHA-256 of the certificate whose near end was told already"
    )

    class Meta:
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["cluster", "position"], name="kms_server_position"),
            models.UniqueConstraint(fields=["cluster", "host", "port"], name="kms_server_address"),
        ]

    @override
    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class TransportKey(models.Model):
    """The workers' key pair, by which the web process hands them a secret that it must not keep. One row at most."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    public_pem = models.TextField()
    private_sealed = models.BinaryField(help_text="under the console key")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="one_transport_key")]

    @override
    def __str__(self) -> str:
        return "transport key of the workers"


class ClientKeyUpload(models.Model):
    """An uploaded client key on its way to a worker, which takes it and deletes the row."""

    cluster = models.OneToOneField(KmsCluster, on_delete=models.CASCADE, related_name="client_key_upload")
    certificate_pem = models.TextField()
    sealed = models.BinaryField(help_text="under the transport key")
    created_at = models.DateTimeField(auto_now_add=True)

    @override
    def __str__(self) -> str:
        return f"client key for {self.cluster}"


class Key(models.Model):
    """One managed object of a KMS, known by its unique identifier. The key itself never comes near the database."""

    class State(models.TextChoices):
        PRE_ACTIVE = "pre_active", "Pre-active"
        ACTIVE = "active", "Active"
        DEACTIVATED = "deactivated", "Deactivated"
        COMPROMISED = "compromised", "Compromised"
        DESTROYED = "destroyed", "Destroyed"
        MISSING = "missing", "Missing at the KMS"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    cluster = models.ForeignKey(KmsCluster, on_delete=models.PROTECT, related_name="keys")
    key_id = models.CharField(max_length=255, help_text="the KMIP unique identifier")
    name = models.CharField(max_length=255, blank=True)
    algorithm = models.CharField(max_length=20, default="AES-256")
    state = models.CharField(max_length=16, choices=State, default=State.PRE_ACTIVE)
    created_at = models.DateTimeField(auto_now_add=True)
    checked_at = models.DateTimeField(null=True, blank=True, help_text="when the KMS was last asked for its state")
    last_used_at = models.DateTimeField(null=True, blank=True, help_text="when a worker last fetched it")
    last_used_by = models.CharField(max_length=150, blank=True, help_text="for whom")
    last_used_for = models.CharField(max_length=340, blank=True, help_text="the job, with its target")
    is_foreign = models.BooleanField(
        default=False, help_text="made by somebody else and added here: it may protect what this console does not know"
    )

    class Meta:
        ordering = ["-created_at"]
        constraints = [models.UniqueConstraint(fields=["cluster", "key_id"], name="key_id_in_kms_cluster")]

    @override
    def __str__(self) -> str:
        return self.key_id

    @property
    def due_at(self) -> datetime | None:
        """When the first of its VMs gets a new key by its policies; read with `rotation.with_policies`."""
        return min((at for row in self.virtual_machines.all() if (at := row.key_due_at) is not None), default=None)


class ChosenPolicies(models.Manager["StoragePolicy"]):
    """Those that somebody can choose."""

    @override
    def get_queryset(self) -> models.QuerySet["StoragePolicy"]:
        return super().get_queryset().filter(is_for_vtpm=False)


class StoragePolicy(models.Model):
    """What a VM's home or a disk must be.

    `is_for_vtpm`: one row that nobody chooses and no list shows. It stands for a home that is encrypted because of the
    vTPM alone.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=80, unique=True)
    description = models.CharField(max_length=300, blank=True)
    encrypts = models.BooleanField(default=True)
    is_builtin = models.BooleanField(default=False)
    is_for_vtpm = models.BooleanField(default=False, editable=False)
    max_key_age_days = models.PositiveIntegerField(
        null=True, blank=True, help_text="VMs whose KEK is older get a new one by themselves; empty: never"
    )

    objects = ChosenPolicies()
    every = models.Manager["StoragePolicy"]()

    class Meta:
        ordering = ["-encrypts", "name"]
        verbose_name_plural = "storage policies"
        constraints = [
            models.UniqueConstraint(fields=["is_for_vtpm"], condition=Q(is_for_vtpm=True), name="one_policy_for_vtpms")
        ]

    @override
    def __str__(self) -> str:
        return self.name


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


class DiskPolicy(models.Model):
    """The storage policy of one disk, as last applied. A disk that is detached loses it (vSphere's rule)."""

    virtual_machine = models.ForeignKey(VirtualMachine, on_delete=models.CASCADE, related_name="disk_policies")
    target = models.CharField(max_length=32, help_text="vda ...")
    policy = models.ForeignKey(StoragePolicy, on_delete=models.PROTECT, related_name="disks")

    class Meta:
        ordering = ["target"]
        verbose_name_plural = "disk policies"
        constraints = [models.UniqueConstraint(fields=["virtual_machine", "target"], name="one_policy_per_disk")]

    @override
    def __str__(self) -> str:
        return f"{self.policy} of {self.target}"


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


class Compliance(models.Model):
    """Whether a VM is what its policies say, as last observed: headers, flags and definition, not what we wrote."""

    class State(models.TextChoices):
        COMPLIANT = "compliant", "Compliant"
        NONCOMPLIANT = "noncompliant", "Not compliant"
        UNKNOWN = "unknown", "Not known"

    virtual_machine = models.OneToOneField(VirtualMachine, on_delete=models.CASCADE, related_name="compliance")
    state = models.CharField(max_length=16, choices=State, default=State.UNKNOWN)
    findings = models.JSONField(default=list, help_text="of each: code, part, expected, observed, evidence, remedy")
    observations = models.JSONField(default=list, help_text="of each part: part, state, evidence")
    checked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "compliance"

    @override
    def __str__(self) -> str:
        return f"{self.virtual_machine}: {self.get_state_display()}"


class Purpose(models.TextChoices):
    """What a wrapped secret opens. The values stand in the VM's metadata (engine/metadata.py)."""

    DISK = "disk", "Disk"
    NVRAM = "nvram", "NVRAM"
    VTPM = "vtpm", "vTPM state"


class Stage(models.TextChoices):
    """How far the part that a secret opens has come. A resumed job goes on from here.

    ENCRYPTING -> SWITCHED -> IN_USE -> DECRYPTING -> RESTORED -> (row deleted)

    Deep recrypt: the new secret's row begins at ENCRYPTING and `replaces` the old one, which is REPLACED until the
    part it opened is destroyed; then the old row is deleted. Given up, it is IN_USE again.

    A disk that its VM no longer has is DETACHED: its key is kept, so that it can be attached (IN_USE) or destroyed.
    A new encrypted disk begins so, too: its key stands before its file, and its file before the VM has it.
    """

    ENCRYPTING = "encrypting", "Being encrypted"  # the plain file is in use, `path` is being written
    SWITCHED = "switched", "Encrypted, original left"  # `path` is in use, `plain_path` is to be destroyed
    IN_USE = "in_use", "Encrypted"
    DECRYPTING = "decrypting", "Being decrypted"  # `path` is in use, `plain_path` is being written
    REMOVING = "removing", "Being removed"  # a vTPM: once the definition has none, its state is destroyed
    RESTORED = "restored", "Decrypted, encrypted copy left"  # `plain_path` is in use, `path` is to be destroyed
    DETACHED = "detached", "Detached"  # `path` opens with it, and no definition of ours has it
    REPLACED = "replaced", "Getting a new key"  # `path` is in use until the row that replaces this one is SWITCHED


OPENED_BY_SECRET = (Stage.SWITCHED, Stage.IN_USE, Stage.DECRYPTING, Stage.REPLACED)


class WrappedSecret(models.Model):
    """A data key wrapped by a KEK (AES-KWP): the passphrase of a LUKS image or of vTPM state, in hexadecimal.

    Written before the first byte is encrypted under it, deleted only when nothing encrypted under it is left.
    """

    secret_uuid = models.UUIDField(primary_key=True, default=uuid.uuid4, help_text="also libvirt's secret UUID")
    virtual_machine = models.ForeignKey(VirtualMachine, on_delete=models.PROTECT, related_name="wrapped_secrets")
    purpose = models.CharField(max_length=8, choices=Purpose)
    target = models.CharField(max_length=32, help_text="vda ...; empty for NVRAM and vTPM")
    key = models.ForeignKey(Key, on_delete=models.PROTECT, related_name="wrapped_secrets")
    wrapped = models.BinaryField()
    path = models.CharField(max_length=1000, help_text="of the encrypted file or folder on the host")
    plain_path = models.CharField(max_length=1000, blank=True, help_text="what it was made from")
    plain_format = models.CharField(max_length=16, blank=True, help_text="raw or qcow2: what decryption restores")
    size_bytes = models.BigIntegerField(default=0, help_text="of the content; 0 for vTPM state")
    stage = models.CharField(max_length=16, choices=Stage, default=Stage.ENCRYPTING)
    replaces = models.OneToOneField(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="replaced_by",
        help_text="deep recrypt: the secret under which the part is encrypted until the switch",
    )  # fmt: skip
    job_id = models.UUIDField(null=True, blank=True, help_text="of the job that is changing it")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["purpose", "target"]
        constraints = [
            models.UniqueConstraint(
                fields=["virtual_machine", "purpose", "target"],
                condition=~Q(stage__in=["detached", "replaced"]),
                name="one_secret_per_purpose",
            )
        ]

    @override
    def __str__(self) -> str:
        return f"{self.part} of {self.virtual_machine}"

    @property
    def part(self) -> str:
        """What people call it: vda, NVRAM, vTPM state."""
        return self.target or Purpose(self.purpose).label

    @property
    def shares_image(self) -> bool:
        """Passphrase rotation: another keyslot of the image that the replaced secret opens. No file is ever destroyed
        for such a row. vTPM state has one place, and is always written anew beside it."""
        return self.replaces is not None and self.purpose != Purpose.VTPM and self.path == self.replaces.path

    @property
    def original(self) -> str:
        """What `path` was made from, to be destroyed once that is in use: plain, or under the replaced secret."""
        if self.replaces is None or self.purpose == Purpose.VTPM:
            return self.plain_path
        return self.replaces.path


class Leftover(models.Model):
    """A file on a host in which something of an encrypted VM lies in clear, as last found. See services/leftovers.py.

    One that somebody keeps (`kept_at`) stays listed as long as it is there, and is no alarm.
    """

    class Kind(models.TextChoices):
        ORIGINAL = "original", "Original of an encrypted part"
        PLAIN_COPY = "plain_copy", "Plain copy of a disk"
        BACKING_FILE = "backing_file", "Plain backing file"
        SAVED_STATE = "saved_state", "Saved state with guest memory"
        CORE_DUMP = "core_dump", "Dump of guest memory"
        NVRAM_COPY = "nvram_copy", "Copy of UEFI variables"
        VTPM_STATE = "vtpm_state", "Plain vTPM state"
        HALF_WRITTEN = "half_written", "Half-written copy"
        SAME_SIZE = "same_size", "Image as large as an encrypted disk"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="leftovers")
    path = models.CharField(max_length=1000)
    kind = models.CharField(max_length=16, choices=Kind)
    size_bytes = models.BigIntegerField(default=0)
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of size and first bytes: what was found")
    evidence = models.JSONField(default=list, help_text="lines for people")
    virtual_machine = models.ForeignKey(
        VirtualMachine, null=True, blank=True, on_delete=models.SET_NULL, related_name="leftovers",
        help_text="whose it is; empty: not known",
    )  # fmt: skip
    found_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField(auto_now=True)
    kept_at = models.DateTimeField(null=True, blank=True)
    kept_by = models.CharField(max_length=150, blank=True)
    kept_reason = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["host", "path"], name="leftover_path_on_host")]

    @override
    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """The file's own name, which confirms its destruction."""
        return self.path.rpartition("/")[2]


class Bundle(models.Model):
    """An exported VM in the exchange folder, as a worker last saw it. The folder is the truth, this row a picture of it
    for the web process, which may not reach the folder."""

    class State(models.TextChoices):
        WRITING = "writing", "Being written"
        COMPLETE = "complete", "Complete"
        UNUSABLE = "unusable", "Not usable"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    folder = models.CharField(max_length=200, unique=True, help_text="its name in the exchange folder")
    state = models.CharField(max_length=16, choices=State, default=State.WRITING)
    reason = models.CharField(max_length=500, blank=True, help_text="why it is not usable")
    vm_name = models.CharField(max_length=255, blank=True)
    vm_uuid = models.UUIDField(null=True, blank=True)
    size_bytes = models.BigIntegerField(default=0)
    is_clear = models.BooleanField(default=False, help_text="holds guest data that is not encrypted")
    made_at = models.DateTimeField(null=True, blank=True)
    made_by = models.CharField(max_length=150, blank=True)
    console = models.CharField(max_length=255, blank=True, help_text="where it was exported")
    kms_cluster = models.UUIDField(null=True, blank=True)
    kms_cluster_name = models.CharField(max_length=255, blank=True)
    key_id = models.CharField(max_length=255, blank=True)
    found_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-made_at", "folder"]

    @override
    def __str__(self) -> str:
        return self.folder
