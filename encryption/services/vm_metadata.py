"""What a protected VM carries in its own definition: its wrapped keys, mirrored from the database."""

from collections.abc import Iterable
from typing import Final

from encryption.engine import metadata
from encryption.engine.metadata import NAMESPACE, ProtectedVm, WrappedKey
from encryption.models import Key, Purpose, StoragePolicy, WrappedSecret
from inventory.errors import Conflict
from inventory.models import VirtualMachine

__all__ = ["NAMESPACE", "element", "protected_vm"]

_PURPOSES: Final[dict[Purpose, metadata.Purpose]] = {
    Purpose.DISK: "disk",
    Purpose.NVRAM: "nvram",
    Purpose.VTPM: "vtpm",
}


def element(vm: VirtualMachine, policy: StoragePolicy, key: Key, rows: Iterable[WrappedSecret]) -> str:
    """Bartizan's element as XML text, for `definitions.set_metadata`. Raises Conflict `metadata_unfit`."""
    try:
        return metadata.to_xml(protected_vm(policy, key, rows))
    except metadata.BadMetadata as exc:
        raise Conflict(
            "metadata_unfit", f"{vm}: {exc}", hint="rename the key provider, the policy or the disk that is meant"
        ) from exc


def protected_vm(policy: StoragePolicy, key: Key, rows: Iterable[WrappedSecret]) -> ProtectedVm:
    """The element as a value. Raises BadMetadata."""
    return ProtectedVm(
        kms_cluster=key.cluster.id,
        kms_cluster_name=key.cluster.name,
        kek_id=key.key_id,
        policy=policy.name,
        secrets=tuple(_wrapped_key(row) for row in rows),
    )


def _wrapped_key(row: WrappedSecret) -> WrappedKey:
    return WrappedKey(
        purpose=_PURPOSES[Purpose(row.purpose)],
        target=row.target or row.purpose,
        secret_uuid=row.secret_uuid,
        wrapped=bytes(row.wrapped),
        kek_id=row.key.key_id,
        source_format="qcow2" if row.plain_format == "qcow2" else "raw",
        size=row.size_bytes,
    )
