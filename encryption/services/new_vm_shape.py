"""What is asked for when a virtual machine is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

from encryption.services.options import Vmotion, Wish
from inventory.services.definitions import Guest as Guest
from inventory.services.definitions import disk_targets


@dataclass(frozen=True, slots=True)
class NewDisk:
    """`policy_id`: the storage policy that it is made by."""

    size_bytes: int
    policy_id: UUID


@dataclass(frozen=True, slots=True)
class NewVm:
    """What is asked for. `datastore_id` says the host, too. `network`: libvirt's name of it, `iso`: a path on the host;
    "" for none. The rest as in `options.Wish`; a VM that there was not has nothing that could be "as it is"."""

    name: str
    datastore_id: UUID
    disks: tuple[NewDisk, ...]
    policy_id: UUID
    guest: Guest = Guest.LINUX
    is_uefi: bool = True
    vcpus: int = 2
    memory_bytes: int = 4 * 2**30
    network: str = ""
    iso: str = ""
    kms_cluster_id: UUID | None = None
    vtpm: bool = False
    secure_boot: bool = False
    vbs: bool = False
    encrypted_vmotion: Vmotion | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return disk_targets(self.guest, len(self.disks))

    @property
    def wish(self) -> Wish:
        return Wish(
            self.policy_id,
            {target: disk.policy_id for target, disk in zip(self.targets, self.disks, strict=True)},
            self.kms_cluster_id, vtpm=self.vtpm or None, secure_boot=self.secure_boot or None, vbs=self.vbs or None,
            encrypted_vmotion=self.encrypted_vmotion,
        )  # fmt: skip

    def as_params(self) -> dict[str, Any]:
        return {
            "name": self.name, "datastore": str(self.datastore_id), "guest": self.guest.value,
            "is_uefi": self.is_uefi, "vcpus": self.vcpus, "memory": self.memory_bytes, "network": self.network,
            "iso": self.iso, "policy": str(self.policy_id), "vtpm": self.vtpm, "secure_boot": self.secure_boot,
            "vbs": self.vbs, "disks": [{"size": one.size_bytes, "policy": str(one.policy_id)} for one in self.disks],
            "kms_cluster": str(self.kms_cluster_id) if self.kms_cluster_id else None,
            "encrypted_vmotion": self.encrypted_vmotion.value if self.encrypted_vmotion else None,
        }  # fmt: skip

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        kms, vmotion = params["kms_cluster"], params["encrypted_vmotion"]
        return cls(
            name=params["name"], datastore_id=UUID(params["datastore"]), guest=Guest(params["guest"]),
            is_uefi=params["is_uefi"], vcpus=params["vcpus"], memory_bytes=params["memory"],
            network=params["network"], iso=params["iso"], policy_id=UUID(params["policy"]), vtpm=params["vtpm"],
            secure_boot=params["secure_boot"], vbs=params["vbs"],
            disks=tuple(NewDisk(one["size"], UUID(one["policy"])) for one in params["disks"]),
            kms_cluster_id=UUID(kms) if kms else None, encrypted_vmotion=Vmotion(vmotion) if vmotion else None,
        )  # fmt: skip
