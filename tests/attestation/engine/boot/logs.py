"""Event logs made or changed for tests. Whoever is root on a host can do all of this to its log."""

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from uuid import UUID

from attestation.engine.boot import eventlog
from attestation.engine.boot.event_types import EventType
from attestation.engine.boot.uefi import GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE
from attestation.engine.tpm.algorithms import HashAlg
from tests.attestation.recorded import Entry, entries

SHA256 = HashAlg.SHA256
SEPARATOR = bytes(4)


class Record(NamedTuple):
    """One event to write. `hashed` is what its digest is over; None for the data itself."""

    pcr: int
    type: int
    data: bytes
    hashed: bytes | None = None

    @property
    def digest(self) -> bytes:
        return SHA256.digest(self.data if self.hashed is None else self.hashed)


def variable(vendor: UUID, name: str, content: bytes) -> bytes:
    encoded = name.encode("utf-16-le")
    return vendor.bytes_le + struct.pack("<QQ", len(name), len(content)) + encoded + content


def measured_variable(
    name: str, content: bytes, *, vendor: UUID = GLOBAL_VARIABLE, kind: int = EventType.EFI_VARIABLE_DRIVER_CONFIG
) -> Record:
    return Record(7, kind, variable(vendor, name, content))


def firmware_part(*, secure_boot: bytes, pk: bytes) -> list[Record]:
    return [
        measured_variable("SecureBoot", secure_boot),
        measured_variable("PK", pk),
        measured_variable("KEK", pk),
        measured_variable("db", pk, vendor=IMAGE_SECURITY_DATABASE),
        measured_variable("dbx", b"", vendor=IMAGE_SECURITY_DATABASE),
    ]


def separator(pcr: int = 7) -> Record:
    return Record(pcr, EventType.SEPARATOR, SEPARATOR)


def written(records: Iterable[Record]) -> bytes:
    """A crypto agile log with one bank, SHA-256."""
    spec_id = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 1) + struct.pack("<HH", SHA256, 32) + b"\0"
    raw = [struct.pack("<II20sI", 0, EventType.NO_ACTION, bytes(20), len(spec_id)) + spec_id]
    raw += [
        struct.pack("<IIIH", pcr, kind, 1, SHA256) + record.digest + struct.pack("<I", len(data)) + data
        for record in records
        for pcr, kind, data, _ in (record,)
    ]
    return b"".join(raw)


def extended(records: Iterable[Record]) -> Mapping[int, bytes]:
    """What the TPM holds after these: the truth, whatever a log says."""
    values: dict[int, bytes] = {}
    for record in records:
        values[record.pcr] = SHA256.digest(values.get(record.pcr, bytes(32)) + record.digest)
    return values


def logs_of(expected: str) -> list[Entry]:
    """Entries of the manifests with an event log, by the first word of what they must yield."""
    return [
        entry for entry in entries() if entry.facts["kind"] != "quote" and entry.facts["expect"].startswith(expected)
    ]


def parsed(entry: Entry) -> eventlog.UntrustedLog:
    return eventlog.parse(entry.read(entry.name))


def best_bank(log: eventlog.UntrustedLog) -> HashAlg:
    return SHA256 if SHA256 in log.banks else log.banks[0]
