"""Boot logs and IMA lines appraised per second of CPU time in one process.

python -m tests.benchmarks.bench_attestation_logs [--seconds 2] [--lines 250000]

Boot: a RHEL 9 guest's log (99 events, 41 KB; tests/attestation/evidence/keylime) and a Debian guest's (48 events,
15 KB; captured). "Whole" is what a first poll costs: parse, replay against the quoted PCRs, observe, check against
reference values. "Parsed before" leaves the parsing out, as a verifier does that knows the log by its digest.

IMA: made-up lines of the usual form, each file in the allowlist: parse, replay to PCR 10, check. "First poll" takes
6,053 lines, as the list measured for the comparison with Keylime has.
"""

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable

from attestation.engine import baseline
from attestation.engine.boot import eventlog
from attestation.engine.boot.check import BootReference
from attestation.engine.boot.components import observe
from attestation.engine.boot.replay import replay
from attestation.engine.ima.check import ImaPolicy
from attestation.engine.ima.measurements import ImaState
from attestation.engine.ima.measurements import parse as parse_list
from attestation.engine.ima.measurements import replay as replay_list
from attestation.engine.reference import ImaReference
from attestation.engine.tpm.algorithms import HashAlg
from tests.attestation.recorded import Entry, entries

FIRST_POLL_LINES = 6_053


def per_second(work: Callable[[], object], seconds: float, batch: int) -> float:
    """By the process's own CPU time, the median over batches: neighbours on the machine count little."""
    work()
    rates: list[float] = []
    end = time.process_time() + seconds
    while time.process_time() < end or not rates:
        start = time.process_time()
        for _ in range(batch):
            work()
        rates.append(batch / (time.process_time() - start))
    return statistics.median(rates)


def boot_logs(entry: Entry, seconds: float) -> None:
    raw, quoted = entry.read(entry.name), entry.pcrs[HashAlg.SHA256]
    parsed = eventlog.parse(raw)
    first = observe(replay(parsed, bank=HashAlg.SHA256, quoted=quoted))
    reference = BootReference(baseline.baseline(first))

    def checked(log: eventlog.UntrustedLog) -> None:
        assert reference.check(observe(replay(log, bank=HashAlg.SHA256, quoted=quoted))) == ()

    for what, work in (
        ("parse", lambda: eventlog.parse(raw)),
        ("parse and replay", lambda: replay(eventlog.parse(raw), bank=HashAlg.SHA256, quoted=quoted)),
        ("whole", lambda: checked(eventlog.parse(raw))),
        ("parsed before", lambda: checked(parsed)),
    ):
        rate = per_second(work, seconds, batch=50)
        print(f"{entry.name.split('/')[0]:<16} {len(parsed.events):>4} events  {what:<18} {rate:10.0f} per second")


def ima_lines(count: int, seconds: float) -> None:
    digests = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(count)]
    paths = [f"/usr/lib/x86_64-linux-gnu/some-package/library{number}.so.1" for number in range(count)]
    reference = ImaReference(
        allowed={path: frozenset({f"sha256:{digest}"}) for path, digest in zip(paths, digests, strict=True)},
        excluded=("/var/**", "/tmp/**"),
    )
    policy = ImaPolicy(reference)
    for template, end in (("ima-ng", ""), ("ima-sig", " ")):
        lines = [
            f"10 {'ab' * 20} {template} sha256:{digest} {path}{end}\n"
            for path, digest in zip(paths, digests, strict=True)
        ]
        for what, wanted in (("all", count), ("first poll", min(count, FIRST_POLL_LINES))):
            text = "".join(lines[:wanted]).encode()
            start = ImaState.at_boot(HashAlg.SHA256)
            quoted = replay_list(parse_list(text), state=start, quoted=None).state.value

            def poll(text: bytes = text, start: ImaState = start, quoted: bytes = quoted) -> None:
                assert policy.check(replay_list(parse_list(text), state=start, quoted=quoted)) == ()

            rate = per_second(poll, seconds, batch=1)
            print(f"IMA {template:<8} {wanted:>7} lines, {what:<11} {rate * wanted:10.0f} lines per second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--lines", type=int, default=250_000)
    options = parser.parse_args()
    for name in ("keylime/binary_bios_measurements-secureboot", "a-secureboot-on/eventlog.bin"):
        boot_logs(next(entry for entry in entries() if entry.name == name), options.seconds)
    ima_lines(options.lines, options.seconds)


if __name__ == "__main__":
    main()
