"""The recorded evidence in tests/attestation/evidence, by what its manifests say."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.pcrs import PcrValues

EVIDENCE = Path(__file__).parent / "evidence"
HOST_A = EVIDENCE / "captured/a-secureboot-on"
HOST_B = EVIDENCE / "captured/b-secureboot-off"
GOOGLE = EVIDENCE / "go-tpm-tools/gce-cos-85-no-nonce"
WINDOWS = EVIDENCE / "go-attestation/windows_gcp_shielded_vm"
TRUSTEE = EVIDENCE / "trustee/tpm_evidence"


@dataclass(frozen=True)
class Entry:
    """One manifest entry; paths in it are relative to `folder`."""

    folder: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.facts["file"])

    def read(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()

    @property
    def pcrs(self) -> PcrValues:
        return {
            HashAlg.of_label(bank): {int(index): bytes.fromhex(value) for index, value in values.items()}
            for bank, values in self.facts.get("pcrs", {}).items()
        }

    @property
    def quotes(self) -> list[dict[str, Any]]:
        return list(self.facts.get("evidence", {}).get("quotes", []))


def entries() -> list[Entry]:
    return [
        Entry(manifest.parent, facts)
        for manifest in (EVIDENCE / "manifest.json", EVIDENCE / "captured/manifest.json")
        for facts in json.loads(manifest.read_text())
    ]
