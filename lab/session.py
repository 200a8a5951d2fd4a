"""Make, run and remove a whole lab. `RunningLab` is what tests and `python -m lab run` use."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import libvirt

from lab import accel, guests, hosts, images, layout, machine, processes
from lab.domains import channel_path
from lab.errors import LabError
from lab.guest_client import GuestClient
from lab.images import GuestImages
from lab.layout import MARK, HostLayout, Lab
from lab.user import ensure_user

START_SECONDS = 60.0
STOP_SECONDS = 30.0


def prepare(state: Path, *, cache: Path | None = None) -> tuple[Lab, GuestImages]:
    """Make the lab of `state` ready to run: user, folders, certificates, configuration, images, disks.

    Done parts are skipped. `cache` (default: `state/cache`) keeps downloads and built images; labs may share it.
    """
    user = ensure_user()
    with layout.locked(state):
        lab = layout.load_or_create(state, user)
        made = images.prepare(_cache(lab, cache), lab.images, user)
        if lab.accelerator is None:
            lab = layout.with_accelerator(lab, accel.probe(made, user))
        hosts.prepare(lab)
        machine.prepare(lab)
        guests.prepare(lab, made)
    return lab, made


def wait_until_ready(lab: Lab, *, seconds: float = START_SECONDS) -> None:
    """Wait until both daemons answer. Raises LabError when one does not within `seconds`."""
    deadline = time.monotonic() + seconds
    for host in lab.hosts:
        while True:
            try:
                with guests.connected(host) as connection:
                    connection.getLibVersion()
                    break
            except (LabError, libvirt.libvirtError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def stop(state: Path) -> None:
    """Cut the guests' power and end the lab's processes, whoever started them. Does nothing without a lab."""
    lab = layout.load(state, ensure_user())
    if lab is not None:
        guests.stop(lab)
        processes.end(lab)


def destroy(state: Path) -> None:
    """Cut the guests' power, end the lab's processes and remove its state folder and run base.

    A cache kept in the state folder goes too. Does nothing when `state` holds no lab.
    """
    lab = layout.load(state, ensure_user())
    if lab is None:
        return
    with layout.locked(state):
        guests.stop(lab)
        processes.end(lab)
        mark = lab.base / MARK
        if mark.is_file() and mark.read_text().strip() == lab.id:
            shutil.rmtree(lab.base)
        for name in ("run", "lab.json", "pki", "cache"):
            _remove(lab.state / name)
        for entry in lab.state.iterdir():
            # Others may keep their folders in the run base, and a link to them here.
            if entry.is_symlink() and entry.readlink().is_relative_to(lab.base):
                entry.unlink()
    _remove(lab.state / "lab.lock")
    # The launcher may keep other things here (the key server's); those are its own to remove.
    if not any(lab.state.iterdir()):
        lab.state.rmdir()


class RunningLab:
    """Context manager: a prepared lab with both daemons up and the guests defined; stops everything at the end.

    The state stays on disk, so entering again is quick; `destroy` removes it.
    """

    def __init__(self, state: Path, *, cache: Path | None = None, define_guests: bool = True) -> None:
        self._state = state
        self._cache = cache
        self._define_guests = define_guests
        self._stack = ExitStack()
        self._lab: Lab | None = None
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        lab, made = prepare(self._state, cache=self._cache)
        if any(process.program == "libvirtd" for process in processes.running(lab)):
            raise LabError(f"the lab in {lab.state} runs already: end it with stop")
        self._lab = lab
        with ExitStack() as stack:
            stack.callback(processes.end, lab)
            for host in lab.hosts:
                self.start_daemon(host)
                stack.callback(self.stop_daemon, host)
            stack.callback(guests.stop, lab)
            self._wait()
            if self._define_guests:
                guests.define(lab, made)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def lab(self) -> Lab:
        if self._lab is None:
            raise LabError("the lab is not running")
        return self._lab

    def guest(self, name: str) -> GuestClient:
        """A client for a running guest, on whichever host it is now. Raises LabError when it runs nowhere."""
        return guest_client(self.lab, name)

    def start_daemon(self, host: HostLayout) -> None:
        """Start one host's libvirtd; what it says goes to the host's `libvirtd.log`."""
        argv, environment = hosts.host_command(self.lab, host, dies_with_caller=True)
        with host.log.open("ab") as log:
            # A process group of its own: Ctrl-C must reach us only, for the guests have to stop before the daemons.
            self.daemons[host.name] = subprocess.Popen(
                argv,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def stop_daemon(self, host: HostLayout) -> None:
        """Stop one host's libvirtd and wait for its end. Its guests run on, as on any libvirt host."""
        daemon = self.daemons.pop(host.name, None)
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def wait(self) -> None:
        """Return when one of the daemons has ended."""
        while all(daemon.poll() is None for daemon in self.daemons.values()):
            time.sleep(0.5)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            for name, daemon in self.daemons.items():
                if daemon.poll() is not None:
                    said = self.lab.host(name).log.read_text(errors="replace")[-2000:]
                    raise LabError(f"libvirtd of host {name} ended with status {daemon.returncode}: {said}")
            try:
                wait_until_ready(self.lab, seconds=0.5)
                return
            except (LabError, libvirt.libvirtError):
                if time.monotonic() > deadline:
                    raise


def guest_client(lab: Lab, name: str) -> GuestClient:
    """A client for a running guest, on whichever host it is now. Raises LabError when it runs nowhere."""
    for host in lab.hosts:
        with guests.connected(host) as connection:
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                if domain.name() == name:
                    path = channel_path(domain.XMLDesc(0))
                    if path is not None:
                        return GuestClient(path)
    raise LabError(f"guest {name} does not run on any host of the lab")


def _cache(lab: Lab, cache: Path | None) -> Path:
    return (cache or lab.state / "cache").absolute()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
