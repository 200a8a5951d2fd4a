"""Key providers and keys as they were last seen, as a plan needs to know it. Rows only; see kms_health.py."""

from typing import Final

from encryption.engine.options import KeyProvider, KeyState
from encryption.models import Key, KmsCluster, KmsServer, LockCause, VmSecurity

_GONE: Final = frozenset({Key.State.MISSING, Key.State.DESTROYED})
# What keeps keys from the host; a worker has them all the same.
_OF_HOST: Final = frozenset({LockCause.HOST_UNTRUSTED, LockCause.KEY_MISSING_ON_HOST})
_ENDED: Final = frozenset({Key.State.DEACTIVATED, Key.State.COMPROMISED})


def provider_state(cluster: KmsCluster | None) -> KeyProvider:
    """One server that answers is enough. UNTRUSTED: all that were looked at lack trust."""
    if cluster is None:
        return KeyProvider.NONE
    seen = set(cluster.servers.values_list("state", flat=True)) - {KmsServer.State.UNKNOWN}
    if KmsServer.State.CONNECTED in seen:
        return KeyProvider.CONNECTED
    if seen == {KmsServer.State.UNTRUSTED}:
        return KeyProvider.UNTRUSTED
    return KeyProvider.UNREACHABLE if seen else KeyProvider.UNKNOWN


def key_state(security: VmSecurity | None) -> KeyState:
    if security is not None and security.locked_at is not None and security.lock_cause not in _OF_HOST:
        return KeyState.LOCKED
    if security is None or security.key is None:
        return KeyState.NONE
    if security.key.state in _GONE:
        return KeyState.MISSING
    return KeyState.NOT_ACTIVE if security.key.state in _ENDED else KeyState.ACTIVE
