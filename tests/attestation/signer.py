"""A TPM in software as far as quotes go: it signs any PCR values. Proves nothing, so only for judging what follows."""

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.attest import parse_quote
from attestation.engine.tpm.pcrs import PcrSelection, PcrValues
from attestation.engine.tpm.public import Public, parse_tpmt_public
from attestation.engine.tpm.quote import QuoteCheck, verify
from attestation.engine.tpm.signature import parse_signature
from tests.attestation.emulator import sized

_AK_HEAD = bytes.fromhex("0023 000b 00050072 0000 0010 0018 000b 0003 0010")


class SoftwareTpm:
    """One attestation key (ECDSA on P-256), made anew for each."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        point = self._key.public_key().public_numbers()
        self.ak_area = _AK_HEAD + sized(point.x.to_bytes(32, "big")) + sized(point.y.to_bytes(32, "big"))

    @property
    def ak(self) -> Public:
        return parse_tpmt_public(self.ak_area)

    def attest(
        self, values: PcrValues, *, nonce: bytes, clock: int = 1_000, reset_count: int = 1
    ) -> tuple[bytes, bytes]:
        """TPMS_ATTEST over these values, and its TPMT_SIGNATURE."""
        selection = PcrSelection(tuple((bank, tuple(sorted(values[bank]))) for bank in values))
        digest = selection.digest(HashAlg.SHA256, values)
        assert digest is not None
        banks = b"".join(
            bank.to_bytes(2, "big") + b"\3" + sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
            for bank, pcrs in selection.banks
        )
        attest = bytes.fromhex("ff544347 8018") + sized(b"\0\x0b" + bytes(32)) + sized(nonce)
        attest += clock.to_bytes(8, "big") + reset_count.to_bytes(4, "big") + bytes(4) + b"\1" + bytes(8)
        attest += len(selection.banks).to_bytes(4, "big") + banks + sized(digest)
        r, s = decode_dss_signature(self._key.sign(attest, ec.ECDSA(HashAlg.SHA256.primitive)))
        return attest, bytes.fromhex("0018 000b") + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))

    def quote(self, values: PcrValues, *, nonce: bytes, reset_count: int = 1, values_sent: bool = True) -> QuoteCheck:
        """The same, verified, so that it can be appraised."""
        attest, signature = self.attest(values, nonce=nonce, reset_count=reset_count)
        sent = values if values_sent else None
        return verify(parse_quote(attest), parse_signature(signature), self.ak, nonce=nonce, values=sent)
