"""A host itself: its facts, what it can give to VMs, its storage pools."""

import logging
from uuid import UUID

import libvirt
from lxml import etree

from inventory.adapters import libvirt_errors, libvirt_files
from inventory.engine import abilities as abilities_of
from inventory.engine.abilities import HostAbilities, Probe
from inventory.engine.hypervisor import DatastoreFacts, HostFacts
from inventory.engine.uri import HostUri, Transport

log = logging.getLogger(__name__)


def facts(connection: libvirt.virConnect, uri: HostUri) -> HostFacts:
    model, memory_mib, cpus = connection.getInfo()[:3]
    uuid, cpu = _capabilities(connection.getCapabilities())
    free = 0
    if uri.transport is not Transport.TEST:
        free = connection.getFreeMemory()
    return HostFacts(
        host_uuid=uuid,
        hostname=connection.getHostname()[:253],
        hypervisor=connection.getType()[:40],
        hypervisor_version=_version(connection.getVersion()),
        libvirt_version=_version(connection.getLibVersion()),
        cpu_model=(cpu or str(model))[:120],
        cpu_count=cpus,
        memory_bytes=memory_mib * 2**20,
        memory_free_bytes=free,
        is_encrypted_connection=uri.is_encrypted or connection.isEncrypted() == 1,
    )


def abilities(connection: libvirt.virConnect, uri: HostUri) -> HostAbilities:
    """Some milliseconds; where libvirt has to look at its QEMU anew, some seconds."""
    if uri.transport is Transport.TEST:
        return HostAbilities()
    capabilities = connection.getCapabilities()
    kind = abilities_of.virtualization(capabilities)
    if not kind:
        return HostAbilities()
    try:
        domain = connection.getDomainCapabilities(None, "x86_64", "q35", kind, 0)
    except libvirt.libvirtError as exc:
        if libvirt_errors.is_lost(exc):
            raise
        log.warning("host %s: no domain capabilities: %s", uri.label, libvirt_errors.text_of(exc))
        return HostAbilities()
    answers = {probe: _answer(connection, abilities_of.probe_xml(probe, kind)) for probe in Probe}
    return abilities_of.read(capabilities, domain, answers)


def _answer(connection: libvirt.virConnect, xml: str) -> str | None:
    try:
        command_line: str = connection.domainXMLToNative("qemu-argv", xml, 0)
    except libvirt.libvirtError as exc:
        if libvirt_errors.is_lost(exc):
            raise
        log.debug("probe refused: %s", libvirt_errors.text_of(exc))
        return None
    return command_line


def datastores(connection: libvirt.virConnect) -> tuple[DatastoreFacts, ...]:
    found = []
    for pool in connection.listAllStoragePools(0):
        if pool.name().startswith(libvirt_files.POOL_PREFIX):
            continue
        try:
            state, capacity, _, available = pool.info()
            kind, path = _pool(pool.XMLDesc(0))
        except libvirt.libvirtError as exc:
            if exc.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                continue  # gone between the two calls
            raise
        found.append(
            DatastoreFacts(
                name=pool.name()[:255],
                kind=kind[:40],
                path=path[:1000],
                is_active=state == libvirt.VIR_STORAGE_POOL_RUNNING,
                capacity_bytes=capacity,
                available_bytes=available,
            )
        )
    return tuple(found)


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _capabilities(xml: str) -> tuple[UUID | None, str]:
    root = etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False, no_network=True))
    text, vendor, model = (
        root.findtext("host/uuid"),
        root.findtext("host/cpu/vendor"),
        root.findtext("host/cpu/model"),
    )
    try:
        uuid = None if text is None else UUID(text)
    except ValueError:
        uuid = None
    return uuid, " ".join(part for part in (vendor, model) if part)


def _pool(xml: str) -> tuple[str, str]:
    root = etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False, no_network=True))
    return root.get("type", ""), root.findtext("target/path") or ""
