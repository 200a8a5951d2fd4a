"""Which controls of the panel can be used now, and what would make the others usable.

A control is tried: what the plan would refuse if it were set the other way is why it cannot be.
"""

from dataclasses import replace
from typing import Final

from encryption.engine.options import keys, vbs, vtpm
from encryption.engine.options.encryption import kept_states, wish_refusals
from encryption.engine.options.state import CurrentVm, DesiredVm, KeyProvider
from encryption.engine.options.steps import Finding

VTPM: Final = "vtpm"
SECURE_BOOT: Final = "secure_boot"
VBS: Final = "vbs"
VMOTION: Final = "encrypted_vmotion"
POLICY: Final = "policy"


def obstacles(current: CurrentVm, *, key_provider: KeyProvider) -> dict[str, tuple[Finding, ...]]:
    """By control; empty for one that can be used. `key_provider`: the VM's own, or the default one."""
    encrypted = frozenset(disk.target for disk in current.disks if disk.is_hard_disk and disk.is_encrypted)
    as_it_is = DesiredVm(current.has_key or bool(encrypted), encrypted, key_provider=key_provider)
    with_vtpm = replace(as_it_is, vtpm=not current.has_tpm, encrypt_home=as_it_is.encrypt_home or not current.has_tpm)
    other_boot = replace(as_it_is, secure_boot=not current.has_secure_boot)
    if current.hardware.has_vbs:
        other_boot = replace(other_boot, vbs=False)
    other_vbs = replace(as_it_is, vbs=not current.hardware.has_vbs)
    kept, no_keys = tuple(kept_states(current)), tuple(keys.refusals(current, as_it_is))
    of_vtpm = () if current.has_tpm else no_keys
    return {
        POLICY: (*wish_refusals(current, replace(as_it_is, encrypt_home=True)), *no_keys),
        VTPM: (*wish_refusals(current, with_vtpm), *vtpm.refusals(current, with_vtpm), *of_vtpm, *kept),
        SECURE_BOOT: (*wish_refusals(current, as_it_is), *vbs.refusals(current, other_boot), *kept),
        VBS: (*wish_refusals(current, as_it_is), *vbs.refusals(current, other_vbs), *kept),
        VMOTION: _fixed(current),
    }


def _fixed(current: CurrentVm) -> tuple[Finding, ...]:
    if not current.is_encrypted:
        return ()
    return (
        Finding(
            "vmotion_fixed",
            f"{current.name} is encrypted, and an encrypted VM always migrates encrypted",
            "decrypt the VM first; it stays at required until you change it",
        ),
    )
