"""Migration over libvirt: from daemon to daemon (peer to peer), so it survives the worker that asked for it."""

from typing import Any, Final
from uuid import UUID

import libvirt
from lxml import etree

from inventory.engine.hypervisor import Migration, MigrationOutcome, MigrationProgress

PROBE_PREFIX: Final = "bartizan-probe-"
_OUT: Final = libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
_GONE: Final = frozenset({libvirt.VIR_ERR_NO_DOMAIN})
# What libvirt says of a domain that is off, or that is arriving.
_WITHOUT_JOB: Final = _GONE | {libvirt.VIR_ERR_OPERATION_INVALID}


def migrate(domain: libvirt.virDomain, migration: Migration) -> None:
    """Blocks until it has ended, well or not."""
    flags = libvirt.VIR_MIGRATE_PEER2PEER
    if migration.is_transient:
        flags |= libvirt.VIR_MIGRATE_PAUSED
    else:
        flags |= libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        # libvirt takes a local file system's files for not shared. That both hosts see the same ones, the caller has
        # found out by writing one; caches are dropped by QEMU (2.12 and newer) before the other side reads.
        flags |= libvirt.VIR_MIGRATE_UNSAFE
    parameters: dict[str, Any] = {}
    if migration.uses_tls:
        flags |= libvirt.VIR_MIGRATE_TLS
    if migration.copied_disks:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
        parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(migration.copied_disks)
    if migration.edit is not None:
        # SECURE: passwords of the graphics must arrive. MIGRATABLE: without what belongs to this host alone.
        form = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
        parameters[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = migration.edit(domain.XMLDesc(form))
        parameters[libvirt.VIR_MIGRATE_PARAM_PERSIST_XML] = migration.edit(
            domain.XMLDesc(form | libvirt.VIR_DOMAIN_XML_INACTIVE)
        )
    domain.migrateToURI3(migration.destination, parameters, flags)


def progress(connection: libvirt.virConnect, uuid: UUID) -> MigrationProgress | None:
    """None: no migration of it leaves this host now."""
    try:
        stats = connection.lookupByUUIDString(str(uuid)).jobStats(0)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() in _WITHOUT_JOB:
            return None
        raise
    if stats.get("operation") != _OUT or stats.get("type") == libvirt.VIR_DOMAIN_JOB_NONE:
        return None
    return MigrationProgress(done=stats.get("data_processed", 0), total=stats.get("data_total", 0))


def abort(connection: libvirt.virConnect, uuid: UUID) -> None:
    """Breaks off a migration that leaves this host; one that has ended by itself is no error."""
    if progress(connection, uuid) is None:
        return
    try:
        connection.lookupByUUIDString(str(uuid)).abortJob()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() not in _WITHOUT_JOB:
            raise


def outcome(domain: libvirt.virDomain) -> MigrationOutcome | None:
    try:
        stats = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED)
    except libvirt.libvirtError:
        return None  # it is told once at most, and never after the daemon was restarted
    if "time_elapsed" not in stats:
        return None
    return MigrationOutcome(
        milliseconds=stats["time_elapsed"],
        downtime_milliseconds=stats.get("downtime", 0),
        sent_bytes=stats.get("data_processed", 0),
    )


def is_probe(domain: libvirt.virDomain) -> bool:
    return bool(domain.name().startswith(PROBE_PREFIX))


def start_probe(connection: libvirt.virConnect, uuid: UUID) -> None:
    """Its processors never run, so software emulation will do wherever QEMU has it."""
    capabilities = etree.fromstring(
        connection.getCapabilities().encode(), etree.XMLParser(resolve_entities=False, no_network=True)
    )
    architecture = capabilities.findtext("host/cpu/arch") or "x86_64"
    kinds = [one.get("type") for one in capabilities.iterfind(f"guest/arch[@name='{architecture}']/domain")]
    root = etree.Element("domain", type="qemu" if "qemu" in kinds else "kvm")
    etree.SubElement(root, "name").text = f"{PROBE_PREFIX}{uuid.hex[:12]}"
    etree.SubElement(root, "uuid").text = str(uuid)
    etree.SubElement(root, "memory", unit="MiB").text = "32"
    etree.SubElement(etree.SubElement(root, "os"), "type", arch=architecture).text = "hvm"
    devices = etree.SubElement(root, "devices")
    etree.SubElement(devices, "controller", type="usb", model="none")
    etree.SubElement(devices, "memballoon", model="none")
    connection.createXML(etree.tostring(root, encoding="unicode"), libvirt.VIR_DOMAIN_START_PAUSED)


def end_probe(connection: libvirt.virConnect, uuid: UUID) -> None:
    try:
        domain = connection.lookupByUUIDString(str(uuid))
        if is_probe(domain):
            domain.destroy()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() not in _GONE:
            raise


def machine_is_known(connection: libvirt.virConnect, architecture: str, machine: str, domain_type: str) -> bool:
    try:
        connection.getDomainCapabilities(None, architecture, machine, domain_type, 0)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() in (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONFIG_UNSUPPORTED):
            return False
        raise
    return True


def undefine(connection: libvirt.virConnect, uuid: UUID) -> None:
    try:
        domain = connection.lookupByUUIDString(str(uuid))
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() not in _GONE:
            raise
