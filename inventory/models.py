"""What there is: data centers, clusters, hosts, datastores, virtual machines and their disks; jobs and events.

Models hold fields, constraints and pure properties. Rows of hosts and below mirror what libvirt reports; only
`services/sync.py` writes those facts.
"""

import uuid

from django.contrib.auth.models import Group, User
from django.db import models
from django.db.models import Q
from typing_extensions import override

from inventory.engine.abilities import HostAbilities
from inventory.engine.platform import Platform
from inventory.engine.privileges import Role


class TargetKind(models.TextChoices):
    """What a job or an event is about."""

    DATACENTER = "datacenter", "Data center"
    CLUSTER = "cluster", "Cluster"
    HOST = "host", "Host"
    DATASTORE = "datastore", "Datastore"
    VIRTUAL_MACHINE = "vm", "Virtual machine"
    KMS_CLUSTER = "kms", "Key provider"
    STORAGE_POLICY = "policy", "Storage policy"
    BUNDLE = "bundle", "Exported VM"
    SYSLOG_TARGET = "syslog", "Syslog target"
    CONSOLE = "console", "Console"


class Datacenter(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=80, unique=True)

    class Meta:
        ordering = ["name"]

    @override
    def __str__(self) -> str:
        return self.name


class Cluster(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    datacenter = models.ForeignKey(Datacenter, on_delete=models.PROTECT, related_name="clusters")
    name = models.CharField(max_length=80)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["datacenter", "name"], name="cluster_name_in_datacenter")]

    @override
    def __str__(self) -> str:
        return self.name


class Host(models.Model):
    class State(models.TextChoices):
        CONNECTING = "connecting", "Connecting"
        CONNECTED = "connected", "Connected"
        DISCONNECTED = "disconnected", "Disconnected"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    cluster = models.ForeignKey(Cluster, on_delete=models.PROTECT, related_name="hosts")
    name = models.CharField(max_length=120, unique=True)
    uri = models.CharField(max_length=500, unique=True)
    migration_uri = models.CharField(
        max_length=500, blank=True, help_text="how other hosts reach this one, qemu+tls://...; empty: as uri"
    )
    vtpm_state_path = models.CharField(
        max_length=1000,
        blank=True,
        help_text="where the host keeps swtpm state, a folder per VM; empty: libvirt's system default",
    )
    state = models.CharField(max_length=16, choices=State, default=State.CONNECTING)
    state_reason = models.CharField(max_length=500, blank=True)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    added_at = models.DateTimeField(auto_now_add=True)

    host_uuid = models.UUIDField(null=True, blank=True)
    hostname = models.CharField(max_length=253, blank=True)
    hypervisor = models.CharField(max_length=40, blank=True)
    hypervisor_version = models.CharField(max_length=40, blank=True)
    libvirt_version = models.CharField(max_length=40, blank=True)
    cpu_model = models.CharField(max_length=120, blank=True)
    cpu_count = models.PositiveIntegerField(default=0)
    memory_bytes = models.BigIntegerField(default=0)
    memory_free_bytes = models.BigIntegerField(default=0)
    is_encrypted_connection = models.BooleanField(default=False)
    abilities = models.JSONField(default=dict, blank=True, help_text="see engine/abilities.py; empty: not known")
    abilities_checked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]

    @override
    def __str__(self) -> str:
        return self.name

    @property
    def known_abilities(self) -> HostAbilities:
        return HostAbilities.from_row(self.abilities)


