"""The protected VM in a domain XML file: what `virsh dumpxml` prints, or a file of /etc/libvirt/qemu.

The file is not trusted: whoever defines a VM writes it. It decides which keys are asked for and what the key files are
called, and both are checked; it cannot say where anything is written.
"""

import re
from pathlib import Path

from lxml import etree

from encryption.engine import metadata
from encryption.engine.metadata import ProtectedVm, WrappedKey
from inventory.errors import Conflict, Invalid, NotFound, Unavailable

_MAX_BYTES = 16 * 1024 * 1024
_ELEMENT = f"{{{metadata.NAMESPACE}}}protected-vm"
_FILE_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


def read_protected_vm(path: Path) -> ProtectedVm:
    """Raises NotFound (definition_missing, not_protected), Unavailable, Invalid (definition_malformed), Conflict
    (metadata_damaged)."""
    root = _parse(path)
    # Only where libvirt keeps it: the same element in another place was put there by somebody else.
    found = [root] if root.tag == _ELEMENT else root.findall(f"./metadata/{_ELEMENT}")
    if not found:
        raise NotFound(
            "not_protected",
            f"{path} holds nothing of Bartizan's in its <metadata>",
            hint="take the definition of the virtual machine itself: virsh dumpxml --inactive VM",
        )
    try:
        if len(found) > 1:
            raise metadata.BadMetadata("metadata has the element twice")
        vm = metadata.from_xml(etree.tostring(found[0], encoding="unicode", with_tail=False))
    except metadata.BadMetadata as exc:
        raise Conflict(
            "metadata_damaged", f"{path}: {exc}", hint="take the definition from a backup, or from another host"
        ) from exc
    names = [each.target for each in vm.secrets]
    if len(set(names)) != len(names) or not all(_FILE_NAME.fullmatch(name) for name in names):
        raise Conflict("metadata_damaged", f"{path}: a wrapped key has a name that no part of a VM has")
    return vm


def wanted_keys(vm: ProtectedVm, target: str | None) -> tuple[WrappedKey, ...]:
    """All, or the one of `target` ("vda", "nvram", "vtpm"). Raises NotFound when there is none."""
    wanted = tuple(each for each in vm.secrets if target in {None, each.target})
    if not wanted:
        present = ", ".join(each.target for each in vm.secrets) or "none"
        raise NotFound("part_not_protected", f"no wrapped key for {target or 'any part'}", hint=f"there are: {present}")
    return wanted


def _parse(path: Path) -> etree._Element:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotFound("definition_missing", f"there is no file {path}") from None
    except OSError as exc:
        raise Unavailable("definition_unreadable", f"cannot read {path}: {exc.strerror}") from exc
    if len(content) > _MAX_BYTES:
        raise Invalid("definition_malformed", f"{path} is larger than {_MAX_BYTES} bytes")
    # libvirt writes UTF-8 and no document type; without one there are no entities to expand.
    parser = etree.XMLParser(encoding="utf-8", resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        if b"<!DOCTYPE" in content:
            raise Invalid("definition_malformed", f"{path} has a document type, which libvirt never writes")
        return etree.fromstring(content, parser)
    except etree.XMLSyntaxError as exc:
        raise Invalid(
            "definition_malformed", f"{path} is not well-formed XML", hint="is it the output of virsh dumpxml?"
        ) from exc
