"""What belongs to the console as a whole: its users' API tokens and second factors, whom they are elsewhere, the log
collectors."""

import uuid
from typing import Final

from django.contrib.auth.models import User
from django.db import models
from django.db.models import Q
from typing_extensions import override


class ApiToken(models.Model):
    """A bearer token of one user for the REST API. Only its digest is kept: the token itself is shown once.

    The token is 256 random bits, so a plain SHA-256 is enough: there is nothing to guess that a slow hash would guard.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=80)
    prefix = models.CharField(max_length=16, help_text="the first characters of the token, to recognise it by")
    privileges = models.JSONField(
        null=True, blank=True, help_text="at most these, of those that its user holds; empty: all that its user holds"
    )
    sha256 = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [models.UniqueConstraint(fields=["user", "name"], name="api_token_name_of_user")]

    @override
    def __str__(self) -> str:
        return self.name


class ExternalIdentity(models.Model):
    """A user who is known elsewhere: by whom, and by what never changes there. A user without one is a local user.

    Only this row leads from a login elsewhere to a user here, never a name.
    """

    class Source(models.TextChoices):
        OIDC = "oidc", "OpenID Connect"
        LDAP = "ldap", "LDAP"

    user = models.OneToOneField(User, on_delete=models.CASCADE, related_name="external_identity")
    source = models.CharField(max_length=4, choices=Source)
    issuer = models.CharField(max_length=500, blank=True, help_text="the OpenID provider; empty for the directory")
    subject = models.CharField(max_length=255, help_text="the ID token's sub, the directory's entryUUID or objectGUID")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "external identities"
        constraints = [models.UniqueConstraint(fields=["source", "issuer", "subject"], name="external_identity_once")]

    @override
    def __str__(self) -> str:
        return f"{self.user} ({self.get_source_display()})"


class SecondFactor(models.Model):
    """What a local user shows besides the password: codes of an authenticator (TOTP), or recovery codes.

    Each code is taken once. Recovery codes are random as tokens are, so their plain digests are kept.
    """

    user = models.OneToOneField(User, on_delete=models.CASCADE, primary_key=True, related_name="second_factor")
    key_sealed = models.BinaryField(help_text="under a key derived from Django's secret key")
    last_step = models.BigIntegerField(help_text="time step of the last code that was taken")
    recovery_digests = models.JSONField(help_text="SHA-256 of the recovery codes that are left")
    failures = models.PositiveIntegerField(default=0, help_text="wrong codes since the last right one")
    failed_at = models.DateTimeField(null=True, blank=True)
    enrolled_at = models.DateTimeField()

    @override
    def __str__(self) -> str:
        return f"second factor of {self.user}"


class SyslogTarget(models.Model):
    """A log collector that gets every event. How far it has got is here; the events are the queue.

    `cursor` is from where the stream goes on after a broken connection, `sent` the last event that was written to it:
    what lies between may have been read or not (`appliance/engine/sent_window.py`).
    """

    class Protocol(models.TextChoices):
        UDP = "udp", "UDP"
        TCP = "tcp", "TCP"
        TLS = "tls", "TLS"

    class State(models.TextChoices):
        UNKNOWN = "unknown", "Not known"
        UP = "up", "Up"
        DOWN = "down", "Down"

    MOST: Final = 3

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slot = models.PositiveSmallIntegerField(unique=True, help_text="1 to 3: there are not more targets than slots")
    host = models.CharField(max_length=253)
    port = models.PositiveIntegerField()
    protocol = models.CharField(max_length=3, choices=Protocol)
    includes_logs = models.BooleanField(default=False, help_text="also the processes' own logs")
    trusted_pem = models.TextField(blank=True, help_text="TLS: whom to trust; empty: the system's certificates")
    client_certificate_pem = models.TextField(blank=True)
    client_key_sealed = models.BinaryField(blank=True, default=b"", help_text="under the console key")
    uploaded_certificate_pem = models.TextField(blank=True, help_text="on its way to a worker, with its key")
    uploaded_key_sealed = models.BinaryField(blank=True, default=b"", help_text="under the workers' transport key")
    cursor = models.BigIntegerField(default=0, help_text="sequence of the last event that is surely there")
    sent = models.BigIntegerField(default=0, help_text="sequence of the last event that was written")
    log_places = models.JSONField(null=True, blank=True, help_text="where each log is read on; null: at its end")
    state = models.CharField(max_length=8, choices=State, default=State.UNKNOWN)
    state_since = models.DateTimeField(auto_now_add=True)
    state_code = models.CharField(max_length=64, blank=True, help_text="of the failure; empty while it is up")
    state_reason = models.CharField(max_length=500, blank=True)
    last_sent_at = models.DateTimeField(null=True, blank=True)
    checked_at = models.DateTimeField(null=True, blank=True, help_text="when the forwarder last said that it works")
    tested_at = models.DateTimeField(null=True, blank=True)
    test_succeeded = models.BooleanField(null=True, blank=True)
    test_result = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["slot"]
        constraints = [
            models.CheckConstraint(condition=Q(slot__gte=1, slot__lte=3), name="three_syslog_targets"),
            models.UniqueConstraint(fields=["host", "port", "protocol"], name="syslog_target_address"),
        ]

    @override
    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}:{self.port}"
