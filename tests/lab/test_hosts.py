"""What the two daemons find to read."""

import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import hosts, layout
from lab.layout import HostLayout, Lab
from lab.user import ensure_user


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name:
        # As the user that the lab really has: swtpm_setup wants to configure the whole machine when root asks.
        Path(name).chmod(0o755)
        made = layout.load_or_create(Path(name), ensure_user())
        assert made.base.parent == Path(name)
        hosts.prepare(made)
        yield made


def settings(path: Path) -> dict[str, str]:
    pairs = (line.split(" = ") for line in path.read_text().splitlines())
    return {key: value.strip('"') for key, value in pairs}


def files(lab: Lab) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in lab.base.rglob("*") if path.is_file()}


def verify(host: HostLayout, certificate: Path, purpose: str, *options: str) -> int:
    argv = ["openssl", "verify", "-CAfile", str(host.pki / "cacert.pem"), "-purpose", purpose, *options]
    return subprocess.run([*argv, str(certificate)], capture_output=True, check=False).returncode


def test_each_daemon_has_its_own_identity_ports_and_certificates(lab: Lab) -> None:
    found = []
    for host in lab.hosts:
        daemon = settings(host.libvirtd_conf)
        qemu = settings(host.config / "libvirt" / "qemu.conf")
        assert daemon["listen_tls"] == "1"
        assert daemon["listen_tcp"] == "0"
        assert daemon["listen_addr"] == "127.0.0.1"
        assert daemon["tls_no_verify_certificate"] == "0"
        assert qemu["migrate_tls_x509_verify"] == qemu["nbd_tls_x509_verify"] == "1"
        for path in (daemon["key_file"], daemon["cert_file"], daemon["ca_file"], qemu["migrate_tls_x509_cert_dir"]):
            assert Path(path).exists()
        found.append((daemon["host_uuid"], daemon["tls_port"], qemu["migration_port_min"], qemu["migration_address"]))
    assert all(one != other for one, other in zip(*found, strict=True))


def test_certificates_are_good_for_the_addresses_and_purposes(lab: Lab) -> None:
    for host in lab.hosts:
        for address in ("127.0.0.1", host.migration_address):
            assert verify(host, host.pki / "servercert.pem", "sslserver", "-verify_ip", address) == 0
            assert verify(host, host.qemu_pki / "server-cert.pem", "sslserver", "-verify_ip", address) == 0
        assert verify(host, host.pki / "clientcert.pem", "sslclient") == 0
        assert verify(host, host.qemu_pki / "client-cert.pem", "sslclient") == 0
        assert verify(host, host.pki / "clientcert.pem", "sslserver") != 0


def test_keys_and_folders_are_private(lab: Lab) -> None:
    keys = list(lab.base.rglob("*key.pem"))
    assert len(keys) == 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    for host in lab.hosts:
        assert stat.S_IMODE(host.datastore.stat().st_mode) == 0o700
    # The CA's key stays with the caller; no daemon can read it.
    assert not any(path.name == "ca-key.pem" for path in lab.base.rglob("*"))
    assert stat.S_IMODE(lab.ca.parent.stat().st_mode) == 0o700


def test_preparing_again_touches_no_file(lab: Lab) -> None:
    before = files(lab)
    hosts.prepare(lab)
    assert files(lab) == before


def test_certificates_of_another_ca_are_issued_again(lab: Lab) -> None:
    old = (lab.host("a").pki / "servercert.pem").read_bytes()
    for path in lab.ca.iterdir():
        path.unlink()
    hosts.prepare(lab)
    host = lab.host("a")
    assert (host.pki / "servercert.pem").read_bytes() != old
    assert verify(host, host.pki / "servercert.pem", "sslserver") == 0


def test_the_command_listens_in_the_foreground_and_never_ends_from_idleness(lab: Lab) -> None:
    host = lab.host("b")
    argv, environment = hosts.host_command(lab, host)
    assert argv[-4:] == ["libvirtd", "--listen", "--config", str(host.libvirtd_conf)]
    assert environment["XDG_RUNTIME_DIR"] == f"{lab.base}/b/run"
    assert environment["HOME"] == f"{lab.base}/b"
    # Nothing of the caller's environment gets in.
    assert not {"USER", "LD_LIBRARY_PATH", "DISPLAY"} & environment.keys()


def test_every_host_can_have_a_tpm(lab: Lab) -> None:
    for host in lab.hosts:
        assert (host.config / "swtpm_setup.conf").is_file()
