"""Two libvirt hosts: configuration, certificates and folders of two unprivileged session daemons."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from lab.errors import LabError
from lab.layout import ADDRESS, HostLayout, Lab
from lab.pki import Authority

CA_NAME = "Bartizan lab hosts CA"
# A certificate with less time than this is issued again by the next `prepare`.
RENEW_BEFORE = timedelta(days=30)


def prepare(lab: Lab) -> None:
    """Write everything the daemons read. Files that hold the wanted content already are not touched."""
    lab.state.joinpath("pki").mkdir(exist_ok=True, mode=0o700)
    authority = Authority.create(lab.ca, CA_NAME)
    stores = lab.base / "datastores"
    lab.user.folder(stores, 0o755)
    lab.user.folder(lab.shared_datastore)
    for host in lab.hosts:
        lab.user.folder(host.base)
        for folder in (
            host.datastore,
            host.runtime,
            host.config,
            host.config / "libvirt",
            host.base / "cache",
            host.base / "data",
            host.pki,
            host.qemu_pki,
        ):
            lab.user.folder(folder)
        _issue(lab, host, authority)
        lab.user.write(host.libvirtd_conf, _libvirtd_conf(host))
        lab.user.write(host.config / "libvirt" / "qemu.conf", _qemu_conf(host))
        _configure_swtpm(lab, host)


def host_command(lab: Lab, host: HostLayout, *, dies_with_caller: bool = False) -> tuple[list[str], dict[str, str]]:
    """Argument list and whole environment that run the host's libvirtd in the foreground as the lab's user.

    It stops on SIGTERM. Guests outlive it, as on any libvirt host: stop them first (`lab.guests.stop`).
    """
    argv = ["libvirtd", "--listen", "--config", str(host.libvirtd_conf)]
    return lab.user.command(argv, dies_with_caller=dies_with_caller), host.environment


def _libvirtd_conf(host: HostLayout) -> str:
    # Without -t no idle exit: that would drop the ephemeral secrets. Client certificates are always demanded.
    return f"""\
listen_tls = 1
listen_tcp = 0
listen_addr = "{ADDRESS}"
tls_port = "{host.tls_port}"
auth_tls = "none"
tls_no_verify_certificate = 0
key_file = "{host.pki}/serverkey.pem"
cert_file = "{host.pki}/servercert.pem"
ca_file = "{host.pki}/cacert.pem"
host_uuid = "{host.uuid}"
log_outputs = "3:stderr"
"""


def _qemu_conf(host: HostLayout) -> str:
    first, last = host.migration_ports
    # stdio_handler: without it libvirt starts a virtlogd, which nobody would stop.
    return f"""\
stdio_handler = "file"
migrate_tls_x509_cert_dir = "{host.qemu_pki}"
migrate_tls_x509_verify = 1
migrate_tls_force = 0
nbd_tls_x509_cert_dir = "{host.qemu_pki}"
nbd_tls_x509_verify = 1
migration_address = "{host.migration_address}"
migration_host = "{host.migration_address}"
migration_port_min = {first}
migration_port_max = {last}
"""


def _issue(lab: Lab, host: HostLayout, authority: Authority) -> None:
    """One server and one client certificate, under the names of libvirt's RPC and under QEMU's."""
    server_path = host.pki / "servercert.pem"
    if _is_current(server_path.read_bytes() if server_path.exists() else b"", authority):
        return
    addresses = [ADDRESS, host.migration_address]
    server = authority.issue(f"lab host {host.name}", dns=["localhost"], ips=addresses, server=True)
    client = authority.issue(f"lab host {host.name}", client=True)
    for folder, ca, pattern in (
        (host.pki, "cacert.pem", "{}{}.pem"),
        (host.qemu_pki, "ca-cert.pem", "{}-{}.pem"),
    ):
        lab.user.write(folder / ca, authority.certificate_pem, 0o644)
        for role, issued in (("client", client), ("server", server)):
            lab.user.write(folder / pattern.format(role, "key"), issued.key_pem)
    # Certificates after keys, and the one that is looked at last of all.
    for folder, pattern in ((host.qemu_pki, "{}-{}.pem"), (host.pki, "{}{}.pem")):
        for role, issued in (("client", client), ("server", server)):
            lab.user.write(folder / pattern.format(role, "cert"), issued.certificate_pem, 0o644)


def _is_current(pem: bytes, authority: Authority) -> bool:
    if not pem:
        return False
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, InvalidSignature):
        return False
    return certificate.not_valid_after_utc - datetime.now(UTC) > RENEW_BEFORE


def _configure_swtpm(lab: Lab, host: HostLayout) -> None:
    """The files that swtpm_setup wants in the user's own configuration folder, once per host."""
    if (host.config / "swtpm_setup.conf").exists():
        return
    argv = ["swtpm_setup", "--create-config-files", "skip-if-exist"]
    done = lab.user.run(argv, env=host.environment)
    if done.returncode != 0:
        raise LabError(f"swtpm_setup cannot configure host {host.name}: {done.stderr or done.stdout}")
