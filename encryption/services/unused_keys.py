"""Keys that a job made, or may have made, at a key provider, and that protect nothing: told, and listed as keys.

None is destroyed here: that is for ever, and left to a person.
"""

from collections.abc import Callable, Mapping

from django.db import transaction

from encryption.engine.key_server import KeyServer
from encryption.models import Key, KmsCluster
from encryption.services.key_access import KeySession
from inventory import events
from inventory.errors import ServiceError
from inventory.models import Job, Severity

_NAMED = 3


def tell_unused(cluster: KmsCluster, unused: Mapping[str, str], job: Job) -> None:
    """`unused`: a key's identifier -> its name. One that has a row is in use, or was told before."""
    for key_id, name in unused.items():
        with transaction.atomic():
            key, created = Key.objects.get_or_create(cluster=cluster, key_id=key_id, defaults={"name": name})
            if created:
                events.record(
                    "key.unused",
                    f"Key {key} protects nothing: it was made as {name}, and its VM kept the key that it had; destroy "
                    "it under Key Providers if it is not wanted",
                    target=cluster, actor=job.actor, job=job, key_id=key.key_id, name=name,
                )  # fmt: skip


def tell_suspects(session: KeySession, names: set[str], job: Job) -> None:
    """Looks for keys under these names; where no key server answers, says which there may be."""
    left = set(names)
    for name in sorted(names):
        try:
            found = session.ask(_locate(name))
        except ServiceError as exc:
            _tell_unknown(session.cluster, left, exc, job)
            return
        left.discard(name)
        tell_unused(session.cluster, dict.fromkeys(found, name), job)


def _locate(name: str) -> Callable[[KeyServer], tuple[str, ...]]:
    return lambda server: server.locate(name=name)


def _tell_unknown(cluster: KmsCluster, names: set[str], exc: ServiceError, job: Job) -> None:
    named = ", ".join(sorted(names)[:_NAMED]) + (" ..." if len(names) > _NAMED else "")
    events.record(
        "key.unused",
        f"Up to {len(names)} keys that protect nothing may have been made at {cluster}, which did not answer; look "
        f"there for {named} (all end in {job.pk}): {exc}",
        target=cluster, actor=job.actor, job=job, severity=Severity.WARNING, code=exc.code, names=sorted(names),
    )  # fmt: skip
