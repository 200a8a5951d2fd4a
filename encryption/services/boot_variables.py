"""Secure Boot in the UEFI variables of a powered-off VM: keys and boot entries stay, see `engine/variable_store.py`.

The definition alone does not switch it off. Firmware without SMM, such as Debian's OVMF, enforces it, too, as long as
the variables say so; so they are switched with it, in clear or inside their LUKS image.
"""

from dataclasses import dataclass
from typing import Final

from encryption.adapters.image_files import ImageFileError
from encryption.engine import luks, variable_store
from encryption.engine.secret import Secret
from encryption.engine.variable_store import VariableStoreError
from encryption.engine.xts import SECTOR_BYTES, Xts
from encryption.models import Purpose
from encryption.services.change import Change
from encryption.services.parts import opens
from encryption.services.release import open_secrets
from inventory.errors import Conflict, ServiceError
from inventory.services.connections import HypervisorError, OperationRefused

_WAS_ON: Final = "variables_were_on"
_ENROLLED: Final = "keys_enrolled"


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file and the variables in it. `prefix` and `volume_key`: of the LUKS image, empty and None in clear."""

    content: bytes
    prefix: bytes
    volume_key: Secret | None

    @property
    def variables(self) -> bytes:
        payload = self.content[len(self.prefix) :]
        return payload if self.volume_key is None else Xts(self.volume_key).decrypt(payload, 0)

    def with_variables(self, variables: bytes) -> bytes:
        return self.prefix + (variables if self.volume_key is None else Xts(self.volume_key).encrypt(variables, 0))


def switch(change: Change, *, is_on: bool, template: str) -> None:
    """Before the definition is switched; can be repeated. Variables that were never made come from `template`, which
    has keys in it; for Secure Boot off libvirt makes them.

    Raises Conflict `variables_unreadable`, `variables_not_made`, `variables_full`.
    """
    path = change.facts.nvram_path
    if not path:
        return
    if change.facts.nvram_secret_uuid is None and not change.files.exist(path):
        if is_on:
            _make(change, path, template)
        return
    kept = _read(change, path)
    try:
        store = variable_store.parse(kept.variables)
    except VariableStoreError as exc:
        raise _unreadable(change, path, exc) from exc
    given = None
    if is_on and not store.has_platform_key:
        given = _template(change, template)
        change.progress.checkpoint(**{_ENROLLED: True})
    if _WAS_ON not in change.progress.job.checkpoint:
        change.progress.checkpoint(**{_WAS_ON: store.enforces_secure_boot})
    _write(change, path, kept, is_on=is_on, template=given)


def put_back(change: Change) -> None:
    """The definition was not switched, so the variables are as they were; keys that were enrolled stay, unasked.

    Raises Conflict `variables_not_put_back`.
    """
    was_on = change.progress.job.checkpoint.get(_WAS_ON)
    if was_on is None:
        return
    path = change.facts.nvram_path
    try:
        _write(change, path, _read(change, path), is_on=was_on, template=None)
    except (ServiceError, HypervisorError) as exc:
        raise Conflict(
            "variables_not_put_back",
            f"{change.vm}: its definition was not switched, and Secure Boot may stay {'off' if was_on else 'on'} in "
            f"its UEFI variables, {path}: {exc}",
            hint="apply the change again; if it is not wanted any more, switch Secure Boot back after that",
        ) from exc


def has_enrolled(change: Change) -> bool:
    return bool(change.progress.job.checkpoint.get(_ENROLLED))


def _make(change: Change, path: str, template: str) -> None:
    try:
        change.files.copy_variable_store(template, path)
    except (OperationRefused, ImageFileError) as exc:
        raise _not_made(change, template, exc) from exc


def _template(change: Change, path: str) -> bytes:
    try:
        content = change.hypervisor.read_file(path, offset=0, length=variable_store.MAX_BYTES + 1)
        if not variable_store.parse(content).has_platform_key:
            raise variable_store.NoKeys("no keys are enrolled in it")
    except (OperationRefused, VariableStoreError) as exc:
        raise _not_made(change, path, exc) from exc
    return content


def _not_made(change: Change, template: str, error: Exception) -> Conflict:
    return Conflict(
        "variables_not_made",
        f"{change.vm}: Secure Boot's keys cannot be taken from {template}: {error}",
        hint=f"look at that file on {change.vm.host}: it belongs to the firmware's package",
    )


def _unreadable(change: Change, path: str, error: Exception) -> Conflict:
    return Conflict(
        "variables_unreadable",
        f"{change.vm}: its UEFI variables in {path} cannot be read: {error}",
        hint="look at that file; where the VM boots with it, switch Secure Boot in the guest's firmware set-up",
    )


def _read(change: Change, path: str) -> _Kept:
    secret_uuid = change.facts.nvram_secret_uuid
    try:
        content = change.files.read(path, variable_store.MAX_BYTES + luks.PREFIX_BYTES)
        if secret_uuid is None:
            return _Kept(content, b"", None)
        prefix = content[: luks.parse(content).payload_offset]
        if (len(content) - len(prefix)) % SECTOR_BYTES:
            raise luks.BadHeader("its payload is not whole sectors")
        return _Kept(content, prefix, luks.unlock(prefix, _passphrase(change)))
    except (OperationRefused, ImageFileError, luks.LuksError) as exc:
        raise _unreadable(change, path, exc) from exc


def _passphrase(change: Change) -> Secret:
    row = next((one for one in change.rows() if one.purpose == Purpose.NVRAM and opens(change.facts, one)), None)
    if row is None:
        raise Conflict(
            "foreign_home", f"{change.vm}: this console has no key for its NVRAM", hint="import its keys first"
        )
    return next(one.passphrase for one in open_secrets([row]))


def _write(change: Change, path: str, kept: _Kept, *, is_on: bool, template: bytes | None) -> None:
    try:
        edit = variable_store.switched(kept.variables, is_on=is_on, template=template)
        prepared = kept.with_variables(edit.prepared)
        change.files.rewrite(path, kept.content, prepared)
        change.files.rewrite(path, prepared, kept.with_variables(edit.final))
    except variable_store.StoreFull as exc:
        raise Conflict(
            "variables_full", f"{change.vm}: its UEFI variables in {path} have no room for more: {exc}",
            hint="start the VM once, so that its firmware clears up, shut it down, then apply again",
        ) from exc  # fmt: skip
    except (OperationRefused, ImageFileError, VariableStoreError) as exc:
        raise _unreadable(change, path, exc) from exc
