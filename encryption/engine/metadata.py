"""What a protected VM carries with it, as Bartizan's own element in the domain XML's <metadata>.

It names the KMS cluster and keys, and holds every wrapped secret, so that the VM can be opened wherever that KMS can be
reached, and without this console's database. It travels in clear and can be changed by anyone who can define the VM:
names and ids from it are a pointer, never a permission. A changed wrapped key does not unwrap; a changed `size` or
`target` is NOT noticed here.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args
from uuid import UUID

from lxml import etree

NAMESPACE = "https://bartizan.dev/ns/encryption/1"
PREFIX = "bartizan"
VERSION = "1"
MAX_XML_BYTES = 256 * 1024
MAX_WRAPPED_KEYS = 256
MAX_WRAPPED_BYTES = 4096 + 8
MAX_TEXT = 255
MAX_DISK_BYTES = 1 << 60

Purpose = Literal["disk", "nvram", "vtpm"]
SourceFormat = Literal["raw", "qcow2"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
SOURCE_FORMATS: tuple[SourceFormat, ...] = get_args(SourceFormat)

_VM = f"{{{NAMESPACE}}}protected-vm"
_KEY = f"{{{NAMESPACE}}}wrapped-key"
_VM_ATTRIBUTES = frozenset({"version", "kms-cluster", "kms-cluster-name", "kek-id", "policy"})
_KEY_ATTRIBUTES = frozenset({"purpose", "target", "secret", "kek-id", "source-format", "size"})
# XML 1.0 cannot carry most control characters, and folds line ends and tabs of attributes into blanks.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_NUMBER = re.compile("(0|[1-9][0-9]{0,18})", re.ASCII)


_Word = TypeVar("_Word", bound=str)


class BadMetadata(Exception):
    """The element is not one that this version of Bartizan writes."""


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """One secret of a VM, wrapped under the KEK `kek_id`.

    `target` is the disk's name in the VM ("vda") or the purpose's own word; `secret_uuid` the libvirt secret that takes
    the unwrapped value; `size` the image's virtual bytes and `source_format` what it was, both for decrypting.
    """

    purpose: Purpose
    target: str
    secret_uuid: UUID
    wrapped: bytes
    kek_id: str
    source_format: SourceFormat
    size: int

    def __post_init__(self) -> None:
        if self.purpose not in PURPOSES:
            raise BadMetadata("wrapped key has an unknown purpose")
        if self.source_format not in SOURCE_FORMATS:
            raise BadMetadata("wrapped key has an unknown source format")
        _check_text(self.target, "target")
        _check_text(self.kek_id, "key id")
        if not 0 < len(self.wrapped) <= MAX_WRAPPED_BYTES:
            raise BadMetadata("wrapped key has an impossible length")
        if not 0 <= self.size <= MAX_DISK_BYTES:
            raise BadMetadata("wrapped key names an impossible size")


@dataclass(frozen=True, slots=True)
class ProtectedVm:
    """All that is needed, besides the KMS, to open a VM. `policy` is the storage policy's name."""

    kms_cluster: UUID
    kms_cluster_name: str
    kek_id: str
    policy: str
    secrets: tuple[WrappedKey, ...]

    def __post_init__(self) -> None:
        _check_text(self.kms_cluster_name, "kms cluster name")
        _check_text(self.kek_id, "key id")
        _check_text(self.policy, "policy")
        if len(self.secrets) > MAX_WRAPPED_KEYS:
            raise BadMetadata(f"more than {MAX_WRAPPED_KEYS} wrapped keys")
        if len({(key.purpose, key.target) for key in self.secrets}) != len(self.secrets):
            raise BadMetadata("two wrapped keys for the same target")
        if len({key.secret_uuid for key in self.secrets}) != len(self.secrets):
            raise BadMetadata("two wrapped keys for the same secret")


