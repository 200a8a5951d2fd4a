"""A verdict's evidence as an archive that anybody can check with public tools, or with `manage appraise`."""

import gzip
import io
import json
import zipfile
from dataclasses import dataclass, field

from attestation.engine.errors import Malformed
from attestation.engine.tpm.keylime_quote import from_base64
from attestation.models import TpmIdentity
from attestation.services import references
from inventory import events
from inventory.authorize import Actor, authorize
from inventory.errors import NotFound

DOWNLOAD = "attestation.download_evidence"
_README = """\
Evidence of host {host}, verdict {verdict} of {time}: {status}.

eventlog.bin   the boot log, as securityfs has it (tpm2_eventlog eventlog.bin)
quote.attest   TPMS_ATTEST    quote.sig   TPMT_SIGNATURE    ak.pub   the key that signed, TPM2B_PUBLIC or TPMT_PUBLIC
pcrs.json      what the quote proves      ima.txt   the IMA list from line {first_line} on
ek.pem         the TPM's certificate      reference.json   what the boot was compared with
verdict.json   the findings

Files that are not there did not come. To check it again, in a checkout of Bartizan:

  ./bartizan manage appraise --event-log eventlog.bin --quote quote.attest --signature quote.sig --ak ak.pub \\
      --nonce {nonce} --pcrs pcrs.json
"""


@dataclass(frozen=True, slots=True)
class Archive:
    """A ZIP file."""

    name: str
    content: bytes = field(repr=False)


def download(*, verdict_id: int, actor: Actor) -> Archive:
    """Packs it, and records who took it. Raises NotFound `verdict_not_found`, `evidence_not_kept`."""
    verdict = references.verdict_of(verdict_id, actor=actor)
    authorize(actor, DOWNLOAD, verdict.host)
    evidence = verdict.evidence
    if evidence is None:
        raise NotFound("evidence_not_kept", f"no evidence is kept with verdict {verdict_id} of {verdict.host}")
    files: dict[str, bytes] = {
        "verdict.json": _text({
            "host": verdict.host.name, "verdict": verdict.status, "message": verdict.message,
            "findings": verdict.findings, "secure_boot": verdict.secure_boot,
            "checked_at": verdict.checked_at.isoformat(), "asked_at": evidence.taken_at.isoformat(),
            "nonce": evidence.nonce,
        }),
        "quote.txt": evidence.quote.encode(),
        "ak.pub": bytes(evidence.ak_public),
        "README.txt": _README.format(
            host=verdict.host, verdict=verdict.pk, time=f"{verdict.checked_at:%Y-%m-%d %H:%M:%S} UTC",
            status=verdict.get_status_display(), first_line=evidence.ima_first_line,
            nonce=evidence.nonce.encode().hex(),
        ).encode(),
    }  # fmt: skip
    parts = evidence.quote[1:].split(":")
    try:
        files["quote.attest"], files["quote.sig"] = from_base64(parts[0]), from_base64(parts[1])
    except (Malformed, IndexError):
        files.pop("quote.attest", None)  # a malformed quote is in quote.txt, as it came
    if evidence.pcrs:
        files["pcrs.json"] = _text(evidence.pcrs)
    if evidence.event_log is not None:
        files["eventlog.bin"] = gzip.decompress(bytes(evidence.event_log.content_gz))
    if evidence.ima_gz:
        files["ima.txt"] = gzip.decompress(bytes(evidence.ima_gz))
    if verdict.reference is not None:
        files["reference.json"] = verdict.reference.body.encode()
    certificate = TpmIdentity.objects.filter(host=verdict.host).values_list("ek_certificate_pem", flat=True).first()
    if certificate:
        files["ek.pem"] = certificate.encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(name, content)
    events.record("host.evidence_downloaded", f"Evidence of {verdict.host} downloaded", target=verdict.host,
                  actor=actor, verdict=verdict.pk)  # fmt: skip
    return Archive(f"evidence-{verdict.pk}.zip", packed.getvalue())


def _text(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
