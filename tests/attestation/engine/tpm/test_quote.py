"""Recorded quotes verify, and no changed byte of quote, signature, key or PCR values does."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import example, given
from hypothesis import strategies as st

from attestation.engine.errors import Malformed
from attestation.engine.findings import FindingCode, Severity
from attestation.engine.tpm.algorithms import HashAlg, SignatureScheme
from attestation.engine.tpm.attest import MalformedQuote, parse_quote
from attestation.engine.tpm.pcrs import PcrSelection
from attestation.engine.tpm.public import (
    Public,
    PublicKey,
    parse_bare_key,
    parse_tpm2b_public,
    parse_tpmt_public,
)
from attestation.engine.tpm.quote import QuoteCheck, VerifiedQuote, verify
from attestation.engine.tpm.signature import MalformedSignature, parse_signature
from tests.attestation.recorded import HOST_A, Entry, entries

QUOTES = [(entry, quote) for entry in entries() for quote in entry.quotes]
NAMES = [f"{entry.name}:{quote['attest'].rsplit('/', 1)[-1]}" for entry, quote in QUOTES]
KINDS = ["quote", "quote-ecc", "quote-pss"]
AKS = {"quote": "ak.pub", "quote-ecc": "akecc.pub", "quote-pss": "akpss.pub"}
ENTRY_A = next(entry for entry in entries() if entry.name == "a-secureboot-on/eventlog.bin")
NONCE = bytes.fromhex(ENTRY_A.quotes[0]["nonce"])
CHANGES = (*(1 << bit for bit in range(8)), 0xFF)


def key_in(data: bytes, path: str) -> Public | PublicKey:
    if path.endswith(".tpmt"):
        return parse_tpmt_public(data)
    return parse_tpm2b_public(data) if path.endswith(".pub") else parse_bare_key(data)


def checked(entry: Entry, quote: dict[str, Any]) -> QuoteCheck:
    return verify(
        parse_quote(entry.read(quote["attest"])),
        parse_signature(entry.read(quote["sig"])),
        key_in(entry.read(quote["ak"]), quote["ak"]),
        nonce=bytes.fromhex(quote["nonce"]),
        values=entry.pcrs,
    )


def codes(check: QuoteCheck) -> set[FindingCode]:
    return {finding.code for finding in check.findings}


@pytest.mark.parametrize(("entry", "quote"), QUOTES, ids=NAMES)
def test_every_recorded_quote_verifies(entry: Entry, quote: dict[str, Any]) -> None:
    check = checked(entry, quote)
    assert quote["expect"] == "verifies" and check.quote is not None
    selection = check.quote.attested.selection
    assert {bank.label: list(pcrs) for bank, pcrs in selection.banks} == quote["pcr_select"]
    scheme, _, hash_alg = quote["scheme"].partition("/")
    signature = parse_signature(entry.read(quote["sig"]))
    assert (signature.scheme.name.lower(), signature.hash_alg.label) == (scheme, hash_alg)
    if "resetCount" in quote:
        assert check.quote.attested.clock.reset_count == quote["resetCount"]
    if entry.facts["kind"] == "bundle" and "d-log-edited" in entry.name:
        return  # its PCR values are those of the edited log
    assert check.quote.pcrs == selection.pick(entry.pcrs)
    weak = hash_alg == "sha1" or list(quote["pcr_select"]) == ["sha1"]
    bare = quote["ak"].endswith(".der")
    assert codes(check) == ({FindingCode.WEAK_DIGEST} if weak else set()) | (
        {FindingCode.KEY_UNRESTRICTED} if bare else set()
    )
    assert all(finding.severity is Severity.WARNING for finding in check.findings)


class Parts:
    """The four files of a recorded quote, and one way to check them."""

    def __init__(self, kind: str) -> None:
        self.attest = (HOST_A / f"{kind}.attest").read_bytes()
        self.signature = (HOST_A / f"{kind}.sig").read_bytes()
        self.ak = (HOST_A / AKS[kind]).read_bytes()
        self.ak_name = (HOST_A / AKS[kind]).with_suffix(".name").read_bytes()

    def is_accepted(
        self, *, attest: bytes = b"", signature: bytes = b"", ak: bytes = b"", nonce: bytes = NONCE
    ) -> bool:
        """As a console would: an activated name, a nonce, and what came from the network."""
        try:
            check = verify(
                parse_quote(attest or self.attest),
                parse_signature(signature or self.signature),
                parse_tpm2b_public(ak or self.ak),
                nonce=nonce,
                values=ENTRY_A.pcrs,
            )
        except Malformed:
            return False
        return check.quote is not None and check.quote.ak_name == self.ak_name and check.quote.pcrs is not None


def changed(data: bytes, changes: tuple[int, ...] = CHANGES) -> Iterator[bytes]:
    for place, byte in enumerate(data):
        for change in changes:
            yield data[:place] + bytes([byte ^ change]) + data[place + 1 :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["attest", "signature", "ak", "nonce"])
def test_no_changed_byte_is_accepted(kind: str, part: str) -> None:
    parts = Parts(kind)
    assert parts.is_accepted()
    genuine = NONCE if part == "nonce" else getattr(parts, part)
    accept: Callable[..., bool] = parts.is_accepted
    assert [wrong.hex() for wrong in changed(genuine) if accept(**{part: wrong})] == []


@pytest.mark.slow
@pytest.mark.parametrize("part", ["attest", "signature", "ak"])
def test_no_changed_byte_is_accepted_whatever_its_value(part: str) -> None:
    parts = Parts("quote-ecc")
    accept: Callable[..., bool] = parts.is_accepted
    everything = tuple(range(1, 256))
    assert [wrong.hex() for wrong in changed(getattr(parts, part), everything) if accept(**{part: wrong})] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["attest", "signature", "ak"])
def test_nothing_shortened_or_lengthened_is_accepted(kind: str, part: str) -> None:
    parts = Parts(kind)
    genuine: bytes = getattr(parts, part)
    accept: Callable[..., bool] = parts.is_accepted
    for wrong in [*(genuine[:end] for end in range(1, len(genuine))), genuine + b"\0", genuine + genuine]:
        assert not accept(**{part: wrong})


def test_no_changed_pcr_value_is_accepted() -> None:
    check = checked(ENTRY_A, ENTRY_A.quotes[0])
    assert check.quote is not None
    values = {HashAlg.SHA256: dict(ENTRY_A.pcrs[HashAlg.SHA256])}
    for bank, pcr in check.quote.attested.selection:
        genuine = values[bank][pcr]
        for wrong in changed(genuine):
            values[bank][pcr] = wrong
            assert check.quote.covering(values) is None
        values[bank][pcr] = genuine
    assert check.quote.covering(values) is not None


def test_values_cut_at_other_places_are_not_covered() -> None:
    """The digest is over the concatenation alone; a byte moved from one PCR to the next leaves it as it is."""
    check = checked(ENTRY_A, ENTRY_A.quotes[0])
    assert check.quote is not None
    values = dict(ENTRY_A.pcrs[HashAlg.SHA256])
    values[0], values[1] = values[0][:-1], values[0][-1:] + values[1]
    assert check.quote.covering({HashAlg.SHA256: values}) is None


def test_a_quote_with_another_nonce_proves_nothing() -> None:
    parts = Parts("quote")
    check = verify(
        parse_quote(parts.attest), parse_signature(parts.signature), parse_tpm2b_public(parts.ak), nonce=b"another"
    )
    assert check.quote is None and codes(check) == {FindingCode.NONCE_MISMATCH}


def test_a_signature_by_another_key_proves_nothing() -> None:
    a, others = Parts("quote"), Entry(HOST_A.parent, {}).read("b-secureboot-off/ak.pub")
    check = verify(parse_quote(a.attest), parse_signature(a.signature), parse_tpm2b_public(others), nonce=NONCE)
    assert check.quote is None and codes(check) == {FindingCode.BAD_SIGNATURE}


@pytest.mark.parametrize(("kind", "ak"), [("quote", "akpss.pub"), ("quote", "akecc.pub"), ("quote-ecc", "ak.pub")])
def test_a_signature_of_another_scheme_proves_nothing(kind: str, ak: str) -> None:
    parts = Parts(kind)
    key = parse_tpm2b_public((HOST_A / ak).read_bytes())
    for each in (key, key.key):
        check = verify(parse_quote(parts.attest), parse_signature(parts.signature), each, nonce=NONCE)
        assert check.quote is None and FindingCode.BAD_SIGNATURE in codes(check)


def test_wrong_values_leave_a_quote_that_proves_no_values() -> None:
    parts = Parts("quote")
    values = {HashAlg.SHA256: {**ENTRY_A.pcrs[HashAlg.SHA256], 7: bytes(32)}}
    check = verify(
        parse_quote(parts.attest),
        parse_signature(parts.signature),
        parse_tpm2b_public(parts.ak),
        nonce=NONCE,
        values=values,
    )
    assert check.quote is not None and check.quote.pcrs is None
    assert codes(check) == {FindingCode.PCR_MISMATCH}
    assert check.quote.covering(ENTRY_A.pcrs) is not None


def unrestricted(parts: Parts) -> Public:
    """The genuine key as it would be without its attribute `restricted`: bit 16 of the attributes, from byte 4."""
    area = bytearray(parts.ak[2:])
    area[5] &= 0xFE
    return parse_tpmt_public(bytes(area))


def test_a_quote_by_an_unrestricted_key_proves_nothing() -> None:
    parts = Parts("quote")
    check = verify(parse_quote(parts.attest), parse_signature(parts.signature), unrestricted(parts), nonce=NONCE)
    assert check.quote is None and codes(check) == {FindingCode.KEY_UNRESTRICTED}


def test_a_bank_that_is_switched_off_and_a_pcr_left_out_are_named() -> None:
    parts = Parts("quote")
    asked = PcrSelection(((HashAlg.SHA384, (0, 7)), (HashAlg.SHA256, (0, 7, 10, 14))))
    check = verify(
        parse_quote(parts.attest),
        parse_signature(parts.signature),
        parse_tpm2b_public(parts.ak),
        nonce=NONCE,
        asked=asked,
    )
    assert [(finding.code, finding.pcr) for finding in check.findings] == [
        (FindingCode.BANK_INACTIVE, None),
        (FindingCode.PCR_MISMATCH, 10),
    ]


def test_nobody_else_makes_a_verified_quote() -> None:
    parsed = parse_quote(Parts("quote").attest)
    with pytest.raises(TypeError):
        VerifiedQuote(parsed, b"name", HashAlg.SHA256, {}, object())
    check = checked(ENTRY_A, ENTRY_A.quotes[0])
    assert check.quote is not None
    with pytest.raises(TypeError):
        replace(check.quote, seal=None)


def test_what_is_no_quote_is_refused() -> None:
    attest = Parts("quote").attest
    certify = attest[:4] + b"\x80\x17" + attest[6:]
    for wrong in (b"", attest[:4], b"\0" + attest[1:], certify, attest + bytes(4096)):
        with pytest.raises(MalformedQuote):
            parse_quote(wrong)


@pytest.mark.parametrize(
    "wrong", ["", "0014", "0014000b", "0014000bffff", "0015000b0000", "00140012000100", "0005000b"]
)
def test_what_is_no_signature_is_refused(wrong: str) -> None:
    with pytest.raises(MalformedSignature):
        parse_signature(bytes.fromhex(wrong))


@given(st.binary(max_size=400))
@example(b"")
def test_no_bytes_crash_a_parser(data: bytes) -> None:
    for parse in (parse_quote, parse_signature, parse_tpm2b_public, parse_tpmt_public, parse_bare_key):
        for candidate in (data, Parts("quote-ecc").attest[:6] + data):
            try:
                parse(candidate)
            except Malformed as exc:
                assert str(exc).startswith("malformed ")


@given(st.data())
def test_a_quote_of_ones_own_verifies_with_every_scheme(data: st.DataObject) -> None:
    """What this package signs and reads with keys drawn here; the recorded quotes show that TPMs mean the same."""
    scheme = data.draw(st.sampled_from(list(SignatureScheme)))
    attest = Parts("quote").attest
    nonce = data.draw(st.binary(max_size=32))
    start = attest.index(NONCE)
    attest = attest[: start - 2] + len(nonce).to_bytes(2, "big") + nonce + attest[start + 32 :]
    key, signature = sign(attest, scheme, data.draw(st.sampled_from([HashAlg.SHA256, HashAlg.SHA384])))
    assert parse_quote(attest).extra_data == nonce
    assert verify(parse_quote(attest), parse_signature(signature), key, nonce=nonce).quote is not None
    assert verify(parse_quote(attest), parse_signature(signature), key, nonce=nonce + b"x").quote is None


RSA = rsa.generate_private_key(65537, 3072)
ECC = ec.generate_private_key(ec.SECP384R1())


def sign(message: bytes, scheme: SignatureScheme, alg: HashAlg) -> tuple[PublicKey, bytes]:
    head = scheme.to_bytes(2, "big") + alg.to_bytes(2, "big")
    if scheme is SignatureScheme.ECDSA:
        r, s = decode_dss_signature(ECC.sign(message, ec.ECDSA(alg.primitive)))
        return ECC.public_key(), head + b"".join(b"\0\x30" + each.to_bytes(48, "big") for each in (r, s))
    form: padding.AsymmetricPadding = padding.PKCS1v15()
    if scheme is SignatureScheme.RSAPSS:
        form = padding.PSS(padding.MGF1(alg.primitive), padding.PSS.MAX_LENGTH)
    value = RSA.sign(message, form, alg.primitive)
    return RSA.public_key(), head + len(value).to_bytes(2, "big") + value
