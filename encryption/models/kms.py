"""Key providers: clusters of key servers, how they are trusted, and the console's identity toward them."""

import uuid

from django.db import models
from django.db.models import Q
from typing_extensions import override


class KmsClusterManager(models.Manager["KmsCluster"]):
    def hold(self, pk: uuid.UUID) -> "KmsCluster | None":
        """The row, held until the transaction ends; None where it is gone.

        Whoever changes several of a key provider's rows (its servers, alarms, itself) begins with this: in orders of
        their own two would wait for each other, and the database would end one of them.
        """
        return self.select_for_update(no_key=True).filter(pk=pk).first()


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

    objects = KmsClusterManager()

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
