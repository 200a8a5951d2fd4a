"""Input of people. Forms check form and length; what a name or URI may be, services decide and say."""

from typing import Any
from uuid import UUID

from django import forms

from inventory.authorize import Role
from inventory.models import Cluster, Datacenter, Firmware, Host, Outcome, PowerState, RoleAssignment, Severity
from inventory.services.event_history import EventFilter


class ClarityForm(forms.Form):
    """Marks each control with Clarity's class, and with what a screen reader should read beside it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            widget = field.widget
            if isinstance(widget, forms.CheckboxInput | forms.RadioSelect):
                continue
            select, area = isinstance(widget, forms.Select), isinstance(widget, forms.Textarea)
            widget.attrs.setdefault("class", "clr-select" if select else "clr-textarea" if area else "clr-input")


class ConfirmForm(ClarityForm):
    """No input: the question itself."""


class ConfirmNameForm(ClarityForm):
    """For what cannot be undone."""

    confirm = forms.CharField(label="Name", max_length=255, help_text="type the name of the virtual machine")


class DatacenterForm(ClarityForm):
    name = forms.CharField(label="Name", max_length=Datacenter._meta.get_field("name").max_length)


class ClusterForm(ClarityForm):
    name = forms.CharField(label="Name", max_length=Cluster._meta.get_field("name").max_length)


class HostForm(ClarityForm):
    name = forms.CharField(
        label="Name",
        max_length=Host._meta.get_field("name").max_length,
        help_text="As it appears in the inventory, for example kvm01.example.org",
    )
    uri = forms.CharField(
        label="libvirt URI",
        max_length=Host._meta.get_field("uri").max_length,
        help_text="How this console reaches the host; see the allowed forms below",
    )
    migration_uri = forms.CharField(
        label="Migration URI",
        required=False,
        max_length=Host._meta.get_field("migration_uri").max_length,
        help_text="How other hosts reach it, qemu+tls://…; empty: the same",
    )
    vtpm_state_path = forms.CharField(
        label="vTPM state folder",
        required=False,
        max_length=Host._meta.get_field("vtpm_state_path").max_length,
        help_text="Where the host keeps virtual TPM state; empty: libvirt's system default",
    )


class VmFilterForm(forms.Form):
    """The filters above a VM list. Anything that is no choice counts as no filter."""

    q = forms.CharField(required=False, max_length=200, strip=True)
    power = forms.ChoiceField(required=False, choices=[("", "Any power state"), *PowerState.choices])
    firmware = forms.ChoiceField(required=False, choices=[("", "Any firmware"), *Firmware.choices])
    encrypted = forms.ChoiceField(
        required=False, choices=[("", "Encrypted or not"), ("yes", "Encrypted"), ("no", "Not encrypted")]
    )

    def values(self) -> dict[str, str]:
        """Only the choices that are valid, by field; the rest empty."""
        self.is_valid()
        return {name: str(self.cleaned_data.get(name) or "") for name in self.fields}


class EventFilterForm(ClarityForm):
    """The filters above the history. Times are UTC."""

    since = forms.DateTimeField(
        label="From", required=False, widget=forms.DateTimeInput(attrs={"type": "datetime-local"})
    )
    until = forms.DateTimeField(
        label="Before", required=False, widget=forms.DateTimeInput(attrs={"type": "datetime-local"})
    )
    kind = forms.CharField(label="Type", required=False, max_length=60)
    severity = forms.ChoiceField(label="Severity", required=False, choices=[("", "Any severity"), *Severity.choices])
    outcome = forms.ChoiceField(label="Outcome", required=False, choices=[("", "Any outcome"), *Outcome.choices])
    actor = forms.CharField(label="Initiator", required=False, max_length=150)
    address = forms.GenericIPAddressField(label="Address", required=False, unpack_ipv4=True)
    target = forms.CharField(label="Object", required=False, max_length=255)
    job = forms.UUIDField(label="Task", required=False)

    def given(self) -> dict[str, str]:
        """What the query says, for links to other pages of the same list."""
        return {name: self.data[name] for name in self.fields if self.data.get(name)}

    def wanted(self) -> EventFilter:
        """`target` is a name, or an object's UUID. Only for a valid form."""
        found = self.cleaned_data
        name, target_id = found["target"], _uuid(found["target"])
        return EventFilter(
            since=found["since"],
            until=found["until"],
            kind=found["kind"],
            severity=Severity(found["severity"]) if found["severity"] else None,
            outcome=Outcome(found["outcome"]) if found["outcome"] else None,
            actor=found["actor"],
            source_address=found["address"] or "",
            target_id=target_id,
            target_name="" if target_id else name,
            job_id=found["job"],
        )


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


class RoleForm(ClarityForm):
    """`users` and `groups`: whom there is to choose."""

    user = forms.ChoiceField(label="User", required=False)
    group = forms.ChoiceField(label="Group", required=False, help_text="instead of a user")
    role = forms.ChoiceField(label="Role", choices=RoleAssignment.RoleName.choices, initial=Role.AUDITOR)

    def __init__(self, *args: Any, users: list[str], groups: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, found in (("user", users), ("group", groups)):
            field = self.fields[name]
            if isinstance(field, forms.ChoiceField):
                field.choices = [("", "None"), *((one, one) for one in found)]
