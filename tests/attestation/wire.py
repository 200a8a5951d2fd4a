"""Evidence in the forms in which agents send it."""

import base64
import struct

from attestation.engine.tpm.pcrs import PcrValues


def dumped(values: PcrValues) -> bytes:
    """tpm2-tools' dump of PCR values: C structures in memory, little-endian."""
    banks = sorted(values)
    out = struct.pack("<I", len(banks))
    for bank in banks:
        bitmap = sum(1 << pcr for pcr in values[bank])
        out += struct.pack("<HB", bank, 3) + bitmap.to_bytes(3, "little") + b"\0\0"
    out = out.ljust(132, b"\0")
    digests = [values[bank][pcr] for bank in banks for pcr in sorted(values[bank])]
    lists = [digests[start : start + 8] for start in range(0, len(digests), 8)]
    out += struct.pack("<I", len(lists))
    for each in lists:
        filled = b"".join(struct.pack("<H", len(digest)) + digest.ljust(64, b"\0") for digest in each)
        out += struct.pack("<I", len(each)) + filled.ljust(528, b"\0")
    return out


def quote_text(attest: bytes, signature: bytes, values: PcrValues) -> str:
    """Keylime's `quote` field."""
    return "r" + ":".join(base64.b64encode(part).decode() for part in (attest, signature, dumped(values)))
