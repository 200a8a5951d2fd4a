"""Secrets on a host: ephemeral and private ones only, never written to disk and never read back."""

from uuid import UUID

import libvirt
from lxml import etree


def put(connection: libvirt.virConnect, secret_uuid: UUID, *, usage: str, vtpm: bool, value: bytes) -> None:
    secret = _private(connection, secret_uuid)
    if secret is None:
        secret = connection.secretDefineXML(_xml(secret_uuid, usage, vtpm), 0)
    secret.setValue(value, 0)


def find(connection: libvirt.virConnect, secret_uuid: UUID) -> libvirt.virSecret | None:
    """One that is defined. NOT checked: its value, which nobody can read back."""
    try:
        return connection.secretLookupByUUIDString(str(secret_uuid))
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
            return None
        raise


def remove(connection: libvirt.virConnect, secret_uuid: UUID) -> None:
    secret = find(connection, secret_uuid)
    if secret is not None:
        secret.undefine()


def _private(connection: libvirt.virConnect, secret_uuid: UUID) -> libvirt.virSecret | None:
    """The secret that is there; one that is kept on disk or can be read back is undefined, never filled."""
    secret = find(connection, secret_uuid)
    if secret is None:
        return None
    root = etree.fromstring(secret.XMLDesc(0).encode())
    if root.get("ephemeral") == "yes" and root.get("private") == "yes":
        return secret
    secret.undefine()
    return None


def _xml(secret_uuid: UUID, usage: str, vtpm: bool) -> str:
    root = etree.Element("secret", {"ephemeral": "yes", "private": "yes"})
    etree.SubElement(root, "uuid").text = str(secret_uuid)
    holder = etree.SubElement(root, "usage", {"type": "vtpm" if vtpm else "volume"})
    etree.SubElement(holder, "name" if vtpm else "volume").text = usage
    return etree.tostring(root, encoding="unicode")