class Datastore(models.Model):
    """One libvirt storage pool on one host."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="datastores")
    name = models.CharField(max_length=255)
    kind = models.CharField(max_length=40)
    path = models.CharField(max_length=1000, blank=True)
    is_active = models.BooleanField(default=False)
    capacity_bytes = models.BigIntegerField(default=0)
    available_bytes = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["host", "name"], name="datastore_name_on_host")]

    @override
    def __str__(self) -> str:
        return self.name


class PowerState(models.TextChoices):
    OFF = "off", "Powered off"
    ON = "on", "Powered on"
    PAUSED = "paused", "Paused"
    CRASHED = "crashed", "Crashed"
    UNKNOWN = "unknown", "Unknown"


class Firmware(models.TextChoices):
    BIOS = "bios", "BIOS"
    UEFI = "uefi", "UEFI"


class VirtualMachine(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="virtual_machines")
    uuid = models.UUIDField(help_text="the domain's UUID in libvirt")
    name = models.CharField(max_length=255, db_index=True)
    is_present = models.BooleanField(default=True, help_text="false once libvirt no longer lists it on its host")
    is_persistent = models.BooleanField(default=True)
    power_state = models.CharField(max_length=16, choices=PowerState, default=PowerState.UNKNOWN, db_index=True)
    firmware = models.CharField(max_length=8, choices=Firmware, default=Firmware.BIOS)
    has_secure_boot = models.BooleanField(default=False)
    machine = models.CharField(max_length=80, blank=True)
    vcpus = models.PositiveIntegerField(default=0)
    memory_bytes = models.BigIntegerField(default=0)
    nvram_path = models.CharField(max_length=1000, blank=True)
    is_nvram_encrypted = models.BooleanField(default=False)
    tpm_model = models.CharField(max_length=40, blank=True, help_text="empty: no TPM")
    tpm_version = models.CharField(max_length=8, blank=True)
    is_tpm_encrypted = models.BooleanField(default=False)
    is_autostarted = models.BooleanField(default=False, help_text="started by its host when that comes up")
    has_managed_save = models.BooleanField(default=False, help_text="suspended to a file, guest memory in it")
    snapshot_count = models.PositiveIntegerField(default=0)
    memory_snapshot_count = models.PositiveIntegerField(default=0, help_text="of those, with guest memory in them")
    dumps_core = models.BooleanField(default=True, help_text="guest memory is part of a core dump of QEMU")
    platform = models.TextField(blank=True, help_text="see engine/platform.py; empty: not known")
    definition_sha256 = models.CharField(max_length=64, blank=True)
    first_seen_at = models.DateTimeField(auto_now_add=True)
    last_changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name", "id"]
        constraints = [models.UniqueConstraint(fields=["host", "uuid"], name="vm_uuid_on_host")]
        indexes = [models.Index(fields=["host", "name"]), models.Index(fields=["uuid"])]

    @override
    def __str__(self) -> str:
        return self.name

    @property
    def is_running(self) -> bool:
        return self.power_state in {PowerState.ON, PowerState.PAUSED}

    @property
    def known_platform(self) -> Platform:
        return Platform.from_text(self.platform)

    @property
    def has_vbs(self) -> bool:
        return self.known_platform.has_vbs(has_secure_boot=self.has_secure_boot)


class VmDefinition(models.Model):
    """The definition of a VM's next start as its host last reported it: libvirt's XML, with secrets by UUID only.

    A row of its own, so that no list loads it. It is that of the VM's row only where `sha256` is the same.
    """

    virtual_machine = models.OneToOneField(
        VirtualMachine, on_delete=models.CASCADE, primary_key=True, related_name="stored_definition"
    )
    sha256 = models.CharField(max_length=64)
    xml = models.TextField(blank=True, help_text="empty: longer than is kept")

    @override
    def __str__(self) -> str:
        return f"definition of {self.virtual_machine}"


class Disk(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    virtual_machine = models.ForeignKey(VirtualMachine, on_delete=models.CASCADE, related_name="disks")
    target = models.CharField(max_length=32, help_text="vda, sdb ...")
    device = models.CharField(max_length=16, default="disk", help_text="disk, cdrom, floppy, lun")
    bus = models.CharField(max_length=16, blank=True)
    format = models.CharField(max_length=16, blank=True, help_text="raw, qcow2 ...: libvirt's driver type")
    source = models.CharField(max_length=1000, blank=True)
    is_read_only = models.BooleanField(default=False)
    is_encrypted = models.BooleanField(default=False)
    capacity_bytes = models.BigIntegerField(default=0)
    allocation_bytes = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["target"]
        constraints = [models.UniqueConstraint(fields=["virtual_machine", "target"], name="disk_target_in_vm")]

    @override
    def __str__(self) -> str:
        return self.target


class JobStatus(models.TextChoices):
    WAITING = "waiting", "Waits for approval"
    PENDING = "pending", "Queued"
    RUNNING = "running", "Running"
    SUCCEEDED = "succeeded", "Completed"
    FAILED = "failed", "Failed"
    ERRORED = "errored", "Internal error"
    CANCELLED = "cancelled", "Cancelled"


LIVE_STATUSES = (JobStatus.PENDING, JobStatus.RUNNING)
# Besides those that wait for a second person: they keep nobody else from the target.
OPEN_STATUSES = (JobStatus.WAITING, *LIVE_STATUSES)


class Job(models.Model):
    """One long operation, as the tasks pane shows it. See `jobs.py` for its life."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=60)
    target_kind = models.CharField(max_length=16, choices=TargetKind)
    target_id = models.UUIDField()
    target_name = models.CharField(max_length=255)
    actor = models.CharField(max_length=150)
    source_address = models.CharField(
        max_length=45, blank=True, help_text="whence it was asked for; empty: from inside"
    )
    params = models.JSONField(default=dict)
    status = models.CharField(max_length=16, choices=JobStatus, default=JobStatus.PENDING)
    step = models.CharField(max_length=200, blank=True)
    done = models.BigIntegerField(default=0)
    total = models.BigIntegerField(default=0)
    error_code = models.CharField(max_length=60, blank=True)
    message = models.CharField(max_length=1000, blank=True)
    checkpoint = models.JSONField(default=dict)
    approval_right = models.CharField(
        max_length=60, blank=True, help_text="what a second person must hold who approves it; empty: needs none"
    )
    approved_by = models.CharField(max_length=150, blank=True)
    cancel_requested = models.BooleanField(default=False)
    claim = models.UUIDField(
        null=True, blank=True, help_text="of the worker that holds it; a lost claim stops that worker"
    )
    attempts = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    changed_at = models.DateTimeField(auto_now=True, db_index=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["target_kind", "target_id"],
                condition=Q(status__in=LIVE_STATUSES),
                name="one_live_job_per_target",
            )
        ]
        indexes = [
            models.Index(fields=["-created_at"]),
            models.Index(fields=["target_kind", "target_id", "-created_at"]),
            models.Index(fields=["status", "heartbeat_at"]),
        ]

    @override
    def __str__(self) -> str:
        return f"{self.kind} {self.target_name}"

    @property
    def is_live(self) -> bool:
        """Whether something is still to come."""
        return self.status in OPEN_STATUSES

    @property
    def percent(self) -> int | None:
        """0..100, or None while the amount of work is not known."""
        return min(100, self.done * 100 // self.total) if self.total > 0 else None


class Severity(models.TextChoices):
    INFO = "info", "Information"
    WARNING = "warning", "Warning"
    ERROR = "error", "Error"


class Outcome(models.TextChoices):
    SUCCESS = "success", "Success"
    FAILURE = "failure", "Failure"
    DENIED = "denied", "Denied"


class Event(models.Model):
    """One line of history; written once, never changed, but for the seal that `services/event_chain.py` adds.

    `id` grows as rows are begun, which under PostgreSQL is not the order in which they become visible; `sequence` is
    the order for all who follow the history. A job is dropped after 90 days; what `job` holds stays: it is sealed too.
    """

    id = models.BigAutoField(primary_key=True)
    time = models.DateTimeField(auto_now_add=True, db_index=True)
    kind = models.CharField(max_length=60)
    severity = models.CharField(max_length=8, choices=Severity, default=Severity.INFO)
    outcome = models.CharField(max_length=8, choices=Outcome, default=Outcome.SUCCESS)
    reason = models.CharField(
        max_length=200, blank=True, help_text="why not: an error's code, or the right that lacked"
    )
    target_kind = models.CharField(max_length=16, choices=TargetKind)
    target_id = models.UUIDField(null=True, blank=True)
    target_name = models.CharField(max_length=255)
    actor = models.CharField(max_length=150)
    source_address = models.CharField(
        max_length=45, blank=True, help_text="whence it was asked for; empty: from inside"
    )
    message = models.CharField(max_length=1000)
    data = models.JSONField(default=dict)
    job = models.ForeignKey(
        Job, null=True, blank=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="events"
    )
    plan_digest = models.CharField(max_length=64, blank=True, help_text="of the plan that was approved")
    sequence = models.BigIntegerField(null=True, blank=True, unique=True, help_text="1, 2, 3 ...; null until sealed")
    digest = models.CharField(max_length=64, blank=True, help_text="see engine/event_chain.py; empty until sealed")

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["target_kind", "target_id", "-id"]),
            models.Index(fields=["kind", "-id"], name="event_kind"),
            models.Index(fields=["actor", "-id"], name="event_actor"),
            models.Index(fields=["source_address", "-id"], name="event_address"),
            models.Index(fields=["id"], condition=Q(sequence__isnull=True), name="event_unsealed"),
            models.Index(fields=["id"], condition=~Q(severity="info"), name="event_not_info"),
            models.Index(fields=["id"], condition=~Q(outcome="success"), name="event_not_success"),
        ]

    @override
    def __str__(self) -> str:
        return self.message


