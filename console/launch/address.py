"""Where the console listens, and its certificate when that is not only this machine."""

import ipaddress
import re
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from console.launch.state import write_private
from console.launch.steps import LaunchError
from inventory.engine import crypto_policy

DEFAULT_LISTEN = "127.0.0.1:8440"
REGISTRAR_PORT = 8890  # Keylime's, which agents have in their settings
CERTIFICATE_DAYS = 397  # the longest that browsers accept of a server certificate
RENEW_DAYS = 30


@dataclass(frozen=True, slots=True)
class Listen:
    """A host (name or address, IPv6 without brackets) and a TCP port to listen on."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        address = _address(self.host)
        return address is not None and address.is_loopback

    @property
    def is_wildcard(self) -> bool:
        address = _address(self.host)
        return address is not None and address.is_unspecified

    @property
    def https(self) -> bool:
        """A password never crosses a network in clear: off loopback it is HTTPS, and there is no switch for it."""
        return not self.is_loopback

    @property
    def bind(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def url(self) -> str:
        host = socket.gethostname() if self.is_wildcard else self.host
        return f"{'https' if self.https else 'http'}://{_bracketed(host)}:{self.port}/"

    @property
    def local_host(self) -> str:
        """The address at which this machine itself reaches the console."""
        if self.is_wildcard:
            return "::1" if ":" in self.host else "127.0.0.1"
        return self.host

    @property
    def names(self) -> list[str]:
        """Host names and addresses by which browsers may come: Django's allowed hosts and the certificate's names."""
        names = ["127.0.0.1", "localhost", "::1"]
        if not self.is_loopback:
            names.append(socket.gethostname())
            names.extend(_own_addresses() if self.is_wildcard else [self.host])
        elif self.host not in names:
            names.append(self.host)
        return list(dict.fromkeys(names))

    @property
    def allowed_hosts(self) -> str:
        return ",".join(_bracketed(name) for name in self.names)


def parse_listen(text: str, *, given_as: str = "--listen") -> Listen:
    """`HOST:PORT` with an IPv6 address in brackets. Raises LaunchError for anything else."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", text)
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise LaunchError(f"{given_as} {text!r} is not HOST:PORT", hint=f"for example {DEFAULT_LISTEN}")
    return Listen(match[1] or match[2], int(match[3]))


def require_free(listen: Listen) -> None:
    """Raise LaunchError when the address is taken, is not this machine's, or the port is not ours to open.

    Somebody else may still take the port before the server does; then the server's own log says so.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except OSError as exc:
        raise LaunchError(
            f"cannot listen on {listen.bind}: {exc.strerror}", hint="choose another address with --listen HOST:PORT"
        ) from exc


def is_free(listen: Listen) -> bool:
    """Whether `require_free` would let it pass."""
    try:
        require_free(listen)
    except LaunchError:
        return False
    return True


def ensure_certificate(folder: Path, names: list[str], *, now: datetime) -> tuple[Path, Path, str]:
    """A self-signed certificate for `names` and its key, made anew when names are missing or its end is near.

    Returns the certificate's path, the key's path and the SHA-256 fingerprint to compare in the browser.
    """
    certificate_path, key_path = folder / "console.crt", folder / "console.key"
    wanted = _subject_names(names)
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        has = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        good = set(wanted) <= set(has) and certificate.not_valid_after_utc - now > timedelta(days=RENEW_DAYS)
        if good and key_path.exists():
            return certificate_path, key_path, _fingerprint(certificate)
    except FileNotFoundError:
        pass
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = crypto_policy.new_signing_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bartizan console")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    write_private(key_path, pem.decode())
    write_private(certificate_path, certificate.public_bytes(serialization.Encoding.PEM).decode())
    return certificate_path, key_path, _fingerprint(certificate)


def now() -> datetime:
    return datetime.now(UTC)


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _subject_names(names: list[str]) -> list[x509.GeneralName]:
    return [
        x509.DNSName(name) if (address := _address(name)) is None else x509.IPAddress(address) for name in names
    ]  # fmt: skip


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _own_addresses() -> list[str]:
    """The addresses this machine would use toward the outside. Connecting a UDP socket sends nothing."""
    found = []
    for family, outside in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # RFC 5737, RFC 3849
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((outside, 9))
                found.append(str(probe.getsockname()[0]))
        except OSError:
            continue  # no route of that family
    return found
