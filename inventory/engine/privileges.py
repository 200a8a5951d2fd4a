"""Privileges, the five roles that hold them, and which privileges an action of a service needs.

Names follow vSphere's where it has one: an administrator's knowledge carries over. The 14 below `Cryptographer` are
those that its "No cryptography administrator" lacks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Privilege(StrEnum):
    ALARM_ACKNOWLEDGE = "Alarm.Acknowledge"
    MODIFY_ROLES = "Authorization.ModifyPermissions"
    CRYPTO_ACCESS = "Cryptographer.Access"
    CRYPTO_ADD_DISK = "Cryptographer.AddDisk"
    CRYPTO_CLONE = "Cryptographer.Clone"
    CRYPTO_DECRYPT = "Cryptographer.Decrypt"
    CRYPTO_ENCRYPT = "Cryptographer.Encrypt"
    CRYPTO_ENCRYPT_NEW = "Cryptographer.EncryptNew"
    CRYPTO_MANAGE_POLICY = "Cryptographer.ManageEncryptionPolicy"
    CRYPTO_MANAGE_SERVERS = "Cryptographer.ManageKeyServers"
    CRYPTO_MANAGE_KEYS = "Cryptographer.ManageKeys"
    CRYPTO_MIGRATE = "Cryptographer.Migrate"
    CRYPTO_READ_SERVERS = "Cryptographer.ReadKeyServersInfo"
    CRYPTO_RECRYPT = "Cryptographer.Recrypt"
    CRYPTO_REGISTER_HOST = "Cryptographer.RegisterHost"
    CRYPTO_REGISTER_VM = "Cryptographer.RegisterVM"
    DATACENTER_CREATE = "Datacenter.Create"
    DATASTORE_BROWSE = "Datastore.Browse"
    DATASTORE_DELETE = "Datastore.DeleteFile"
    CANCEL_TASK = "Global.CancelTask"
    DIAGNOSTICS = "Global.Diagnostics"
    SETTINGS = "Global.Settings"
    HOST_ATTEST = "Host.Config.Attest"
    HOST_CONNECTION = "Host.Config.Connection"
    HOST_ADD = "Host.Inventory.AddHostToCluster"
    CLUSTER_CREATE = "Host.Inventory.CreateCluster"
    PLACE_DELETE = "Host.Inventory.DeleteCluster"
    PLACE_EDIT = "Host.Inventory.EditCluster"
    HOST_REMOVE = "Host.Inventory.RemoveHostFromCluster"
    MIGRATE = "Resource.Migrate"
    QUERY_MIGRATION = "Resource.QueryVMotion"
    POLICY_CHECK = "StorageProfile.Apply"
    VIEW = "System.View"
    TRUST_APPROVE = "TrustedAdmin.ApproveReferences"
    TRUST_MANAGE = "TrustedAdmin.ManageTrustedHosts"
    VM_ADD_EXISTING_DISK = "VirtualMachine.Config.AddExistingDisk"
    VM_ADD_DISK = "VirtualMachine.Config.AddNewDisk"
    VM_REMOVE_DISK = "VirtualMachine.Config.RemoveDisk"
    VM_SETTINGS = "VirtualMachine.Config.Settings"
    VM_CONSOLE = "VirtualMachine.Interact.ConsoleInteract"
    VM_POWER_OFF = "VirtualMachine.Interact.PowerOff"
    VM_POWER_ON = "VirtualMachine.Interact.PowerOn"
    VM_RESET = "VirtualMachine.Interact.Reset"
    VM_SUSPEND = "VirtualMachine.Interact.Suspend"
    VM_CREATE = "VirtualMachine.Inventory.Create"
    VM_REGISTER = "VirtualMachine.Inventory.Register"
    VM_UNREGISTER = "VirtualMachine.Inventory.Unregister"
    VM_CLONE = "VirtualMachine.Provisioning.Clone"
    VM_EXPORT = "VirtualMachine.Provisioning.Export"


P = Privilege
ALL: Final = frozenset(Privilege)
CRYPTOGRAPHIC: Final = frozenset(one for one in Privilege if one.startswith("Cryptographer."))
"""The 14 of VM encryption."""
GRANTING: Final = frozenset({P.MODIFY_ROLES, P.DIAGNOSTICS, P.SETTINGS, P.HOST_ADD, P.TRUST_APPROVE, P.TRUST_MANAGE})
"""What leads to keys by another way: rights for oneself, a host of one's own, trust in a changed host, raw evidence."""