class EventChain(models.Model):
    """The head of the chain of events: one row. See `services/event_chain.py`."""

    sequence = models.BigIntegerField(default=0, help_text="of the last sealed event; 0: none")
    digest = models.CharField(max_length=64, blank=True)
    signed_sequence = models.BigIntegerField(default=0, help_text="up to which a checkpoint vouches")
    signed_digest = models.CharField(max_length=64, blank=True)
    signed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(pk=1), name="one_event_chain")]

    @override
    def __str__(self) -> str:
        return f"event chain, {self.sequence} events"


class AuditKey(models.Model):
    """A key pair of the console for signatures over its history (ECDSA, P-256). Rows stay for good: old signatures
    are checked with them. The newest signs."""

    fingerprint = models.CharField(primary_key=True, max_length=64, help_text="SHA-256 of the public key's DER form")
    public_pem = models.TextField()
    private_sealed = models.BinaryField(help_text="RFC 5649 under the console key")
    made_at = models.DateTimeField(auto_now_add=True)

    @override
    def __str__(self) -> str:
        return self.fingerprint


class Alarm(models.Model):
    """A state that needs somebody, from when it was seen until it is seen to be over. See `alarms.py`.

    At most one of a kind is live for an object; a second sighting refreshes it.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=60, help_text="dotted, as events have it: vm.noncompliant")
    severity = models.CharField(max_length=8, choices=Severity, default=Severity.WARNING)
    target_kind = models.CharField(max_length=16, choices=TargetKind)
    target_id = models.UUIDField()
    target_name = models.CharField(max_length=255)
    message = models.CharField(max_length=1000)
    remedy = models.CharField(max_length=500, blank=True)
    evidence = models.JSONField(default=list, help_text="lines for people: what was seen, where")
    raised_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField(auto_now=True)
    acknowledged_at = models.DateTimeField(null=True, blank=True)
    acknowledged_by = models.CharField(max_length=150, blank=True)
    cleared_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-raised_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "target_kind", "target_id"],
                condition=Q(cleared_at__isnull=True),
                name="one_live_alarm_of_a_kind",
            )
        ]
        indexes = [models.Index(fields=["target_kind", "target_id", "-raised_at"])]

    @override
    def __str__(self) -> str:
        return self.message


class RoleAssignment(models.Model):
    """A role of a user or of a group on a place and all below it; on no place: at the root. See `authorize.py`."""

    class RoleName(models.TextChoices):
        ADMINISTRATOR = Role.ADMINISTRATOR, "Administrator"
        NO_CRYPTOGRAPHY = Role.NO_CRYPTOGRAPHY, "No Cryptography Administrator"
        CRYPTOGRAPHY_OPERATOR = Role.CRYPTOGRAPHY_OPERATOR, "Cryptography Operator"
        OPERATOR = Role.OPERATOR, "Operator"
        AUDITOR = Role.AUDITOR, "Auditor"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, null=True, blank=True, on_delete=models.CASCADE, related_name="roles")
    group = models.ForeignKey(Group, null=True, blank=True, on_delete=models.CASCADE, related_name="roles")
    role = models.CharField(max_length=32, choices=RoleName)
    datacenter = models.ForeignKey(Datacenter, null=True, blank=True, on_delete=models.CASCADE, related_name="roles")
    cluster = models.ForeignKey(Cluster, null=True, blank=True, on_delete=models.CASCADE, related_name="roles")
    assigned_at = models.DateTimeField(auto_now_add=True)
    assigned_by = models.CharField(max_length=150)

    class Meta:
        ordering = ["assigned_at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(user__isnull=False, group__isnull=True) | Q(user__isnull=True, group__isnull=False),
                name="role_of_a_user_or_a_group",
            ),
            models.CheckConstraint(
                condition=Q(datacenter__isnull=True) | Q(cluster__isnull=True), name="role_on_one_place"
            ),
        ]

    @override
    def __str__(self) -> str:
        return f"{self.get_role_display()} of {self.holder} on {self.place or 'everything'}"

    @property
    def holder(self) -> str:
        return self.user.username if self.user is not None else f"group {self.group}"

    @property
    def place(self) -> Datacenter | Cluster | None:
        return self.cluster or self.datacenter


class TwoPersonRule(models.Model):
    """Whether an operation of this sort waits for a second person. See `services/approvals.py`."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    action = models.CharField(max_length=60, unique=True)
    is_on = models.BooleanField(default=False)

    @override
    def __str__(self) -> str:
        return f"two-person approval of {self.action}"
