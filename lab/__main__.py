"""`python -m lab prepare|define|run|status|stop|destroy --state DIR`: the lab by hand."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

import libvirt

from lab import guests, layout, processes, session
from lab.errors import LabError
from lab.layout import Lab
from lab.user import ensure_user


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    parser.add_argument("command", choices=["prepare", "define", "run", "status", "stop", "destroy"])
    parser.add_argument("--state", type=Path, required=True, help="the lab's folder")
    parser.add_argument("--cache", type=Path, help="downloads and built images (default: STATE/cache)")
    options = parser.parse_args(arguments)
    # libvirt's client prints every error to stderr by itself as well.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        match options.command:
            case "prepare":
                lab, _ = session.prepare(options.state, cache=options.cache)
                print(f"lab in {lab.base}, guests run under {lab.accelerator}")
            case "define":
                lab, images = session.prepare(options.state, cache=options.cache)
                session.wait_until_ready(lab)
                guests.define(lab, images)
            case "run":
                return _run(options.state, options.cache)
            case "status":
                return _status(options.state)
            case "stop":
                session.stop(options.state)
            case "destroy":
                session.destroy(options.state)
    except (LabError, libvirt.libvirtError) as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 1
    return 0


class _Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so nothing on the way takes it for a failure of its own."""


def _run(state: Path, cache: Path | None) -> int:
    """Daemons in the foreground until SIGTERM, Ctrl-C or the end of one of them; then everything stops."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        # One signal is enough; a second must not interrupt the cleaning up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise _Terminated

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        with session.RunningLab(state, cache=cache) as running:
            print(f"lab runs in {running.lab.base}", flush=True)
            running.wait()
            print("a libvirtd ended by itself: the lab stops", file=sys.stderr)
            return 1
    except _Terminated:
        # The signal may have come at the one moment in which nobody held the running parts.
        session.stop(state)
        return 0


def _status(state: Path) -> int:
    lab = layout.load(state, ensure_user())
    if lab is None:
        print(f"no lab in {state}")
        return 3
    print(f"lab {lab.id} in {lab.base}, user {lab.user.name}, guests run under {lab.accelerator}")
    for host in lab.hosts:
        _print_host(lab, host)
    for process in processes.running(lab):
        print(f"process {process.pid} {process.program}")
    return 0


def _print_host(lab: Lab, host: layout.HostLayout) -> None:
    print(f"host {host.name}: {host.uri}")
    print(f"  from elsewhere: {host.peer_uri(host.pki)}")
    try:
        with guests.connected(host) as connection:
            for domain in connection.listAllDomains():
                state = "running" if domain.isActive() else "off"
                print(f"  guest {domain.name()}: {state}")
    except LabError:
        print("  not running")


if __name__ == "__main__":
    sys.exit(main())
