"""libvirt's errors told as ours. The numbers and texts were measured (libvirt 9.0, QEMU 7.2), not guessed.

libvirt's texts may quote a definition or a monitor command, so only the first line passes, and not at length.
"""

from typing import Final

import libvirt

from inventory.engine.hypervisor import (
    DomainMissing,
    HostUnreachable,
    HypervisorError,
    OperationRefused,
    SecretMissing,
    WrongKey,
)

MAX_TEXT: Final = 300

_CHILD: Final = "internal error: Child process ("
_EXITED: Final = ") unexpected exit status 1: "
_WRONG_KEY: Final = "Invalid password, cannot unlock any keyslot"
_WRONG_TPM_KEY: Final = "CMD_INIT: 0x101"

# What a failed connection says -> code, what to do. First match wins.
_CONNECT_CAUSES: Final = (
    (
        "Certificate does not match the hostname",
        "tls_name_mismatch",
        "the host's certificate is for another name: use that name in the URI, or issue one with this name",
    ),
    (
        "Failed to verify peer's certificate",
        "tls_untrusted",
        "the host's certificate is not trusted or is for another name: check its CA (pkipath) and its names",
    ),
    (
        "certificate",
        "tls_certificate",
        "put cacert.pem, clientcert.pem and clientkey.pem into the folder that pkipath names",
    ),
    ("TLS", "tls_failed", "check the certificates of both sides and that libvirt's TLS listener is on"),
    (
        "Host key verification failed",
        "ssh_host_key_unknown",
        "add the host's key to /etc/ssh/ssh_known_hosts on the worker's machine",
    ),
    ("Permission denied (", "ssh_denied", "put the worker's SSH key into the account on the host (keyfile=...)"),
    ("Connection refused", "connection_refused", "is libvirt's daemon running there, and listening?"),
    ("No route to host", "no_route", "check the address and the network"),
    ("Network is unreachable", "no_route", "check the address and the network"),
    ("timed out", "host_timeout", "check the address, the network and the firewall"),
    ("unable to resolve", "name_unknown", "the host's name is not in DNS: check the spelling"),
    ("Name or service not known", "name_unknown", "the host's name is not in DNS: check the spelling"),
    ("Could not resolve hostname", "name_unknown", "the host's name is not in DNS: check the spelling"),
    ("No such file or directory", "socket_missing", "is libvirt's daemon running, and is the path right?"),
    ("Permission denied", "permission_denied", "let the worker's user use libvirt's socket"),
    ("authentication", "authentication_failed", "check the certificates or keys that the URI names"),
)

# What a failed migration says (libvirt 9.0, QEMU 7.2) -> code, what to do. First match wins.
_MIGRATION_CAUSES: Final = (
    (
        "Unable to access credentials",
        "migration_tls_unavailable",
        "give both hosts certificates for migration: migrate_tls_x509_cert_dir in qemu.conf",
    ),
    (
        "known issuer",
        "migration_tls_untrusted",
        "the hosts' migration certificates come from different CAs: issue both from one",
    ),
    (
        "does not match the hostname",
        "migration_tls_name",
        "the target's migration certificate lacks the name or address under which it takes migrations (migration_host)",
    ),
    ("canceled by client", "migration_cancelled", ""),
    ("Failed to connect to remote libvirt URI", "target_unreachable", "check the target's migration URI and its TLS"),
    ("unable to connect to server", "target_unreachable", "check the target's migration address and its firewall"),
    ("Connection refused", "target_unreachable", "check the target's migration address and its firewall"),
    ("No route to host", "target_unreachable", "check the target's migration address and its firewall"),
    ("Unable to find an unused port", "migration_ports", "wait for other migrations, or widen migration_port_min/max"),
    ("active block job", "block_job_active", "wait until the job on its disk has ended"),
    ("guest CPU doesn't match", "cpu_incompatible", "choose a host with a processor that has these features"),
    ("incompatible with host CPU", "cpu_incompatible", "choose a host with a processor that has these features"),
    ("same host", "migration_same_host", "give each host an identity of its own (host_uuid in libvirtd.conf)"),
    ("not secured", "migration_tls_unavailable", "give both hosts certificates for migration"),
    ("TLS", "migration_tls_unavailable", "check the migration certificates of both hosts"),
)

