"""Wrapped data keys, and how far the part that each opens has come."""

import uuid

from django.db import models
from django.db.models import Q
from typing_extensions import override

from encryption.models.keys import Key
from inventory.models import VirtualMachine


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
