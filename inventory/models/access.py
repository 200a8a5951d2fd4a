"""Who holds which role where."""

import uuid

from django.contrib.auth.models import Group, User
from django.db import models
from django.db.models import Q
from typing_extensions import override

from inventory.engine.privileges import Role
from inventory.models.places import Cluster, Datacenter


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
