"""Forms of the encryption pages: shape only. What is allowed is decided by the services."""

from typing import Any
from uuid import UUID

from django import forms

from encryption.services.options import VmOptions, Wish
from inventory.forms import ClarityForm

PEM_ROWS = 12


class VmOptionsForm(ClarityForm):
    """VM Options, encryption part. Its choices come from the VM."""

    policy = forms.ChoiceField(label="Encrypt VM")
    kms_cluster = forms.ChoiceField(label="Key provider", required=False)
    disks = forms.MultipleChoiceField(label="Encrypted disks", required=False, widget=forms.CheckboxSelectMultiple)

    def __init__(self, found: VmOptions, data: Any = None) -> None:
        super().__init__(data, initial={"policy": str(found.policy.pk), "disks": sorted(found.encrypted_disks)})
        self.fields["policy"].choices = [(str(one.pk), one.name) for one in found.policies]  # type: ignore[attr-defined]
        self.fields["kms_cluster"].choices = [  # type: ignore[attr-defined]
            (str(one.pk), f"{one.name}{' (default)' if one.is_default else ''}{' (lab)' if one.is_lab else ''}")
            for one in found.kms_clusters
        ]
        self.fields["disks"].choices = [  # type: ignore[attr-defined]
            (disk.target, f"{disk.target} ({disk.format})") for disk in found.disks if not disk.is_read_only
        ]
        if found.security is not None and found.security.key is not None:
            self.fields["kms_cluster"].disabled = True
            self.initial["kms_cluster"] = str(found.security.key.cluster_id)

    def choices_of_one(self) -> list[forms.BoundField]:
        return [self["policy"], self["kms_cluster"]]

    def wish(self) -> Wish:
        """Of valid input only."""
        chosen = self.cleaned_data["kms_cluster"]
        return Wish(
            policy_id=UUID(self.cleaned_data["policy"]),
            disks=frozenset(self.cleaned_data["disks"]),
            kms_cluster_id=UUID(chosen) if chosen else None,
        )


class KeyProviderForm(ClarityForm):
    name = forms.CharField(label="Name", max_length=80)
    host = forms.CharField(label="Server", max_length=253, help_text="DNS name or IP address, as in its certificate")
    port = forms.IntegerField(label="Port", min_value=1, max_value=65535, initial=5696)


class KeyServerForm(ClarityForm):
    host = forms.CharField(label="Server", max_length=253, help_text="DNS name or IP address, as in its certificate")
    port = forms.IntegerField(label="Port", min_value=1, max_value=65535, initial=5696)


class CertificateForm(ClarityForm):
    certificate = forms.CharField(
        label="Certificate (PEM)",
        max_length=65_536,
        widget=forms.Textarea(attrs={"rows": PEM_ROWS, "spellcheck": "false", "class": "clr-textarea pem"}),
    )
