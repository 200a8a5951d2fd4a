"""Quotes verified and polls appraised per second of CPU time in one process, without network and database.

python -m tests.benchmarks.bench_attestation_polls [--seconds 2]

A quote: quote and signature parsed, key attributes, signature, nonce, PCR digest. A poll: that, and the boot log
against reference values made from the same boot; the first one parses and replays the log, a later one finds the same.

The AK is parsed once and kept, as a verifier that polls a host again and again does. Evidence: a Debian guest with
eleven SHA-256 PCRs quoted by RSASSA, RSAPSS and ECDSA (tests/attestation/evidence/captured). The floor is one signature
verification by the crypto module alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from attestation.engine.appraisal import Appraisal, Evidence, Identity, appraise
from attestation.engine.baseline import baseline
from attestation.engine.boot.check import BootReference
from attestation.engine.boot_appraisal import BootAppraiser
from attestation.engine.findings import Verdict
from attestation.engine.tpm.attest import parse_quote
from attestation.engine.tpm.keylime_quote import parse_quote_text
from attestation.engine.tpm.public import Public, parse_tpm2b_public
from attestation.engine.tpm.quote import verify
from attestation.engine.tpm.signature import parse_signature
from tests.attestation.recorded import HOST_A, entries
from tests.attestation.wire import quote_text

_BATCH = 200


def per_second(work: Callable[[], object], seconds: float) -> float:
    """By the process's own CPU time, the median over batches: neighbours on the machine count little."""
    work()
    rates = []
    end = time.process_time() + seconds
    while time.process_time() < end:
        start = time.process_time()
        for _ in range(_BATCH):
            work()
        rates.append(_BATCH / (time.process_time() - start))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0)
    seconds: float = parser.parse_args().seconds
    entry = next(entry for entry in entries() if entry.name == "a-secureboot-on/eventlog.bin")
    nonce, values = bytes.fromhex(entry.quotes[0]["nonce"]), entry.pcrs
    for kind, ak_file in (("quote", "ak.pub"), ("quote-pss", "akpss.pub"), ("quote-ecc", "akecc.pub")):
        attest, signature = ((HOST_A / f"{kind}.{end}").read_bytes() for end in ("attest", "sig"))
        ak = parse_tpm2b_public((HOST_A / ak_file).read_bytes())

        def one(attest: bytes = attest, signature: bytes = signature, ak: Public = ak) -> None:
            check = verify(parse_quote(attest), parse_signature(signature), ak, nonce=nonce, values=values)
            assert check.quote is not None and not check.findings

        scheme = parse_signature(signature).scheme.name
        print(f"quote, {scheme:<8}{per_second(one, seconds):10.0f} per second")
        if isinstance(ak.key, RSAPublicKey) and scheme == "RSASSA":
            key, value = ak.key, parse_signature(signature).value
            floor = per_second(
                lambda: key.verify(value, attest, padding.PKCS1v15(), hashes.SHA256()),  # noqa: B023
                seconds,
            )
            print(f"  of it the signature alone {floor:10.0f} per second")
            text = quote_text(attest, signature, {bank: values[bank] for bank in values if bank.label == "sha256"})

            def keylime(text: str = text, ak: Public = ak) -> None:
                parts = parse_quote_text(text)
                check = verify(parts.quote, parts.signature, ak, nonce=nonce, values=parts.values)
                assert check.quote is not None and not check.findings

            print(f"Keylime's quote text      {per_second(keylime, seconds):10.0f} per second")

    polls(seconds)


def polls(seconds: float) -> None:
    entry = next(entry for entry in entries() if entry.name == "a-secureboot-on/eventlog.bin")
    nonce, values = bytes.fromhex(entry.quotes[0]["nonce"]), entry.pcrs
    sent = {bank: values[bank] for bank in values if bank.label == "sha256"}
    text = quote_text((HOST_A / "quote.attest").read_bytes(), (HOST_A / "quote.sig").read_bytes(), sent)
    log = (HOST_A / "eventlog.bin").read_bytes()
    ak = parse_tpm2b_public((HOST_A / "ak.pub").read_bytes())
    identity = Identity(ak.name)

    def poll(boots: BootAppraiser) -> Appraisal:
        parts = parse_quote_text(text)
        check = verify(parts.quote, parts.signature, ak, nonce=nonce, values=parts.values)
        return appraise(Evidence(check, log), boots, identity=identity)

    boot = poll(BootAppraiser(None)).boot
    assert boot is not None
    reference = BootReference(baseline(boot))
    kept = BootAppraiser(reference)
    assert poll(kept).verdict is Verdict.PASSED
    first = per_second(lambda: poll(BootAppraiser(reference)), seconds)
    later = per_second(lambda: poll(kept), seconds)
    print(f"first poll, quote and boot log  {first:10.0f} per second")
    print(f"later poll, quote and boot log  {later:10.0f} per second")


if __name__ == "__main__":
    main()