def to_xml(vm: ProtectedVm) -> str:
    """Return the element, namespace declared, fit for libvirt's setMetadata or for a whole domain XML."""
    root = etree.Element(_VM, nsmap={PREFIX: NAMESPACE})
    root.set("version", VERSION)
    root.set("kms-cluster", str(vm.kms_cluster))
    root.set("kms-cluster-name", vm.kms_cluster_name)
    root.set("kek-id", vm.kek_id)
    root.set("policy", vm.policy)
    for key in vm.secrets:
        element = etree.SubElement(root, _KEY)
        element.set("purpose", key.purpose)
        element.set("target", key.target)
        element.set("secret", str(key.secret_uuid))
        element.set("kek-id", key.kek_id)
        element.set("source-format", key.source_format)
        element.set("size", str(key.size))
        element.text = base64.b64encode(key.wrapped).decode("ascii")
    xml = etree.tostring(root, encoding="unicode")
    if len(xml.encode("utf-8")) > MAX_XML_BYTES:
        raise BadMetadata("metadata element is too large")
    return xml


def from_xml(xml: str) -> ProtectedVm:
    """Read the element back; everything unknown in it is refused. Raises BadMetadata."""
    root = _parse(xml)
    if root.tag != _VM:
        raise BadMetadata("not a bartizan element")
    if root.get("version") != VERSION:
        raise BadMetadata("metadata is of another version")
    _check_shape(root, _VM_ATTRIBUTES)
    if (root.text or "").strip():
        raise BadMetadata("metadata has text where none belongs")
    return ProtectedVm(
        kms_cluster=_uuid(root, "kms-cluster"),
        kms_cluster_name=_attribute(root, "kms-cluster-name"),
        kek_id=_attribute(root, "kek-id"),
        policy=_attribute(root, "policy"),
        secrets=tuple(_wrapped_key(child) for child in root),
    )


def _parse(xml: str) -> etree._Element:
    # What we write has no document type, entities, comments, CDATA or instructions, and `<` is escaped everywhere else.
    if "<!" in xml or "<?" in xml:
        raise BadMetadata("metadata has a declaration, comment or instruction")
    try:
        encoded = xml.encode("utf-8")
    except UnicodeEncodeError:
        raise BadMetadata("metadata is not well-formed xml") from None
    if len(encoded) > MAX_XML_BYTES:
        raise BadMetadata("metadata element is too large")
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=False,
    )
    try:
        return etree.fromstring(encoded, parser)
    except etree.XMLSyntaxError:
        raise BadMetadata("metadata is not well-formed xml") from None


def _wrapped_key(element: etree._Element) -> WrappedKey:
    if element.tag != _KEY:
        raise BadMetadata("metadata has an unknown element")
    _check_shape(element, _KEY_ATTRIBUTES)
    if len(element):
        raise BadMetadata("wrapped key has child elements")
    if (element.tail or "").strip():
        raise BadMetadata("metadata has text where none belongs")
    size = _attribute(element, "size")
    if not _NUMBER.fullmatch(size):
        raise BadMetadata("wrapped key has a malformed size")
    try:
        wrapped = base64.b64decode((element.text or "").strip(), validate=True)
    except (binascii.Error, ValueError):
        raise BadMetadata("wrapped key is not base64") from None
    return WrappedKey(
        purpose=_choice(element, "purpose", PURPOSES),
        target=_attribute(element, "target"),
        secret_uuid=_uuid(element, "secret"),
        wrapped=wrapped,
        kek_id=_attribute(element, "kek-id"),
        source_format=_choice(element, "source-format", SOURCE_FORMATS),
        size=int(size),
    )


def _choice(element: etree._Element, name: str, choices: tuple[_Word, ...]) -> _Word:
    value = _attribute(element, name)
    for choice in choices:
        if choice == value:
            return choice
    raise BadMetadata(f"wrapped key has an unknown {name}")


def _check_shape(element: etree._Element, attributes: frozenset[str]) -> None:
    if {str(name) for name in element.attrib} != attributes:
        raise BadMetadata("metadata has missing or unknown attributes")


def _attribute(element: etree._Element, name: str) -> str:
    return str(element.attrib[name])


def _uuid(element: etree._Element, name: str) -> UUID:
    text = _attribute(element, name)
    try:
        value = UUID(text)
    except ValueError:
        raise BadMetadata(f"metadata has a malformed {name}") from None
    if str(value) != text:
        raise BadMetadata(f"metadata has a malformed {name}")
    return value


def _check_text(text: str, name: str) -> None:
    if not 0 < len(text) <= MAX_TEXT or _UNFIT.search(text):
        raise BadMetadata(f"{name} is empty, too long, or not printable")
