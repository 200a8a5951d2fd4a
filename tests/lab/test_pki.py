"""The lab's CA, judged by the programs that have to accept its certificates."""

import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from lab.pki import Authority, PkiError


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "test CA")


def openssl_verify(folder: Path, certificate: bytes, *options: str) -> subprocess.CompletedProcess[str]:
    path = folder / "leaf.pem"
    path.write_bytes(certificate)
    argv = ["openssl", "verify", "-x509_strict", "-CAfile", str(folder / "ca" / "ca-cert.pem"), *options, str(path)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def request(names: list[str], key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "console")])
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
    # A request may ask for anything; being a CA is not for it to decide.
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def test_openssl_takes_a_server_certificate_for_its_names_only(tmp_path: Path, authority: Authority) -> None:
    issued = authority.issue("host a", dns=["localhost"], ips=["127.0.0.1"], server=True)
    server = ("-purpose", "sslserver")
    assert openssl_verify(tmp_path, issued.certificate_pem, *server, "-verify_hostname", "localhost").returncode == 0
    assert openssl_verify(tmp_path, issued.certificate_pem, *server, "-verify_ip", "127.0.0.1").returncode == 0
    assert openssl_verify(tmp_path, issued.certificate_pem, *server, "-verify_ip", "127.0.0.2").returncode != 0
    assert openssl_verify(tmp_path, issued.certificate_pem, "-purpose", "sslclient").returncode != 0


def test_openssl_takes_a_client_certificate_as_client_only(tmp_path: Path, authority: Authority) -> None:
    issued = authority.issue("console", client=True)
    assert openssl_verify(tmp_path, issued.certificate_pem, "-purpose", "sslclient").returncode == 0
    assert openssl_verify(tmp_path, issued.certificate_pem, "-purpose", "sslserver").returncode != 0


def test_gnutls_takes_the_chain(tmp_path: Path, authority: Authority) -> None:
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(authority.issue("host a", dns=["localhost"], server=True).certificate_pem)
    argv = ["certtool", "--verify", "--load-ca-certificate", str(tmp_path / "ca" / "ca-cert.pem")]
    argv += ["--verify-hostname", "localhost", "--infile", str(leaf)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The certificate is trusted" in done.stdout


def test_leaf_has_both_key_usages_that_libvirt_demands(authority: Authority) -> None:
    leaf = x509.load_pem_x509_certificate(authority.issue("host a", server=True, client=True).certificate_pem)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert usage.value.key_encipherment
    assert not usage.value.key_cert_sign


def test_create_twice_gives_the_same_authority(tmp_path: Path, authority: Authority) -> None:
    again = Authority.create(tmp_path / "ca", "test CA")
    assert again.certificate == authority.certificate
    assert openssl_verify(tmp_path, again.issue("x", client=True).certificate_pem).returncode == 0


def test_key_is_private_and_not_in_any_repr(tmp_path: Path, authority: Authority) -> None:
    assert stat.S_IMODE((tmp_path / "ca" / "ca-key.pem").stat().st_mode) == 0o600
    issued = authority.issue("x", client=True)
    assert "PRIVATE" not in repr(issued)
    assert "PrivateKey" not in repr(authority)


def test_a_folder_with_another_ca_is_refused(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(PkiError, match="is not named 'other CA'"):
        Authority.create(tmp_path / "ca", "other CA")


def test_a_ca_without_its_key_is_refused(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "ca" / "ca-key.pem").unlink()
    with pytest.raises(PkiError, match="cannot be read"):
        Authority.create(tmp_path / "ca", "test CA")


def test_a_ca_with_a_foreign_key_is_refused(tmp_path: Path, authority: Authority) -> None:
    Authority.create(tmp_path / "other", "test CA")
    (tmp_path / "other" / "ca-key.pem").replace(tmp_path / "ca" / "ca-key.pem")
    with pytest.raises(PkiError, match="do not belong together"):
        Authority.create(tmp_path / "ca", "test CA")


def test_a_leaf_without_purpose_is_refused(authority: Authority) -> None:
    with pytest.raises(PkiError, match="needs a purpose"):
        authority.issue("nobody")


def test_csr_becomes_a_client_certificate_and_no_ca(tmp_path: Path, authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = authority.sign_csr(request([], key))
    leaf = x509.load_pem_x509_certificate(pem)
    assert leaf.public_key() == key.public_key()
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert openssl_verify(tmp_path, pem, "-purpose", "sslclient").returncode == 0


def test_csr_of_a_server_keeps_its_names(tmp_path: Path, authority: Authority) -> None:
    pem = authority.sign_csr(request(["kms.example"], ec.generate_private_key(ec.SECP256R1())), client=False)
    options = ("-purpose", "sslserver", "-verify_hostname", "kms.example")
    assert openssl_verify(tmp_path, pem, *options).returncode == 0


def test_csr_of_a_server_without_names_is_refused(authority: Authority) -> None:
    with pytest.raises(PkiError, match="names no host"):
        authority.sign_csr(request([], ec.generate_private_key(ec.SECP256R1())), client=False)


def test_csr_signed_by_another_key_is_refused(authority: Authority) -> None:
    good = x509.load_pem_x509_csr(request([], ec.generate_private_key(ec.SECP256R1())))
    der = bytearray(good.public_bytes(serialization.Encoding.DER))
    # The last byte belongs to the signature's s.
    der[-1] ^= 1
    bad = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(PkiError, match="not signed by its own key"):
        authority.sign_csr(bad)


@pytest.mark.parametrize(
    "text", [b"", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
)
def test_csr_that_is_none_is_refused(authority: Authority, text: bytes) -> None:
    with pytest.raises(PkiError, match="cannot be parsed"):
        authority.sign_csr(text)


def test_csr_with_a_key_we_do_not_sign_is_refused(authority: Authority) -> None:
    with pytest.raises(PkiError, match="neither ECDSA nor RSA"):
        authority.sign_csr(request([], ed25519.Ed25519PrivateKey.generate()))