class Role(StrEnum):
    ADMINISTRATOR = "administrator"
    NO_CRYPTOGRAPHY = "no_cryptography_administrator"
    CRYPTOGRAPHY_OPERATOR = "cryptography_operator"
    OPERATOR = "operator"
    AUDITOR = "auditor"


_POWER: Final = frozenset({P.VM_POWER_ON, P.VM_POWER_OFF, P.VM_RESET})
ROLES: Final[Mapping[Role, frozenset[Privilege]]] = {
    Role.ADMINISTRATOR: ALL,
    Role.NO_CRYPTOGRAPHY: ALL - CRYPTOGRAPHIC - GRANTING,
    Role.CRYPTOGRAPHY_OPERATOR: CRYPTOGRAPHIC
    | {
        P.VIEW, P.ALARM_ACKNOWLEDGE, P.CANCEL_TASK, P.HOST_ATTEST, P.MIGRATE, P.QUERY_MIGRATION, P.POLICY_CHECK,
        P.VM_SETTINGS, P.VM_ADD_DISK, P.VM_ADD_EXISTING_DISK, P.VM_REMOVE_DISK, P.VM_CLONE, P.VM_CREATE, P.VM_EXPORT,
        P.VM_REGISTER, P.DATASTORE_BROWSE, P.DATASTORE_DELETE,
    },
    Role.OPERATOR: _POWER | {P.VIEW},
    Role.AUDITOR: frozenset({P.VIEW, P.CRYPTO_READ_SERVERS}),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Right:
    """What an action needs, all of it, on its object; `if_encrypted` besides where the object is an encrypted VM."""

    needs: frozenset[Privilege]
    if_encrypted: frozenset[Privilege] = frozenset()


def _right(*needs: Privilege, if_encrypted: Privilege | None = None) -> Right:
    return Right(frozenset(needs), frozenset() if if_encrypted is None else frozenset({if_encrypted}))


VIEW_ACTION: Final = "view"
# Every action that a service asks about. One that is not in here is nobody's.
RIGHTS: Final[Mapping[str, Right]] = {
    "own_account": _right(),
    VIEW_ACTION: _right(P.VIEW),
    "view_all": _right(P.VIEW),
    "inventory.acknowledge_alarm": _right(P.ALARM_ACKNOWLEDGE),
    "inventory.add_cluster": _right(P.CLUSTER_CREATE),
    "inventory.add_datacenter": _right(P.DATACENTER_CREATE),
    "inventory.add_host": _right(P.HOST_ADD),
    "inventory.assign_role": _right(P.MODIFY_ROLES),
    "inventory.cancel_job": _right(P.CANCEL_TASK),
    "inventory.discard_saved_state": _right(P.VM_SUSPEND),
    # Another URI is another machine: it can do what adding a host can.
    "inventory.edit_host": _right(P.HOST_CONNECTION, P.HOST_ADD),
    "inventory.edit_place": _right(P.PLACE_EDIT),
    "inventory.power_off": _right(P.VM_POWER_OFF),
    "inventory.power_on": _right(P.VM_POWER_ON),
    "inventory.read_console": _right(P.VM_CONSOLE, if_encrypted=P.CRYPTO_ACCESS),
    "inventory.reboot": _right(P.VM_RESET),
    "inventory.refresh_host": _right(P.HOST_CONNECTION),
    "inventory.remove_host": _right(P.HOST_REMOVE),
    "inventory.remove_place": _right(P.PLACE_DELETE),
    "inventory.remove_vm": _right(P.VM_UNREGISTER),
    "inventory.sign_events": _right(P.SETTINGS),
    "inventory.shut_down": _right(P.VM_POWER_OFF),
    "attestation.approve_references": _right(P.TRUST_APPROVE),
    "attestation.attest_host": _right(P.HOST_ATTEST),
    "attestation.download_evidence": _right(P.DIAGNOSTICS),
    "attestation.edit_policy": _right(P.TRUST_MANAGE),
    "attestation.edit_references": _right(P.TRUST_MANAGE),
    "attestation.enrol_host": _right(P.CRYPTO_REGISTER_HOST),
    "attestation.manage_anchors": _right(P.TRUST_MANAGE),
    "encryption.add_disk": _right(P.VM_ADD_DISK, if_encrypted=P.CRYPTO_ADD_DISK),
    "encryption.attach_disk": _right(P.VM_ADD_EXISTING_DISK, if_encrypted=P.CRYPTO_ADD_DISK),
    "encryption.check_compliance": _right(P.POLICY_CHECK),
    "encryption.clone_vm": _right(P.VM_CLONE, if_encrypted=P.CRYPTO_CLONE),
    "encryption.configure_vm": _right(P.VM_SETTINGS),
    "encryption.create_encrypted_vm": _right(P.VM_CREATE, P.CRYPTO_ENCRYPT_NEW),
    "encryption.create_vm": _right(P.VM_CREATE),
    "encryption.decrypt_vm": _right(P.CRYPTO_DECRYPT),
    "encryption.destroy_disk": _right(P.VM_REMOVE_DISK, P.DATASTORE_DELETE),
    "encryption.destroy_leftover": _right(P.DATASTORE_DELETE),
    "encryption.detach_disk": _right(P.VM_REMOVE_DISK),
    "encryption.encrypt_vm": _right(P.CRYPTO_ENCRYPT),
    "encryption.export_inventory": _right(P.VIEW, P.CRYPTO_READ_SERVERS),
    "encryption.export_vm": _right(P.VM_EXPORT, if_encrypted=P.CRYPTO_ACCESS),
    "encryption.find_leftovers": _right(P.DATASTORE_BROWSE),
    "encryption.import_encrypted_vm": _right(P.VM_REGISTER, P.CRYPTO_REGISTER_VM),
    "encryption.import_vm": _right(P.VM_REGISTER),
    "encryption.keep_leftover": _right(P.DATASTORE_DELETE),
    "encryption.manage_bundles": _right(P.DATASTORE_DELETE),
    "encryption.manage_key_servers": _right(P.CRYPTO_MANAGE_SERVERS),
    "encryption.manage_keys": _right(P.CRYPTO_MANAGE_KEYS),
    "encryption.manage_policies": _right(P.CRYPTO_MANAGE_POLICY),
    "encryption.migrate_vm": _right(P.MIGRATE, if_encrypted=P.CRYPTO_MIGRATE),
    "encryption.probe_migration": _right(P.QUERY_MIGRATION),
    "encryption.read_key_servers": _right(P.CRYPTO_READ_SERVERS),
    "encryption.read_vtpm": _right(P.CRYPTO_ACCESS),
    "encryption.recrypt_vm": _right(P.CRYPTO_RECRYPT),
    "encryption.replace_vtpm_certificate": _right(P.VM_SETTINGS, P.CRYPTO_ACCESS),
    "encryption.set_encrypted_vmotion": _right(P.VM_SETTINGS),
    "encryption.test_crypto_modules": _right(P.SETTINGS),
    "encryption.unlock_vm": _right(P.CRYPTO_REGISTER_VM),
    "inventory.change_two_person_rule": _right(P.SETTINGS),
    "console.create_api_token": _right(P.MODIFY_ROLES),
    "console.back_up": _right(P.SETTINGS, P.MODIFY_ROLES),
    "console.manage_syslog": _right(P.SETTINGS),
    "console.remove_second_factor": _right(P.MODIFY_ROLES),
}
