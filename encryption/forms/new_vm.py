"""The form of a new virtual machine: name, place and hardware, then the same VM Options as of one that is there."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Final
from uuid import UUID

from django import forms
from django.http import QueryDict

from encryption.forms import VmOptionsForm
from encryption.services.new_vm import Choices, Chosen, Guest, NewDisk, NewVm

DISKS: Final = 3
GIB: Final = 2**30
MIB: Final = 2**20
GUESTS: Final = [(Guest.LINUX.value, "Linux"), (Guest.WINDOWS.value, "Windows"), (Guest.OTHER.value, "Other")]
FIRMWARES: Final = [("uefi", "UEFI"), ("bios", "BIOS")]
# What a VM is made with where nothing is said.
_UNSET: Final = {"vtpm": "keep", "secure_boot": "off", "vbs": "off"}
_HARDWARE: Final = ("name", "guest", "datastore", "vcpus", "memory_gib", "firmware", "network", "iso")


class NewVmForm(VmOptionsForm):
    """Of `DISKS` hard disks; one without a size is not made."""

    name = forms.CharField(label="Name", max_length=200)
    guest = forms.ChoiceField(
        label="Guest", choices=GUESTS, help_text="Windows and others get SATA disks, which their installers know"
    )
    datastore = forms.ChoiceField(label="Host and datastore")
    vcpus = forms.IntegerField(label="CPUs", min_value=1, max_value=512, initial=2)
    memory_gib = forms.DecimalField(
        label="Memory (GiB)", min_value=Decimal("0.0625"), max_digits=9, decimal_places=4, initial=4
    )
    firmware = forms.ChoiceField(label="Firmware", choices=FIRMWARES, help_text="vTPM, Secure Boot and VBS need UEFI")
    network = forms.CharField(
        label="Network", max_length=64, required=False, help_text="a network of the host's libvirt, as default"
    )
    iso = forms.CharField(
        label="Installation image", max_length=1000, required=False,
        help_text="whole path of an ISO image (.iso) on a datastore of the host",
    )  # fmt: skip

    def __init__(self, found: Choices, data: QueryDict | None = None, *, follows: bool = False) -> None:
        """`follows`: what the firmware and the host that are chosen by now do not allow is off, as its control shows.
        Without that it is read as it was sent, and refused."""
        if data is not None and follows:
            data = data.copy()
            for name, value in _UNSET.items():
                if found.options.obstacles.get(name) or name not in data:  # browsers do not send what is disabled
                    data[name] = value
        super().__init__(found.options, data)
        self.unusable = " ".join(
            f"{name}:{one.code}" for name, reasons in found.options.obstacles.items() for one in reasons
        )
        self.fields["datastore"].choices = list(_by_host(found))  # type: ignore[attr-defined]
        for target in self.targets:
            self.fields[f"disk-{target}"].label = f"Policy of disk {target}"
            field = forms.DecimalField(
                label=f"Size of disk {target} (GiB)", min_value=Decimal("0.001"), max_digits=9, decimal_places=3,
                required=target == self.targets[0], initial=20 if target == self.targets[0] else None,
            )  # fmt: skip
            field.widget.attrs["class"] = "clr-input"
            self.fields[f"size-{target}"] = field
        self.fields["vtpm"].widget.choices = self.fields["vtpm"].choices = [  # type: ignore[attr-defined]
            ("keep", "None"),
            ("add", "TPM 2.0"),
        ]

    def choices_of_hard_disks(self) -> list[tuple[forms.BoundField, forms.BoundField]]:
        return [(self[f"size-{target}"], self[f"disk-{target}"]) for target in self.targets]

    def hardware(self) -> list[forms.BoundField]:
        return [self[name] for name in _HARDWARE]

    def wanted(self) -> NewVm:
        """Of valid input only."""
        sent, wish = self.cleaned_data, self.wish()
        disks = [
            NewDisk(int(sent[f"size-{target}"] * GIB) // MIB * MIB or MIB, wish.disks[target])
            for target in self.targets
            if sent[f"size-{target}"]
        ]
        return NewVm(
            name=sent["name"],
            datastore_id=UUID(sent["datastore"]),
            disks=tuple(disks),
            policy_id=wish.policy_id,
            guest=Guest(sent["guest"]),
            is_uefi=sent["firmware"] == "uefi",
            vcpus=sent["vcpus"],
            memory_bytes=int(sent["memory_gib"] * GIB) // MIB * MIB,
            network=sent["network"],
            iso=sent["iso"],
            kms_cluster_id=wish.kms_cluster_id,
            vtpm=bool(wish.vtpm),
            secure_boot=bool(wish.secure_boot),
            vbs=bool(wish.vbs),
            encrypted_vmotion=wish.encrypted_vmotion,
        )


def chosen(data: QueryDict) -> Chosen:
    """Of input that need not be whole."""
    return Chosen(_id(data, "datastore"), data.get("firmware") != "bios", _id(data, "kms_cluster"))


def _id(data: QueryDict, name: str) -> UUID | None:
    try:
        return UUID(data.get(name) or "")
    except ValueError:
        return None


def _by_host(found: Choices) -> Iterable[tuple[str, list[tuple[str, str]]]]:
    hosts: dict[str, list[tuple[str, str]]] = {}
    for store in found.datastores:
        label = f"{store.host.name}: {store.name} ({store.available_bytes / GIB:.1f} GiB free)"
        hosts.setdefault(store.host.name, []).append((str(store.pk), label))
    return hosts.items()
