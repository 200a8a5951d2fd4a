"""A TPM device in a definition: there or not, and nothing else is changed."""

from pathlib import Path
from uuid import UUID

import pytest

from inventory.engine import domain_edit, domain_tpm
from inventory.engine.domain_xml import BadDefinition, parse_document, read_facts, serialize
from inventory.engine.hypervisor import Power, TpmFacts
from tests.inventory.engine.test_domain_edit import changed

FULL = serialize(parse_document((Path(__file__).parents[2] / "data/domains/full.xml").read_text()))
BARE = "<domain type='qemu'><name>x</name><devices><emulator>/q</emulator></devices></domain>"
SECRET = UUID("11111111-2222-4333-8444-555555555555")


def tpm_of(xml: str) -> TpmFacts | None:
    return read_facts(xml, live=None, power=Power.OFF, is_persistent=True).tpm


def test_added_with_its_secret_and_removed_again() -> None:
    without = domain_tpm.remove_tpm(FULL)
    assert tpm_of(without) is None
    added = domain_edit.set_tpm_secret(domain_tpm.add_tpm(without), SECRET)
    assert tpm_of(added) == TpmFacts("tpm-crb", "2.0", is_encrypted=True, secret_uuid=SECRET)
    assert [line for line in changed(without, added) if line.startswith("-")] in ([], ["-</devices>"])
    assert tpm_of(domain_tpm.remove_tpm(added)) is None
    assert domain_tpm.remove_tpm(domain_tpm.add_tpm(BARE)) == serialize(parse_document(BARE))


def test_twice_is_once() -> None:
    assert domain_tpm.add_tpm(FULL) == FULL
    once = domain_tpm.add_tpm(BARE)
    assert domain_tpm.add_tpm(once) == once
    assert domain_tpm.remove_tpm(BARE) == serialize(parse_document(BARE))


def test_a_tpm_of_the_host_is_not_taken_out() -> None:
    xml = BARE.replace("<emulator>", "<tpm model='tpm-tis'><backend type='passthrough'/></tpm><emulator>")
    with pytest.raises(BadDefinition, match="not an emulated one"):
        domain_tpm.remove_tpm(xml)


def test_a_definition_without_devices() -> None:
    with pytest.raises(BadDefinition):
        domain_tpm.add_tpm("<domain><name>x</name></domain>")
