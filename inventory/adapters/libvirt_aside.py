"""What libvirt keeps beside a domain's XML: persistence, autostart, managed save, snapshots."""

from dataclasses import dataclass
from typing import Self

import libvirt


@dataclass(frozen=True, slots=True)
class Aside:
    """What libvirt keeps beside a domain's XML."""

    is_persistent: bool
    is_autostarted: bool
    has_managed_save: bool
    snapshots: int = 0
    memory_snapshots: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """The same of all domains, from one list for each: only domains with snapshots are asked one by one."""

    transient: frozenset[bytes]
    autostarted: frozenset[bytes]
    saved: frozenset[bytes]
    with_snapshots: frozenset[bytes]

    @classmethod
    def read(cls, connection: libvirt.virConnect) -> Self:
        def listed(flag: int) -> frozenset[bytes]:
            return frozenset(domain.UUID() for domain in connection.listAllDomains(flag))

        return cls(
            transient=listed(libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT),
            autostarted=listed(libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART),
            saved=listed(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE),
            with_snapshots=listed(libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT),
        )

    def of(self, domain: libvirt.virDomain) -> Aside:
        uuid = domain.UUID()
        snapshots = _snapshots(domain) if uuid in self.with_snapshots else (0, 0)
        return Aside(uuid not in self.transient, uuid in self.autostarted, uuid in self.saved, *snapshots)


def asked(domain: libvirt.virDomain) -> Aside:
    return Aside(
        bool(domain.isPersistent()),
        bool(domain.autostart()),
        bool(domain.hasManagedSaveImage(0)),
        *_snapshots(domain),
    )


def _snapshots(domain: libvirt.virDomain) -> tuple[int, int]:
    """How many, and of those how many hold guest memory: libvirt's ACTIVE are full system snapshots."""
    count = domain.snapshotNum(0)
    return count, domain.snapshotNum(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_ACTIVE) if count else 0
