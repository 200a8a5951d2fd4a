"""What differs between two definitions, as people read it."""

import pytest

from inventory.engine.domain_diff import difference
from inventory.engine.domain_xml import BadDefinition

BEFORE = "<domain type='kvm'>\n <name>vm</name>\n<os><type>hvm</type></os><devices><tpm model='a'/></devices></domain>"


def test_only_what_differs_is_told() -> None:
    told = difference(BEFORE, BEFORE.replace("model='a'", "model='b'"), {})
    assert [line for line in told if line[0] in "+-"] == ['-    <tpm model="a"/>', '+    <tpm model="b"/>']
    assert told[0].startswith("@@")


def test_white_space_is_no_difference() -> None:
    assert difference(BEFORE, BEFORE.replace("\n", "").replace("<os>", "\n\n   <os>"), {}) == ()


def test_placeholders_and_wrapped_keys() -> None:
    keys = "<metadata><b:vm xmlns:b='urn:b'><b:wrapped-key secret='aa'>c2VjcmV0</b:wrapped-key></b:vm></metadata><os>"
    told = "\n".join(difference(BEFORE, BEFORE.replace("<os>", keys), {"aa": "{new secret of vda}"}))
    assert "{new secret of vda}" in told and "c2VjcmV0" not in told


def test_all_of_a_new_one() -> None:
    told = difference("", BEFORE, {})
    assert len(told) > 5 and all(line[0] in "@+" for line in told)


@pytest.mark.parametrize("xml", ["", "<domain>", "<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>", "<a/>"])
def test_what_is_no_definition(xml: str) -> None:
    with pytest.raises(BadDefinition):
        difference(BEFORE, xml, {})
