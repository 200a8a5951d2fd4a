"""A VM's passphrases from its definition and a key server, with no help from the console that encrypted it.

Every server of the cluster is tried in order for every key-encryption key (KEK), whatever the one before said: a
replica may lag, and who recovers wants the key from wherever it is. What can be opened is returned although something
else cannot.

NOT checked: that the KMS is the one that the definition names (a server does not say which cluster it belongs to). A
wrong one has no such key, or one that does not open.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from encryption.adapters.kmip_client import KmipClient
from encryption.adapters.kmip_tls import Timeouts
from encryption.engine import keywrap
from encryption.engine.key_server import (
    KeyNotFound,
    KeyServer,
    KmsError,
    KmsProtocolError,
    KmsUnreachable,
    KmsUntrusted,
    NotPermitted,
    ServerAddress,
)
from encryption.engine.metadata import WrappedKey
from encryption.engine.secret import Secret
from encryption.recovery.kms_config import KmsConfig
from inventory.errors import Conflict, NotFound, Refused, ServiceError, Unavailable, Untrusted

OpenClient = Callable[[ServerAddress], KeyServer]

# Of several servers' answers the one that says most of the key decides what the failure is called.
_KINDS: tuple[tuple[type[KmsError], type[ServiceError]], ...] = (
    (KeyNotFound, NotFound),
    (NotPermitted, Refused),
    (KmsUntrusted, Untrusted),
    (KmsProtocolError, Conflict),
    (KmsUnreachable, Unavailable),
)


@dataclass(frozen=True, slots=True)
class OpenedKey:
    """A part of the VM, and the passphrase that opens it, as text."""

    part: WrappedKey
    passphrase: Secret


@dataclass(frozen=True, slots=True)
class LockedKey:
    """A part of the VM whose passphrase could not be had, and why."""

    part: WrappedKey
    error: ServiceError


@dataclass(frozen=True, slots=True)
class Unlocking:
    opened: tuple[OpenedKey, ...]
    locked: tuple[LockedKey, ...]


def unlock(parts: Iterable[WrappedKey], config: KmsConfig, open_client: OpenClient | None = None) -> Unlocking:
    """Get the KEKs, unwrap. Failures are values here; raises nothing that is expected."""
    wanted = tuple(parts)
    keks = _fetch(dict.fromkeys(part.kek_id for part in wanted), config, open_client or _kmip(config))
    opened: list[OpenedKey] = []
    locked: list[LockedKey] = []
    for part in wanted:
        kek = keks[part.kek_id]
        if isinstance(kek, ServiceError):
            locked.append(LockedKey(part, kek))
            continue
        try:
            data_key = keywrap.unwrap(kek, part.wrapped)
        except keywrap.UnwrapFailed:
            error = Conflict(
                "wrapped_key_unusable",
                f"the wrapped key does not open with key {part.kek_id!r}",
                hint="either this is another KMS than that of the virtual machine, or the definition is damaged",
            )
            locked.append(LockedKey(part, error))
        else:
            opened.append(OpenedKey(part, Secret(data_key.passphrase_text())))
    return Unlocking(tuple(opened), tuple(locked))


def key_path(folder: Path, part: WrappedKey) -> Path:
    return folder / f"{part.target}.key"


def check_free(folder: Path, parts: Iterable[WrappedKey]) -> None:
    """Make the folder (mode 0700) where it is missing. Raises Conflict when a key file is there already; Unavailable.

    Asked before the KMS is, which may record every access to a key.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise Unavailable("output_unusable", f"cannot make the folder {folder}: {exc.strerror}") from exc
    for part in parts:
        if os.path.lexists(key_path(folder, part)):
            raise _taken(key_path(folder, part))


def write_key(folder: Path, key: OpenedKey) -> Path:
    """Write the passphrase, without a line end, into a new file of mode 0600. Raises Conflict, Unavailable."""
    path = key_path(folder, key.part)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.passphrase.reveal())
            file.flush()
            os.fsync(descriptor)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as exc:
        raise Unavailable("output_unusable", f"cannot write {path}: {exc.strerror}") from exc
    return path


def _taken(path: Path) -> Conflict:
    return Conflict("key_file_exists", f"{path} exists already", hint="remove it, or give another --output")


def _kmip(config: KmsConfig) -> OpenClient:
    timeouts = Timeouts(connect=config.timeout_seconds, request=config.timeout_seconds)

    def open_client(address: ServerAddress) -> KeyServer:
        return KmipClient(address, config.tls, timeouts)

    return open_client


def _fetch(key_ids: Iterable[str], config: KmsConfig, open_client: OpenClient) -> dict[str, Secret | ServiceError]:
    """Each KEK, or why no server gave it."""
    keks: dict[str, Secret] = {}
    failures: dict[str, list[KmsError]] = {key_id: [] for key_id in key_ids}
    for address in config.servers:
        missing = [key_id for key_id in failures if key_id not in keks]
        if not missing:
            break
        try:
            with open_client(address) as server:
                for key_id in missing:
                    try:
                        keks[key_id] = server.get_key(key_id)
                    except (KeyNotFound, NotPermitted) as exc:
                        failures[key_id].append(exc)
        except KmsError as exc:
            # Of the server itself: it would say the same for the others.
            for key_id in missing:
                if key_id not in keks and not _answered(failures[key_id], address):
                    failures[key_id].append(exc)
    return {key_id: keks.get(key_id) or _all_failed(failures[key_id]) for key_id in failures}


def _answered(failures: list[KmsError], address: ServerAddress) -> bool:
    return any(failure.server == address for failure in failures)


def _all_failed(failures: list[KmsError]) -> ServiceError:
    for kind, error in _KINDS:
        for failure in failures:
            if isinstance(failure, kind):
                return error(failure.code, "; ".join(map(str, failures)), hint=failure.hint)
    first = failures[0]
    return Conflict(first.code, "; ".join(map(str, failures)), hint=first.hint)
