"""A domain's TPM device in its XML: added and removed; everything else is left as it was. See `domain_edit.py`."""

from lxml import etree

from inventory.engine.domain_xml import BadDefinition, parse_document, serialize


def add_tpm(xml: str) -> str:
    """A TPM 2.0 with the CRB interface, emulated by the host's swtpm. One that is there stays as it is.

    Its state's secret is `domain_edit.set_tpm_secret`'s matter.
    """
    root = parse_document(xml)
    devices = root.find("devices")
    if devices is None:
        raise BadDefinition("bad_definition", "the domain has no <devices>")
    if devices.find("tpm") is not None:
        return xml
    tpm = etree.SubElement(devices, "tpm", {"model": "tpm-crb"})
    etree.SubElement(tpm, "backend", {"type": "emulator", "version": "2.0"})
    return serialize(root)


def remove_tpm(xml: str) -> str:
    """Takes an emulated TPM out; its state's files stay. None there is no error, one of the host is refused."""
    root = parse_document(xml)
    for tpm in root.findall("devices/tpm"):
        backend = tpm.find("backend")
        if backend is None or backend.get("type") != "emulator":
            raise BadDefinition("no_virtual_tpm", "the VM's TPM is not an emulated one")
        parent = tpm.getparent()
        if parent is not None:
            parent.remove(tpm)
    return serialize(root)
