"""Forms of the attestation pages: shape only. What is allowed is decided by the services."""

from collections.abc import Sequence
from typing import Any

from django import forms

from attestation.models import AttestationPolicy, PendingRegistration
from attestation.services.reference_lines import ReferenceLines
from attestation.services.references import Acceptable
from inventory.forms import ClarityForm

_LINES = {"rows": 6, "spellcheck": "false"}


def reason(
    *, required: bool = True, help_text: str = "Kept with the event, for those who ask later"
) -> forms.CharField:
    return forms.CharField(label="Reason", max_length=300, required=required, help_text=help_text)


class ReasonForm(ClarityForm):
    reason = reason()


class EnrolForm(ClarityForm):
    """Its choices are the TPMs that have proven themselves and are no host's."""

    registration = forms.ChoiceField(label="TPM")
    contact_host = forms.CharField(
        label="Agent's address",
        max_length=253,
        required=False,
        help_text="Empty: where the agent says that it listens. An address given here stays when it registers again",
    )
    reason = reason(
        required=False,
        help_text="Needed where no trust anchor vouches for the TPM: how you compared its fingerprint",
    )

    def __init__(self, found: Sequence[PendingRegistration], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["registration"].choices = [  # type: ignore[attr-defined]
            (str(one.pk), f"{one.agent_id}, EK {one.ek_name[4:20]}…, from {one.source_address}") for one in found
        ]


class AcceptTpmForm(EnrolForm):
    reason = reason(help_text="Why the host has another TPM: a new mainboard, for example")


class PolicyForm(ClarityForm):
    require = forms.ChoiceField(
        label="Keys only to attested hosts",
        choices=AttestationPolicy.Require.choices,
        help_text="An untrusted host gets no keys: its encrypted VMs do not start, and none migrates to it",
    )
    freshness_minutes = forms.IntegerField(
        label="Fresh for (minutes)", help_text="So old may a good verdict be when a key is released"
    )
    interval_minutes = forms.IntegerField(label="Attest every (minutes)")
    two_person_references = forms.BooleanField(label="A second administrator approves reference values", required=False)


class TrustBootForm(ClarityForm):
    keeps_others = forms.BooleanField(
        label="Beside what is allowed already", required=False, initial=True,
        help_text="For hosts of several kinds. Without it, what this boot shows is all that is allowed",
    )  # fmt: skip
    with_files = forms.BooleanField(
        label="Files run since boot too (IMA)", required=False,
        help_text="The files in the host's IMA list become the allowlist",
    )  # fmt: skip
    reason = reason(help_text="Why this boot can be trusted, for example: installed today from our image")


class AcceptChangesForm(ClarityForm):
    events = forms.MultipleChoiceField(label="Changes", widget=forms.CheckboxSelectMultiple)
    reason = reason(help_text="For example: kernel update of this week")

    def __init__(self, found: Sequence[Acceptable], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["events"].choices = [(str(one.event), one.message) for one in found]  # type: ignore[attr-defined]
        self.initial.setdefault("events", [str(one.event) for one in found])


class AnchorForm(ClarityForm):
    name = forms.CharField(label="Name", max_length=200, help_text="For example: Infineon TPM 2.0 root")
    certificate = forms.CharField(
        label="Certificate", widget=forms.Textarea(attrs={"rows": 10, "spellcheck": "false"}), max_length=20_000,
        help_text="In PEM. Compare its fingerprint with what the maker publishes",
    )  # fmt: skip


class ReferencesForm(ClarityForm):
    """Reference values as lines; see services/reference_lines.py."""

    secure_boot = forms.BooleanField(label="Secure Boot must be on", required=False)
    look_at_authorities = forms.BooleanField(label="Signers must be known", required=False)
    authorities = forms.CharField(
        label="Signers", required=False, widget=forms.Textarea(attrs=_LINES), strip=False,
        help_text="A line each: SHA-256 of the certificate, then its name",
    )  # fmt: skip
    look_at_components = forms.BooleanField(label="Components must be known", required=False)
    components = forms.CharField(
        label="Components", required=False, widget=forms.Textarea(attrs=_LINES), strip=False,
        help_text="A line each: image, file or driver, the digest as sha256:…, then its name",
    )  # fmt: skip
    pin_configuration = forms.BooleanField(label="GRUB's own files too", required=False)
    look_at_command_lines = forms.BooleanField(label="Command lines must be known", required=False)
    command_lines = forms.CharField(
        label="Command lines", required=False, widget=forms.Textarea(attrs=_LINES), strip=False,
        help_text="A pattern each: * inside a word, ** anything, \\ before a literal one",
    )  # fmt: skip
    dbx_minimum = forms.IntegerField(label="Revoked hashes (dbx), at least", initial=0, min_value=0)
    dbx_required = forms.CharField(
        label="Revoked hashes that must be there", required=False, widget=forms.Textarea(attrs={**_LINES, "rows": 3})
    )
    look_at_files = forms.BooleanField(label="Files run since boot must be approved (IMA)", required=False)
    ima_files = forms.CharField(
        label="Approved files", required=False, widget=forms.Textarea(attrs=_LINES), strip=False,
        help_text="A line each: the digest as sha256:…, then the path",
    )  # fmt: skip
    ima_excluded = forms.CharField(
        label="Paths not looked at", required=False, widget=forms.Textarea(attrs={**_LINES, "rows": 3}),
        help_text="A pattern each: * inside a folder, ** across folders",
    )  # fmt: skip
    tolerate_violations = forms.BooleanField(
        label="Files that changed while open are only a warning", required=False, initial=True
    )
    reason = reason()

    @staticmethod
    def initial_of(lines: ReferenceLines) -> dict[str, Any]:
        return {
            "secure_boot": lines.secure_boot, "look_at_authorities": lines.authorities is not None,
            "authorities": lines.authorities or "", "look_at_components": lines.components is not None,
            "components": lines.components or "", "pin_configuration": lines.pin_configuration,
            "look_at_command_lines": lines.command_lines is not None, "command_lines": lines.command_lines or "",
            "dbx_minimum": lines.dbx_minimum, "dbx_required": lines.dbx_required,
            "look_at_files": lines.ima_files is not None, "ima_files": lines.ima_files or "",
            "ima_excluded": lines.ima_excluded, "tolerate_violations": lines.tolerate_violations,
        }  # fmt: skip

    @staticmethod
    def lines(data: dict[str, Any]) -> ReferenceLines:
        return ReferenceLines(
            secure_boot=data["secure_boot"],
            authorities=data["authorities"] if data["look_at_authorities"] else None,
            components=data["components"] if data["look_at_components"] else None,
            pin_configuration=data["pin_configuration"],
            command_lines=data["command_lines"] if data["look_at_command_lines"] else None,
            dbx_minimum=data["dbx_minimum"],
            dbx_required=data["dbx_required"],
            ima_files=data["ima_files"] if data["look_at_files"] else None,
            ima_excluded=data["ima_excluded"],
            tolerate_violations=data["tolerate_violations"],
        )