_LOST: Final = frozenset({libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN})
_LOST_TEXTS: Final = (
    "client socket is closed",
    "End of file while reading data",
    "Cannot write data",
    "Cannot recv data",
    "keepalive",
)
_MISSING: Final = frozenset(
    {libvirt.VIR_ERR_NO_STORAGE_POOL, libvirt.VIR_ERR_NO_STORAGE_VOL, libvirt.VIR_ERR_NO_NETWORK}
)


def text_of(error: libvirt.libvirtError) -> str:
    """The first line of what libvirt says, shortened."""
    lines = (error.get_error_message() or "no reason given").strip().splitlines()
    line = lines[0] if lines else "no reason given"
    # "Child process (a whole qemu-img command line) unexpected exit status 1: what it said"
    said = line.rpartition(_EXITED)[2] if line.startswith(_CHILD) else line
    return said[:MAX_TEXT]


def connecting(error: libvirt.libvirtError, label: str) -> HypervisorError:
    """Why there is no connection."""
    text = error.get_error_message() or ""
    for sign, code, hint in _CONNECT_CAUSES:
        if sign in text:
            return HostUnreachable(code, f"host {label}: {text_of(error)}", hint=hint)
    return HostUnreachable(
        "host_unreachable", f"host {label}: {text_of(error)}", hint="check the URI and libvirt's daemon there"
    )


def is_lost(error: libvirt.libvirtError) -> bool:
    """Whether the connection itself broke."""
    text = error.get_error_message() or ""
    return error.get_error_code() in _LOST or any(sign in text for sign in _LOST_TEXTS)


def operating(error: libvirt.libvirtError, label: str, what: str) -> HypervisorError:
    """Why an operation on `what` failed."""
    code, text = error.get_error_code(), error.get_error_message() or ""
    if _WRONG_KEY in text:
        return WrongKey(
            "wrong_disk_key",
            f"{what}: a disk or the NVRAM cannot be opened with the key that the host was given",
            hint="its key was changed elsewhere, or the image is another VM's",
        )
    if "tpm-emulator" in text and _WRONG_TPM_KEY in text:
        return WrongKey(
            "vtpm_key_mismatch",
            f"{what}: vTPM key does not fit the state; nothing was changed",
            hint="the state is plain, or encrypted with another key: bring back the one that belongs to this VM's key",
        )
    if code == libvirt.VIR_ERR_NO_SECRET:
        return SecretMissing(
            "secret_missing",
            f"{what}: a key is not on host {label}",
            hint="unlock the VM: its keys are sent to the host again",
        )
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return DomainMissing("vm_missing", f"{what} is not on host {label}", hint="refresh the host")
    if is_lost(error):
        return HostUnreachable("host_lost", f"the connection to host {label} broke: {text_of(error)}", hint="try again")
    if code in _MISSING:
        return OperationRefused("storage_missing", f"{what}: {text_of(error)}")
    if code == libvirt.VIR_ERR_NO_SUPPORT:
        return OperationRefused("not_supported", f"{what}: host {label} does not support this: {text_of(error)}")
    if code == libvirt.VIR_ERR_OPERATION_INVALID:
        return OperationRefused("wrong_state", f"{what}: {text_of(error)}")
    return OperationRefused("host_refused", f"{what}: {text_of(error)}")


def migrating(error: libvirt.libvirtError, label: str, what: str) -> HypervisorError:
    """Why a migration away from host `label` failed."""
    text = error.get_error_message() or ""
    for sign, code, hint in _MIGRATION_CAUSES:
        if sign in text:
            return OperationRefused(code, f"{what}: {text_of(error)}", hint=hint)
    told = operating(error, label, what)
    if told.code == "host_refused":
        return OperationRefused("migration_failed", told.message, hint="look at the logs of both hosts' libvirt")
    return told
