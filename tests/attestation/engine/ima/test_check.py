"""Files that nothing approves, signatures of files, violations, and lists of another boot."""

import hashlib
import struct
from binascii import hexlify

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.engine.findings import Finding, FindingCode, Severity
from attestation.engine.glob import BadPattern
from attestation.engine.ima.check import MAX_FINDINGS_OF_A_KIND, ImaPolicy, allowed_files, boot_aggregate_finding
from attestation.engine.ima.measurements import ImaState, Measurements, parse, replay
from attestation.engine.reference import ImaReference
from attestation.engine.tpm.algorithms import HashAlg
from tests.attestation.recorded import entries

SHA256 = HashAlg.SHA256
DIGEST = hashlib.sha256(b"content").digest()
TEXT = f"sha256:{DIGEST.hex()}"
COLUMN = b"ab" * 20


def line(path: str, digest: str = TEXT, *, signature: bytes | None = None, column: bytes = COLUMN) -> bytes:
    template = b"ima-ng" if signature is None else b"ima-sig"
    last = b"" if signature is None else b" " + hexlify(signature)
    return b"10 " + column + b" " + template + b" " + digest.encode() + b" " + path.encode() + last


def measured(*lines: bytes, first_line: int = 0) -> Measurements:
    state = ImaState(SHA256, first_line, bytes(32))
    return replay(parse(b"\n".join(lines), first_line=first_line), state=state, quoted=None)


def check(reference: ImaReference, *lines: bytes) -> tuple[Finding, ...]:
    return ImaPolicy(reference).check(measured(line("boot_aggregate"), *lines))


def test_an_allowed_digest_approves() -> None:
    reference = ImaReference(
        allowed={"/bin/x": frozenset({TEXT, "sha256:" + "00" * 32}), "/my file": frozenset({TEXT})}
    )
    assert check(reference, line("/bin/x"), line("/my_file")) == ()


def test_an_unknown_file_is_named() -> None:
    (finding,) = check(ImaReference(), line("/tmp/evil\x07"))
    assert (finding.code, finding.severity, finding.pcr, finding.event) == (
        FindingCode.UNAPPROVED_FILE,
        Severity.ERROR,
        10,
        1,
    )
    assert finding.message == r"/tmp/evil\x07 is not among the approved files"
    assert finding.observed == TEXT


def test_a_changed_file_is_named() -> None:
    reference = ImaReference(allowed={"/bin/x": frozenset({"sha256:" + "00" * 32})})
    (finding,) = check(reference, line("/bin/x"))
    assert finding.message == "/bin/x has another content than the approved one"
    assert (finding.expected, finding.observed) == ("sha256:" + "00" * 32, TEXT)


def test_the_digest_of_another_path_does_not_approve() -> None:
    assert len(check(ImaReference(allowed={"/bin/x": frozenset({TEXT})}), line("/bin/y"))) == 1


def test_line_numbers_count_from_boot() -> None:
    (finding,) = ImaPolicy(ImaReference()).check(measured(line("/x"), first_line=700))
    assert finding.event == 700


def test_boot_aggregate_is_a_file_later() -> None:
    found = check(ImaReference(), line("boot_aggregate"))
    assert [finding.event for finding in found] == [1]


def test_excluded_paths() -> None:
    reference = ImaReference(excluded=("/var/**", "/tmp/*.sh"))
    assert [f.event for f in check(reference, line("/var/a/b"), line("/tmp/a.sh"), line("/tmp/d/a.sh"))] == [3]


def test_buffers_are_no_files() -> None:
    assert check(ImaReference(), line(".ima", signature=b"\0").replace(b"ima-sig", b"ima-buf")) == ()


@pytest.mark.parametrize(("tolerate", "severity"), [(True, Severity.WARNING), (False, Severity.ERROR)])
def test_violations(tolerate: bool, severity: Severity) -> None:
    text = line("/var/log/x", "sha256:" + "00" * 32, column=b"0" * 40)
    (finding,) = check(ImaReference(tolerate_violations=tolerate), text)
    assert (finding.code, finding.severity, finding.event) == (FindingCode.IMA_VIOLATION, severity, 1)
    assert check(ImaReference(excluded=("/var/**",), tolerate_violations=tolerate), text) == ()


def test_findings_are_capped() -> None:
    found = check(ImaReference(), *(line(f"/x{number}") for number in range(150)))
    assert len(found) == MAX_FINDINGS_OF_A_KIND + 1
    assert found[-1].message == "50 more of these are left out"


RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def der(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def signed(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, digest: bytes = DIGEST, *, kind: int = 3, version: int = 2
) -> bytes:
    algorithm = Prehashed(hashes.SHA256())
    if isinstance(key, rsa.RSAPrivateKey):
        raw = key.sign(digest, padding.PKCS1v15(), algorithm)
    else:
        raw = key.sign(digest, ec.ECDSA(algorithm))
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest[-4:]
    return struct.pack(">BBB", kind, version, 4) + identifier + struct.pack(">H", len(raw)) + raw


@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY], ids=["rsa", "ec"])
def test_a_signature_of_a_given_key_approves(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    policy = ImaReference(keys=(der(RSA_KEY), der(EC_KEY)))
    assert check(policy, line("/bin/x", signature=signed(key))) == ()
    assert len(check(ImaReference(), line("/bin/x", signature=signed(key)))) == 1


def test_other_signatures_do_not() -> None:
    policy = ImaReference(keys=(der(RSA_KEY),))
    good = signed(RSA_KEY)
    sha1 = "sha1:" + "00" * 20
    bad = [
        line("/bin/x", signature=signed(EC_KEY)),
        line("/bin/x", signature=signed(RSA_KEY, bytes(32))),
        line("/bin/x", signature=signed(RSA_KEY, kind=6)),
        line("/bin/x", signature=signed(RSA_KEY, version=3)),
        line("/bin/x", signature=good[:-1]),
        line("/bin/x", signature=good + b"\0"),
        line("/bin/x", signature=good[:-1] + bytes([good[-1] ^ 1])),
        line("/bin/x", signature=good[:2] + b"\2" + good[3:]),
        line("/bin/x", signature=good[:3] + bytes(4) + good[7:]),
        line("/bin/x", signature=b"\3"),
        line("/bin/x", sha1, signature=good),
        line("/bin/x"),
    ]
    assert [finding.event for finding in check(policy, *bad)] == list(range(1, len(bad) + 1))


def test_every_byte_of_a_signature_counts() -> None:
    policy = ImaPolicy(ImaReference(keys=(der(EC_KEY),)))
    good = signed(EC_KEY)
    changed = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good))]
    lines = [line("/x", signature=each) for each in changed]
    assert len(policy.unapproved(measured(*lines))) == len(good)


def test_unusable_references_are_refused() -> None:
    with pytest.raises(ValueError, match="an RSA or EC key"):
        ImaPolicy(ImaReference(keys=(der(ed25519.Ed25519PrivateKey.generate()),)))
    with pytest.raises(BadPattern):
        ImaPolicy(ImaReference(excluded=("",)))


def test_a_list_as_baseline_approves_itself() -> None:
    lines = [line("boot_aggregate"), line("/bin/x"), line("/bin/x", "sha256:" + "01" * 32), line("/ö")]
    buffer = line(".ima", signature=b"\0").replace(b"ima-sig", b"ima-buf")
    no_text = line("/x").replace(b"/x", b"/\xff")
    found = allowed_files(measured(*lines, buffer, no_text))
    assert found == {"/bin/x": frozenset({TEXT, "sha256:" + "01" * 32}), "/ö": frozenset({TEXT})}
    assert ImaPolicy(ImaReference(allowed=found)).check(measured(*lines)) == ()


def test_list_and_boot_belong_together() -> None:
    a, b = (entry for entry in entries() if entry.name.startswith(("a-secureboot-on/e", "b-secureboot-off/e")))
    text = a.read("a-secureboot-on/ima_ascii.txt")
    listed = replay(parse(text), state=ImaState.at_boot(SHA256), quoted=a.pcrs[SHA256][10])
    assert boot_aggregate_finding(listed, a.pcrs) is None
    other = boot_aggregate_finding(listed, b.pcrs)
    assert other is not None
    assert (other.code, other.message) == (
        FindingCode.IMA_DOES_NOT_REPLAY,
        "the IMA list is of another boot than the quoted PCRs",
    )
    # Without the values of PCR 0 to 9 in that bank it is left open.
    assert boot_aggregate_finding(listed, {SHA256: {0: bytes(32)}}) is None
    assert boot_aggregate_finding(listed, {}) is None


def test_a_list_begins_with_boot_aggregate() -> None:
    finding = boot_aggregate_finding(measured(line("/x")), {})
    assert finding is not None
    assert finding.message == "the IMA list does not begin with boot_aggregate"
    assert boot_aggregate_finding(measured(line("/x"), first_line=7), {}) is None
    assert boot_aggregate_finding(measured(), {}) is None
    unknown = measured(line("boot_aggregate", "md5:" + "00" * 16))
    assert boot_aggregate_finding(unknown, {}) is None


def test_a_sha1_boot_aggregate_covers_eight_registers() -> None:
    values = {pcr: bytes([pcr]) * 20 for pcr in range(10)}
    digest = hashlib.sha1(b"".join(values[pcr] for pcr in range(8)), usedforsecurity=False).hexdigest()
    listed = measured(line("boot_aggregate", f"sha1:{digest}"))
    assert boot_aggregate_finding(listed, {HashAlg.SHA1: values}) is None
    assert boot_aggregate_finding(listed, {HashAlg.SHA1: {**values, 3: bytes(20)}}) is not None
