"""What belongs to the console as a whole: the API tokens of its users."""

import uuid

from django.contrib.auth.models import User
from django.db import models
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
