"""Make the guests' files, define the guests on running hosts, start and stop them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import libvirt

from lab import disks
from lab.disks import adopt
from lab.domains import GUESTS, Guest, domain_xml, pool_xml
from lab.errors import LabError
from lab.images import GuestImages
from lab.layout import HostLayout, Lab


def prepare(lab: Lab, images: GuestImages) -> None:
    """Plant the files of every guest that has no folder yet. What exists is left alone: users change it."""
    for guest in GUESTS:
        home = guest.folder(lab.host(guest.host))
        if home.exists():
            continue
        aside = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{guest.name}-"))
        try:
            _plant(guest, aside, images, lab)
            lab.user.folder(aside)
            # The folder appears under its name only when it is complete.
            aside.rename(home)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _plant(guest: Guest, folder: Path, images: GuestImages, lab: Lab) -> None:
    for disk in disks.data_disks(guest.name):
        disks.make(disk, folder, lab.user)
    copies: list[tuple[Path, str]] = []
    if guest.system_disk is not None:
        copies.append((images.boot_disk, guest.system_disk))
    if guest.firmware is not None:
        copies.append((guest.firmware.variables, "nvram.fd"))
    for source, name in copies:
        made = folder / f".{name}"
        shutil.copyfile(source, made)
        adopt(made, folder / name, lab.user)


@contextmanager
def connected(host: HostLayout) -> Iterator[libvirt.virConnect]:
    """A connection to a running host of the lab. Raises LabError when there is none."""
    # Asked first, because libvirt's client reports a missing socket on stderr as well.
    if not host.socket.exists():
        raise LabError(f"host {host.name} does not run: {host.socket} is missing")
    try:
        connection = libvirt.open(host.uri)
    except libvirt.libvirtError as exc:
        raise LabError(f"host {host.name} does not answer: {exc.get_error_message()}") from exc
    with closing(connection):
        yield connection


def define(lab: Lab, images: GuestImages) -> None:
    """Define pools and guests on the running hosts and start the guests that are meant to run.

    What is defined stays as it is. A guest with encrypted parts is not started: only the console has its keys.
    """
    for host in lab.hosts:
        with connected(host) as connection:
            _define_pools(connection, host)
            present = {domain.name() for domain in connection.listAllDomains()}
            for guest in GUESTS:
                if guest.host == host.name and guest.name not in present and not _elsewhere(lab, guest):
                    connection.defineXML(domain_xml(lab, guest, images))
    for guest in GUESTS:
        if guest.started:
            _start(lab, guest)


def stop(lab: Lab) -> None:
    """Cut the power of every guest on the hosts that answer. What a silent host left is for `processes.end`."""
    for host in lab.hosts:
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(connected(host))
            except LabError:
                continue
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                try:
                    domain.destroy()
                except libvirt.libvirtError as exc:
                    # It may have gone by itself in the meantime.
                    if domain.isActive():
                        raise LabError(f"guest {domain.name()} cannot be stopped: {exc}") from exc


def _define_pools(connection: libvirt.virConnect, host: HostLayout) -> None:
    present = {pool.name(): pool for pool in connection.listAllStoragePools()}
    for name, folder in (("default", host.datastore), ("shared", host.shared_datastore)):
        pool = present.get(name) or connection.storagePoolDefineXML(pool_xml(name, folder))
        pool.setAutostart(1)
        if not pool.isActive():
            pool.create()


def _elsewhere(lab: Lab, guest: Guest) -> bool:
    """Whether the guest lives on another host by now, because somebody migrated it."""
    return any(_find(lab, host, guest) is not None for host in lab.hosts if host.name != guest.host)


def _find(lab: Lab, host: HostLayout, guest: Guest) -> str | None:
    """The guest's XML on that host, or None."""
    with connected(host) as connection:
        for domain in connection.listAllDomains():
            if domain.name() == guest.name and domain.UUIDString() == lab.uuid_for(guest.name):
                return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    return None


def _start(lab: Lab, guest: Guest) -> None:
    for host in lab.hosts:
        with connected(host) as connection:
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE):
                encrypted = "<encryption" in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
                if domain.UUIDString() == lab.uuid_for(guest.name) and not encrypted:
                    domain.create()
