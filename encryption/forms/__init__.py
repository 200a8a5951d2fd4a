"""Forms of the encryption pages: shape only. What is allowed is decided by the services."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from django import forms

from encryption.models import Bundle, EncryptedVmotion, StoragePolicy
from encryption.services.disks import VmDisks
from encryption.services.migration import TargetChoice
from encryption.services.options import Finding, VmOptions, Vmotion, Wish
from encryption.services.options_many import ManyWish
from encryption.services.recrypt_ways import Recryptable, Way
from inventory.forms import ClarityForm
from inventory.models import Datastore, VirtualMachine

FOR_VTPM: Final = "Encrypted because of the vTPM"
ON_OFF: Final = [("on", "On"), ("off", "Off")]
HARDWARE_HELP: Final = {
    "vtpm": "Its state is encrypted from the first byte, and so is the VM home; disks stay as they are",
    "secure_boot": "UEFI starts signed boot loaders only",
    "vbs": "Nested virtualization, virtual IOMMU, Secure Boot and Hyper-V features; the rest is done in the guest",
    "encrypted_vmotion": "Whether migrations of this VM travel under TLS; an encrypted VM's always do",
}
_TPM: Final = {"": None, "add": True, "remove": False}
_ON: Final = {"": None, "on": True, "off": False}


class FullVerificationField(forms.BooleanField):
    """How copies are compared with their originals, which are then destroyed."""

    def __init__(self) -> None:
        super().__init__(
            label="Compare every byte",
            required=False,
            help_text="Of each copy made while the VM is off; otherwise samples. Takes about as long as the copy",
        )


class OptionField(forms.ChoiceField):
    """`reasons`: why it cannot be used now, each with what would change that."""

    reasons: Sequence[Finding] = ()


class VmOptionsForm(ClarityForm):
    """VM Options, encryption part. Its choices come from the VM; a field `disk-vda` holds the policy of vda."""

    policy = forms.ChoiceField(label="VM home", help_text="Firmware variables and vTPM state. It decides about the VM.")
    kms_cluster = forms.ChoiceField(label="Key provider", required=False)
    plan_digest = forms.CharField(required=False, max_length=64)
    confirm = forms.CharField(label="Name of the VM", required=False, max_length=255)
    full_verification = FullVerificationField()

    def __init__(self, found: VmOptions, data: Any = None) -> None:
        super().__init__(data, initial={"policy": str(found.policy.pk)})
        self.targets = [disk.target for disk in found.disks if not disk.is_read_only]
        self.fields["policy"].choices = _choices(found.home_policies)  # type: ignore[attr-defined]
        self.fields["kms_cluster"].choices = [  # type: ignore[attr-defined]
            (str(one.pk), f"{one.name}{' (default)' if one.is_default else ''}{' (lab)' if one.is_lab else ''}")
            for one in found.kms_clusters
        ]
        for disk in found.disks:
            if disk.is_read_only:
                continue
            field = forms.ChoiceField(label=f"{disk.target} ({disk.format})", choices=_choices(found.policies))
            field.widget.attrs["class"] = "clr-select"
            self.fields[f"disk-{disk.target}"] = field
            self.initial[f"disk-{disk.target}"] = str(found.policy_of_disk(disk).pk)
        if found.security is not None and found.security.key is not None:
            self.fields["kms_cluster"].disabled = True
            self.initial["kms_cluster"] = str(found.security.key.cluster_id)

        self._add_hardware(found)

    def _add_hardware(self, found: VmOptions) -> None:
        """A control that cannot be used now is shown with the reasons; it is still read, so that what is sent all the
        same is refused with the same words."""
        vm, current = found.vm, found.current
        tpm = [("keep", f"TPM {vm.tpm_version or '2.0'}"), ("remove", "None: remove it")]
        choices = {
            "vtpm": ("Virtual TPM", tpm if current.has_tpm else [("keep", "None"), ("add", "Add a TPM 2.0")], "keep"),
            "secure_boot": ("Secure Boot", ON_OFF, "on" if current.has_secure_boot else "off"),
            "vbs": ("Virtualization-based security", ON_OFF, "on" if current.hardware.has_vbs else "off"),
            "encrypted_vmotion": ("Encrypted vMotion", EncryptedVmotion.choices, current.encrypted_vmotion.value),
        }
        for name, (label, offered, now) in choices.items():
            field = OptionField(label=label, choices=offered, required=False, help_text=HARDWARE_HELP[name])
            field.reasons = found.obstacles.get(name, ())
            attrs = {"class": "clr-select", "aria-describedby": f"id_{name}_helptext"}
            if field.reasons:
                attrs |= {"disabled": "", "aria-describedby": f"id_{name}_helptext id_{name}_reasons"}
            field.widget.attrs |= attrs
            self.fields[name], self.initial[name] = field, now

    def choices_of_hardware(self) -> list[forms.BoundField]:
        return [self[name] for name in HARDWARE_HELP]

    def _changed(self, name: str) -> str:
        """The choice, where it is another one than now; a control that was disabled or left out changes nothing."""
        chosen = str(self.cleaned_data.get(name) or "")
        return chosen if chosen != self.initial[name] else ""

    def choices_of_home(self) -> list[forms.BoundField]:
        return [self["policy"], self["kms_cluster"]]

    def choices_of_disks(self) -> list[forms.BoundField]:
        return [self[f"disk-{target}"] for target in self.targets]

    def wish(self) -> Wish:
        """Of valid input only."""
        chosen, vmotion = self.cleaned_data["kms_cluster"], self._changed("encrypted_vmotion")
        return Wish(
            policy_id=UUID(self.cleaned_data["policy"]),
            disks={target: UUID(self.cleaned_data[f"disk-{target}"]) for target in self.targets},
            kms_cluster_id=UUID(chosen) if chosen else None,
            vtpm=_TPM[self._changed("vtpm")],
            secure_boot=_ON[self._changed("secure_boot")],
            vbs=_ON[self._changed("vbs")],
            encrypted_vmotion=Vmotion(vmotion) if vmotion else None,
        )


def _choices(policies: Sequence[StoragePolicy]) -> list[tuple[str, str]]:
    return [(str(one.pk), FOR_VTPM if one.is_for_vtpm else one.name) for one in policies]


AS_IT_IS: Final = ("", "As it is")


class ManyOptionsForm(ClarityForm):
    """VM Options of many VMs: what is left at "as it is" stays as it is for each."""

    policy = forms.ChoiceField(label="VM home", required=False)
    disks = forms.ChoiceField(label="Hard disks", required=False, help_text="For every hard disk of each VM")
    vtpm = forms.ChoiceField(label="Virtual TPM", required=False, choices=[AS_IT_IS, ("add", "Add a TPM 2.0")])
    secure_boot = forms.ChoiceField(label="Secure Boot", required=False, choices=[AS_IT_IS, *ON_OFF])
    vbs = forms.ChoiceField(label="Virtualization-based security", required=False, choices=[AS_IT_IS, *ON_OFF])
    encrypted_vmotion = forms.ChoiceField(
        label="Encrypted vMotion", required=False, choices=[AS_IT_IS, *EncryptedVmotion.choices]
    )

    def __init__(self, data: Any = None) -> None:
        super().__init__(data)
        found = list(StoragePolicy.objects.all())
        home = [policy for policy in found if policy.encrypts or policy.is_builtin]
        self.fields["policy"].choices = [AS_IT_IS, *_choices(home)]  # type: ignore[attr-defined]
        self.fields["disks"].choices = [AS_IT_IS, *_choices(found)]  # type: ignore[attr-defined]

    def wish(self) -> ManyWish:
        """Of valid input only."""
        chosen = self.cleaned_data
        return ManyWish(
            policy_id=UUID(chosen["policy"]) if chosen["policy"] else None,
            disks_policy_id=UUID(chosen["disks"]) if chosen["disks"] else None,
            add_vtpm=chosen["vtpm"] == "add",
            secure_boot=_ON[chosen["secure_boot"]],
            vbs=_ON[chosen["vbs"]],
            encrypted_vmotion=Vmotion(chosen["encrypted_vmotion"]) if chosen["encrypted_vmotion"] else None,
        )


class StoragePolicyForm(ClarityForm):
    name = forms.CharField(label="Name", max_length=80)
    description = forms.CharField(label="Description", max_length=300, required=False)
    encrypts = forms.TypedChoiceField(
        label="Encryption",
        choices=[("yes", "Encrypt with a key of the key provider"), ("no", "Do not encrypt")],
        coerce=lambda value: value == "yes",
        help_text="A policy that does not encrypt is for single disks of an encrypted VM",
    )
    max_key_age_days = forms.IntegerField(
        label="Greatest key age in days",
        required=False,
        min_value=1,
        max_value=3650,
        help_text="VMs whose key is older get a new one by themselves; empty: never",
    )


class PolicyNameForm(ClarityForm):
    name = forms.CharField(label="Name", max_length=80)


WAYS: Final = {
    Way.KEY: (
        "New key encryption key",
        "The data keys are wrapped under a new key of the key provider. Data keys and data stay. The VM may run.",
    ),
    Way.PASSPHRASES: (
        "New passphrases",
        "Each LUKS image gets a new passphrase; volume keys and data stay. The VM must be powered off.",
    ),
    Way.VOLUME_KEYS: (
        "New volume keys",
        "Each chosen part is copied under a new volume key, and the VM gets a new key encryption key as well. Disks "
        "can be copied while it runs; the copies need as much free space as the disks have.",
    ),
}


class RecryptForm(ClarityForm):
    """Recrypt: which of the three ways, and for new volume keys which parts of the VM."""

    way = forms.ChoiceField(
        label="Make", choices=[(way.value, label) for way, (label, _) in WAYS.items()], widget=forms.RadioSelect
    )
    parts = forms.MultipleChoiceField(
        label="Parts", required=False, widget=forms.CheckboxSelectMultiple(attrs={"class": "clr-checkbox"})
    )
    full_verification = FullVerificationField()

    def __init__(self, found: Recryptable, data: Any = None, initial: Any = None) -> None:
        super().__init__(data, initial={"way": Way.KEY.value, "parts": sorted(found.suggested)})
        self.fields["parts"].choices = [  # type: ignore[attr-defined]
            (name, f"{label}, only while the VM is off" if found.is_running and name in found.home else label)
            for name, label in found.parts.items()
        ]

    def ways(self) -> list[tuple[Any, str]]:
        """Each choice with what it does."""
        return [(choice, WAYS[Way(choice.data["value"])][1]) for choice in self["way"]]


class DestroyLeftoverForm(ClarityForm):
    confirm = forms.CharField(label="File name", max_length=255, help_text="type the file's name, without its folder")


class KeepLeftoverForm(ClarityForm):
    reason = forms.CharField(label="Reason", max_length=300)


CLONE_KEYS = [("new", "a new key"), ("same", "the key of the original")]
CLONE_TPMS = [("copy", "copy: the same TPM, with its keys"), ("replace", "replace: a new TPM with another identity")]
IMPORT_IDENTITIES = [
    ("move", "the same VM: UUID and MAC addresses as they are"),
    ("copy", "a new one: other UUID and MAC addresses, the same TPM"),
]


class CloneForm(ClarityForm):
    """Only the choices that the VM has."""

    name = forms.CharField(label="Name", max_length=200)
    key = forms.ChoiceField(
        label="Key", choices=CLONE_KEYS, help_text="the KEK at the key provider, under which its keys lie"
    )
    vtpm = forms.ChoiceField(label="Virtual TPM", choices=CLONE_TPMS)

    def __init__(self, *args: Any, vm: VirtualMachine, is_protected: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not is_protected:
            del self.fields["key"]
        if not vm.tpm_model:
            del self.fields["vtpm"]


class ExportInClearForm(ClarityForm):
    in_clear = forms.BooleanField(label="Export in clear", required=False)


class ImportForm(ClarityForm):
    bundle = forms.ChoiceField(label="Exported VM")
    datastore = forms.ChoiceField(label="Datastore")
    name = forms.CharField(label="Name", max_length=200)
    identity = forms.ChoiceField(label="Identity", choices=IMPORT_IDENTITIES)

    def __init__(self, *args: Any, bundles: Sequence[Bundle], datastores: Sequence[Datastore], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["bundle"].choices = [  # type: ignore[attr-defined]
            (str(one.pk), f"{one.folder} ({one.vm_name}{', in clear' if one.is_clear else ''})") for one in bundles
        ]
        self.fields["datastore"].choices = [(str(one.pk), f"{one.name}: {one.path}") for one in datastores]  # type: ignore[attr-defined]


class AddDiskForm(ClarityForm):
    """`found`: VmDisks."""

    size_gib = forms.DecimalField(label="Size (GiB)", min_value=Decimal("0.001"), max_digits=9, decimal_places=3)
    datastore = forms.ChoiceField(label="Datastore")
    image_format = forms.ChoiceField(
        label="Format", choices=[("raw", "raw"), ("qcow2", "qcow2 (grows with its content)")]
    )
    policy = forms.ChoiceField(label="Storage policy")

    def __init__(self, *args: Any, found: VmDisks, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["datastore"].choices = [(str(one.pk), f"{one.name} ({one.path})") for one in found.datastores]  # type: ignore[attr-defined]
        self.fields["policy"].choices = policy_choices(found)  # type: ignore[attr-defined]


class AttachDiskForm(ClarityForm):
    path = forms.CharField(
        label="Image", max_length=1000, help_text="its whole path on the host, below the folder of a datastore"
    )
    policy = forms.ChoiceField(label="Storage policy")

    def __init__(self, *args: Any, found: VmDisks, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["policy"].choices = policy_choices(found)  # type: ignore[attr-defined]


def policy_choices(found: VmDisks) -> list[tuple[str, str]]:
    """The plain ones first for a plain VM, the encrypting ones for an encrypted one."""
    listed = sorted(found.policies, key=lambda one: one.encrypts is not found.is_encrypted)
    return [(str(one.pk), one.name) for one in listed]


AUTO, STAY = "auto", "stay"


class MigrateForm(ClarityForm):
    """`choices`: the hosts of `migration_targets`. A datastore of another host than the target is refused later."""

    target = forms.ChoiceField(label="Target host", widget=forms.RadioSelect)
    datastore = forms.ChoiceField(
        label="Datastore",
        help_text="where its disks go on the target; what both hosts see may stay where it is",
    )

    def __init__(self, *args: Any, choices: Sequence[TargetChoice], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["target"].choices = [(str(one.host.pk), one.host.name) for one in choices]  # type: ignore[attr-defined]
        stores = [
            (one.host.name, [(str(store.pk), f"{one.host.name}: {store.name}") for store in one.datastores])
            for one in choices
            if one.datastores
        ]
        self.fields["datastore"].choices = [  # type: ignore[attr-defined]
            (AUTO, "Chosen for the target, where its storage is not shared"),
            (STAY, "None: the files stay on shared storage"),
            *stores,
        ]
        self.rows = list(zip(self["target"], choices, strict=True))


class EncryptedVmotionForm(ClarityForm):
    mode = forms.ChoiceField(label="Encrypted vMotion", choices=EncryptedVmotion.choices)
