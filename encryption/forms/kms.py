"""Forms of key providers, their servers, certificates and keys."""

from collections.abc import Sequence
from typing import Any, Final

from django import forms
from typing_extensions import override

from encryption.services.adoption import ForeignProvider
from inventory.forms import ClarityForm

PEM_ROWS: Final = 12


class KeyProviderForm(ClarityForm):
    name = forms.CharField(label="Name", max_length=80)
    host = forms.CharField(label="Server", max_length=253, help_text="DNS name or IP address, as in its certificate")
    port = forms.IntegerField(label="Port", min_value=1, max_value=65535, initial=5696)

    identity = forms.ChoiceField(
        label="Identity",
        required=False,
        help_text="by which the metadata of VMs names it; of a rebuilt console, the one that its VMs carry",
    )

    def __init__(self, *args: Any, foreign: Sequence[ForeignProvider] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choices = [("", "new"), *((str(one.identity), same_as(one)) for one in foreign)]
        self.fields["identity"].choices = choices  # type: ignore[attr-defined]


def same_as(one: ForeignProvider) -> str:
    return f"same as in VMs: {one.name}, {one.identity} ({one.vms} locked VM{'s' if one.vms != 1 else ''})"


class AdoptKeysForm(ClarityForm):
    identity = forms.ChoiceField(label="Holds the keys of")

    def __init__(self, *args: Any, foreign: Sequence[ForeignProvider], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["identity"].choices = [(str(one.identity), same_as(one)) for one in foreign]  # type: ignore[attr-defined]


class KeyServerForm(ClarityForm):
    host = forms.CharField(label="Server", max_length=253, help_text="DNS name or IP address, as in its certificate")
    port = forms.IntegerField(label="Port", min_value=1, max_value=65535, initial=5696)


class CertificateForm(ClarityForm):
    certificate = forms.CharField(
        label="Certificate (PEM)",
        max_length=65_536,
        widget=forms.Textarea(attrs={"rows": PEM_ROWS, "spellcheck": "false", "class": "clr-textarea pem"}),
    )


class AcceptCertificateForm(ClarityForm):
    """`fingerprint` goes along, so that what is trusted is what was shown."""

    fingerprint = forms.CharField(max_length=100, widget=forms.HiddenInput)
    pin = forms.ChoiceField(label="Trust")

    def __init__(self, *args: Any, with_issuer: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choices = [("certificate", "this certificate alone")]
        if with_issuer:
            choices.append(("issuer", "the CA that the server sent along"))
        self.fields["pin"].choices = choices  # type: ignore[attr-defined]


class SecretText(forms.Textarea):
    """Input that is never put into a page again, not even beside an error."""

    @override
    def format_value(self, value: Any) -> str:
        return ""


class ClientKeyForm(CertificateForm):
    private_key = forms.CharField(
        label="Private key (PEM)",
        max_length=65_536,
        help_text="not encrypted; it is not shown again",
        widget=SecretText(
            attrs={"rows": PEM_ROWS, "spellcheck": "false", "autocomplete": "off", "class": "clr-textarea pem"}
        ),
    )


class AdoptKeyForm(ClarityForm):
    wanted = forms.CharField(label="Key ID or name", max_length=255, help_text="as the KMS shows it")


REASON_LABELS: Final = {
    "cessation_of_operation": "No longer needed",
    "superseded": "Replaced by another key",
    "key_compromise": "Compromised",
    "unspecified": "Not specified",
}


class RevokeKeyForm(ClarityForm):
    reason = forms.ChoiceField(label="Reason", choices=list(REASON_LABELS.items()))


class DestroyKeyForm(ClarityForm):
    confirm = forms.CharField(label="Key ID", max_length=255, help_text="type the key's ID to destroy it")
