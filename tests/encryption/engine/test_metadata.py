from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from encryption.engine import metadata
from encryption.engine.metadata import BadMetadata, ProtectedVm, WrappedKey

KEY = WrappedKey(
    purpose="disk",
    target="vda",
    secret_uuid=UUID(int=1),
    wrapped=b"wrapped" * 5,
    kek_id="kek-7",
    source_format="qcow2",
    size=10 << 30,
)
VM = ProtectedVm(
    kms_cluster=UUID(int=9),
    kms_cluster_name='Lab "KMS" & <co>',
    kek_id="kek-7",
    policy="VM Encryption Policy",
    secrets=(KEY, replace(KEY, purpose="nvram", target="nvram", secret_uuid=UUID(int=2), source_format="raw", size=0)),
)
XML = metadata.to_xml(VM)

texts = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), min_size=1, max_size=255
)
keys = st.builds(
    WrappedKey,
    purpose=st.sampled_from(metadata.PURPOSES),
    target=texts,
    secret_uuid=st.uuids(),
    wrapped=st.binary(min_size=1, max_size=80),
    kek_id=texts,
    source_format=st.sampled_from(metadata.SOURCE_FORMATS),
    size=st.integers(0, metadata.MAX_DISK_BYTES),
)
vms = st.builds(
    ProtectedVm,
    kms_cluster=st.uuids(),
    kms_cluster_name=texts,
    kek_id=texts,
    policy=texts,
    secrets=st.lists(
        keys, max_size=5, unique_by=(lambda key: (key.purpose, key.target), lambda key: key.secret_uuid)
    ).map(tuple),
)


@settings(max_examples=150)
@given(vms)
def test_round_trip(vm: ProtectedVm) -> None:
    assert metadata.from_xml(metadata.to_xml(vm)) == vm


def test_it_survives_a_domain_xml() -> None:
    """libvirt parses the element into its document and gives it back with its own white space."""
    domain = etree.fromstring(f"<domain><metadata>\n  {XML}\n</metadata></domain>")
    element = domain.find(f"metadata/{{{metadata.NAMESPACE}}}protected-vm")
    assert element is not None
    etree.indent(element, "    ")
    assert metadata.from_xml(etree.tostring(element, encoding="unicode", with_tail=False)) == VM


def test_another_prefix_is_the_same_element() -> None:
    assert metadata.from_xml(XML.replace("bartizan:", "b:").replace("xmlns:bartizan", "xmlns:b")) == VM


def test_what_it_looks_like() -> None:
    root = etree.fromstring(XML)
    assert root.tag == "{https://bartizan.dev/ns/encryption/1}protected-vm"
    assert root.get("version") == "1"
    assert [child.get("target") for child in root] == ["vda", "nvram"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (XML, "", "well-formed"),
        (XML, "<a", "well-formed"),
        (XML, "\ud800", "well-formed"),
        (XML, "<protected-vm/>", "not a bartizan element"),
        ("ns/encryption/1", "ns/encryption/2", "not a bartizan element"),
        ('version="1"', 'version="2"', "another version"),
        ('version="1"', "", "another version"),
        ('version="1"', 'version="1" extra="x"', "unknown attributes"),
        ('policy="VM Encryption Policy"', "", "missing or unknown"),
        ('policy="VM Encryption Policy"', 'policy=""', "policy is empty"),
        ('policy="VM Encryption Policy"', 'policy="a&#10;b"', "not printable"),
        ('policy="VM Encryption Policy"', f'policy="{"x" * 256}"', "too long"),
        ("00000000-0000-0000-0000-000000000009", "9", "malformed kms-cluster"),
        ("00000000-0000-0000-0000-000000000009", "{00000000-0000-0000-0000-000000000009}", "malformed kms-cluster"),
        ("00000000-0000-0000-0000-000000000002", "00000000-0000-0000-0000-000000000001", "same secret"),
        ('purpose="disk"', 'purpose="floppy"', "unknown purpose"),
        ('purpose="nvram" target="nvram"', 'purpose="disk" target="vda"', "same target"),
        ('source-format="raw"', 'source-format="vmdk"', "unknown source-format"),
        ('size="0"', 'size="-1"', "malformed size"),
        ('size="0"', 'size="007"', "malformed size"),
        ('size="0"', 'size="1_0"', "malformed size"),
        ('size="0"', 'size="9999999999999999999"', "impossible size"),
        ('size="0"', 'size="' + "9" * 5000 + '"', "malformed size"),
        ('size="0">', 'size="0">****', "base64"),
        ('size="0">', 'size="0"><x/>', "child elements"),
        ("wrapped-key", "unwrapped-key", "unknown element"),
        ("</bartizan:protected-vm>", "text</bartizan:protected-vm>", "text where none"),
        ("<bartizan:wrapped-key", "text<bartizan:wrapped-key", "text where none"),
        ("</bartizan:protected-vm>", "<!-- x --></bartizan:protected-vm>", "comment"),
        ("</bartizan:protected-vm>", "<?x y?></bartizan:protected-vm>", "instruction"),
        ("</bartizan:protected-vm>", " " * 300_000 + "</bartizan:protected-vm>", "too large"),
    ],
)
def test_what_is_refused(old: str, new: str, message: str) -> None:
    assert old in XML
    with pytest.raises(BadMetadata, match=message):
        metadata.from_xml(XML.replace(old, new))


def test_an_empty_wrapped_key_is_refused() -> None:
    element = etree.fromstring(XML)
    element[0].text = " "
    with pytest.raises(BadMetadata, match="impossible length"):
        metadata.from_xml(etree.tostring(element, encoding="unicode"))


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaa">]>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE x SYSTEM "http://192.0.2.1/x.dtd">',
        '<?xml version="1.0"?>',
    ],
)
def test_no_entities_and_nothing_from_elsewhere(doctype: str) -> None:
    with pytest.raises(BadMetadata, match="declaration"):
        metadata.from_xml(doctype + XML.replace("VM Encryption Policy", "&a;"))
    with pytest.raises(BadMetadata, match="well-formed"):
        metadata.from_xml(XML.replace("VM Encryption Policy", "&a;"))


def test_too_many_keys_are_refused() -> None:
    many = tuple(replace(KEY, target=f"vd{n}", secret_uuid=UUID(int=n)) for n in range(257))
    with pytest.raises(BadMetadata, match="more than 256"):
        replace(VM, secrets=many)


@settings(max_examples=200)
@given(st.integers(0, len(XML) - 1), st.text(max_size=6), st.integers(0, 20))
def test_any_damage_parses_or_is_refused(at: int, inserted: str, removed: int) -> None:
    try:
        vm = metadata.from_xml(XML[:at] + inserted + XML[at + removed :])
    except BadMetadata:
        return
    assert metadata.from_xml(metadata.to_xml(vm)) == vm
