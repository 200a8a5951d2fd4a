"""vTPM state as a host makes it, by swtpm_setup with a CA of its own; and certificates for its keys."""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from encryption.adapters import swtpm
from encryption.engine import endorsement, tpm_command
from encryption.engine.endorsement import Endorsement
from encryption.engine.secret import Secret


def make_state(folder: Path, *, certificates: bool = True) -> None:
    """Plain state in the new folder `folder`, its NV locked as libvirt has it locked."""
    authority = folder.parent / f"{folder.name}-ca"
    authority.mkdir(parents=True)
    folder.mkdir(parents=True)
    names = {"statedir": "", "signingkey": "/signkey.pem", "issuercert": "/issuercert.pem", "certserial": "/serial"}
    (authority / "localca.conf").write_text("".join(f"{name}={authority}{end}\n" for name, end in names.items()))
    (authority / "options").write_text("")
    (authority / "setup.conf").write_text(
        f"create_certs_tool={shutil.which('swtpm_localca')}\ncreate_certs_tool_config={authority}/localca.conf\n"
        f"create_certs_tool_options={authority}/options\n"
    )
    command = ["swtpm_setup", "--tpm2", "--tpmstate", str(folder), "--config", str(authority / "setup.conf")]
    command += ["--create-ek-cert", "--lock-nvram"] if certificates else []
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(authority)
    (folder / ".lock").unlink(missing_ok=True)


def endorsements(folder: Path, passphrase: Secret | None = None) -> tuple[Endorsement, ...]:
    with swtpm.started(folder, passphrase) as transmit:
        tpm_command.startup(transmit)
        return endorsement.read(transmit)


def certificate_for(public_key: bytes, *, authority: bool = False, days: int = 30, padding: int = 0) -> bytes:
    """A customer's CA certifies a public key (DER). PEM."""
    signer, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Customer CA")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vm's TPM")])
    key = serialization.load_der_public_key(public_key)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)  # type: ignore[arg-type]
        .serial_number(7).not_valid_before(now + timedelta(days=min(0, days) - 2))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )  # fmt: skip
    if padding:
        comment = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(padding))
        builder = builder.add_extension(comment, critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
