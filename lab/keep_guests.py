"""`python -m lab.keep_guests --state DIR --cache DIR`: keeps the lab's guests for as long as it runs.

Guests outlive their libvirt daemon, as on any host. This process is what ends them: it defines and starts them when the
daemons answer, waits, and cuts their power on SIGTERM. supervisord stops it before the daemons.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import libvirt

from lab import guests, session
from lab.errors import LabError


class _Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so nothing on the way takes it for a failure of its own."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.keep_guests", description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    options = parser.parse_args()
    # libvirt's client prints every error to stderr by itself as well.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)

    def stop(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        raise _Terminated

    lab, images = session.prepare(options.state, cache=options.cache)  # quick: it is all there
    signal.signal(signal.SIGTERM, stop)
    try:
        try:
            session.wait_until_ready(lab)
            guests.define(lab, images)
            print("guests are defined and started", flush=True)
        except (LabError, libvirt.libvirtError) as exc:
            # Stays up all the same: what does run has to be ended when its time comes.
            print(f"guests: {exc}", file=sys.stderr, flush=True)
        while True:
            time.sleep(0.5)  # not signal.pause(): it would sleep through a signal that came just before
    except _Terminated:
        guests.stop(lab)
    return 0


if __name__ == "__main__":
    sys.exit(main())
