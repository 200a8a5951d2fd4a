"""Whether the keys that a plan needs can be had: the key provider as it was last seen, and the VM's own key.

What is known to fail is a refusal: no trust, a key that the key server does not have, a locked VM. What may be over by
the time the job asks is a warning: a key provider that did not answer. The worker asks the key server itself, so it
looks at none of this; nothing is written before the key is there.
"""

from collections.abc import Collection, Iterable
from typing import Final

from encryption.engine.options.state import CurrentVm, DesiredVm, KeyProvider, KeyState
from encryption.engine.options.steps import Finding, Step, StepKind

CODES: Final = frozenset(
    {
        "key_provider_untrusted",
        "key_provider_unreachable",
        "key_missing",
        "key_not_active",
        "vm_locked",
    }
)
_NEED_KEY: Final = frozenset(
    {
        StepKind.CREATE_KEY,
        StepKind.WRAP_SECRETS,
        StepKind.ENCRYPT_DISK,
        StepKind.ENCRYPT_NVRAM,
        StepKind.ENCRYPT_VTPM,
        StepKind.DECRYPT_DISK,
        StepKind.DECRYPT_NVRAM,
        StepKind.DECRYPT_VTPM,
    }
)


def need_key(steps: Collection[Step]) -> bool:
    return any(step.kind in _NEED_KEY for step in steps)


def refusals(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    """Of a plan that needs keys. That there is no key provider at all is said for the home."""
    if current.key_state is KeyState.LOCKED:
        yield Finding(
            "vm_locked",
            f"{current.name} is locked, and this needs its keys: {current.lock_reason}",
            "repair the cause, then unlock the VM",
        )
    elif current.key_state is KeyState.MISSING:
        yield Finding(
            "key_missing",
            f"The key of {current.name} is no longer at its key provider",
            "restore it there from the key server's backup, then check it under Key Providers",
        )
    if desired.key_provider is KeyProvider.UNTRUSTED:
        yield Finding(
            "key_provider_untrusted",
            "The key provider and this console do not trust each other",
            "establish trust under Key Providers, and check it there",
        )


def warnings(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    if desired.key_provider is KeyProvider.UNREACHABLE:
        yield Finding(
            "key_provider_unreachable",
            "No server of the key provider answered when they were last asked",
            "look under Key Providers; where none answers when this is applied, it ends before anything is changed",
        )
    if current.key_state is KeyState.NOT_ACTIVE:
        yield Finding(
            "key_not_active",
            f"The key of {current.name} is not active at its key provider any more",
            "give the VM a new key (Recrypt)",
        )
