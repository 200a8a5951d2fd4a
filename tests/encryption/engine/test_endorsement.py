"""Endorsement keys and certificates of a real TPM, and what is refused."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from encryption.adapters import swtpm
from encryption.engine import endorsement, tpm_command
from encryption.engine.endorsement import BadCertificate, Endorsement
from encryption.engine.secret import Secret
from encryption.engine.tpm_command import TpmRefused
from tests.encryption.real_tpm import certificate_for, endorsements, make_state

KEY = Secret(b"k" * 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encrypted state with certificates."""
    folder = tmp_path_factory.mktemp("tpm")
    make_state(folder / "plain")
    swtpm.convert(folder / "plain", folder / "tpm2", old=None, new=KEY)
    return folder / "tpm2"


@pytest.fixture(scope="module")
def found(made: Path) -> tuple[Endorsement, ...]:
    return endorsements(made, KEY)


def test_both_keys_are_those_that_the_hosts_authority_has_certified(found: tuple[Endorsement, ...]) -> None:
    assert [(one.kind, one.index) for one in found] == [("RSA 2048", 0x01C00002), ("ECC P-384", 0x01C00016)]
    for one in found:
        facts = endorsement.describe(one.certificate, one.public_key)
        assert facts.names_its_key, "the key that the TPM makes of the template is the one in its certificate"
        assert facts.issuer == "CN=swtpm-localca" and facts.not_before < datetime.now(UTC) < facts.not_after
        assert endorsement.load(endorsement.as_pem(one.certificate)) == one.certificate
        key = serialization.load_pem_public_key(endorsement.public_key_pem(one.public_key))
        assert key is not None
    other = endorsement.describe(found[0].certificate, found[1].public_key)
    assert not other.names_its_key


def test_a_tpm_without_certificates_still_has_its_key(tmp_path: Path) -> None:
    make_state(tmp_path / "tpm2", certificates=False)
    (only,) = endorsements(tmp_path / "tpm2")
    assert (only.kind, only.certificate) == ("RSA 2048", b"")


def test_a_certificate_of_another_authority_takes_the_place_of_a_locked_one(
    made: Path, found: tuple[Endorsement, ...]
) -> None:
    for one in found:
        certificate = endorsement.load(certificate_for(one.public_key))
        with swtpm.started(made, KEY) as transmit:
            tpm_command.startup(transmit)
            with pytest.raises(TpmRefused) as caught:
                tpm_command.nv_write(transmit, one.index, b"x")
            assert caught.value.code == 0x148, "TPM_RC_NV_LOCKED"
            endorsement.replace(transmit, one.index, certificate)
            with pytest.raises(TpmRefused):
                tpm_command.nv_write(transmit, one.index, b"x")
            tpm_command.shutdown(transmit)
        again = {each.index: each for each in endorsements(made, KEY)}
        assert again[one.index].certificate == certificate and again[one.index].public_key == one.public_key


def test_a_certificate_of_another_key_changes_nothing(made: Path, found: tuple[Endorsement, ...]) -> None:
    before = endorsements(made, KEY)
    foreign = endorsement.load(certificate_for(found[1].public_key))
    with swtpm.started(made, KEY) as transmit:
        tpm_command.startup(transmit)
        with pytest.raises(BadCertificate):
            endorsement.replace(transmit, found[0].index, foreign)
    assert endorsements(made, KEY) == before


def test_what_is_no_certificate_for_this_key(found: tuple[Endorsement, ...]) -> None:
    rsa, ecc = found
    now = datetime.now(UTC)
    good = endorsement.load(certificate_for(rsa.public_key))
    endorsement.check(good, rsa.public_key, now=now)
    for text, code in (
        (certificate_for(ecc.public_key), "certificate_of_another_key"),
        (certificate_for(rsa.public_key, authority=True), "certificate_of_authority"),
        (certificate_for(rsa.public_key, days=-1), "certificate_not_valid_now"),
        (certificate_for(rsa.public_key, padding=2000), "certificate_too_large"),
        (b"", "certificate_malformed"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate_malformed"),
        (certificate_for(rsa.public_key) * 2, "certificate_not_alone"),
        (b"x" * 20_000, "certificate_too_large"),
        (good[:-1], "certificate_malformed"),
    ):
        with pytest.raises(BadCertificate) as caught:
            endorsement.check(endorsement.load(text), rsa.public_key, now=now)
        assert caught.value.code == code, text[:40]
    with pytest.raises(BadCertificate, match="no endorsement key"):
        endorsement.kind_of(0x01C00099)
