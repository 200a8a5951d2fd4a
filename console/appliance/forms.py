"""Input of people. Forms check form and length; what a host or certificate may be, services decide and say."""

from django import forms

from console.models import SyslogTarget
from encryption.forms.kms import PEM_ROWS
from encryption.services.certificates import MAX_PEM_CHARACTERS
from inventory.forms import ClarityForm


class SyslogTargetForm(ClarityForm):
    protocol = forms.ChoiceField(
        label="Protocol",
        choices=SyslogTarget.Protocol.choices,
        initial=SyslogTarget.Protocol.TLS,
        help_text="UDP and TCP are not encrypted, and UDP loses messages without a word",
    )
    host = forms.CharField(label="Collector", max_length=253, help_text="DNS name or IP address, as in its certificate")
    port = forms.IntegerField(
        label="Port", min_value=1, max_value=65535, initial=6514, help_text="usual: UDP 514, TCP 601, TLS 6514"
    )
    trusted = forms.CharField(
        label="Trusted certificates (PEM)",
        required=False,
        max_length=MAX_PEM_CHARACTERS,
        help_text="TLS: the CA, or the collector's own certificate; empty: whom the system trusts",
        widget=forms.Textarea(attrs={"rows": PEM_ROWS, "spellcheck": "false", "class": "clr-textarea pem"}),
    )
    logs = forms.BooleanField(label="Also the logs of the console's processes", required=False)
