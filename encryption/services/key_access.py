"""Worker side of the key providers: connections with failover, keys. Never in the web process."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, Self, TypeVar

from django.conf import settings
from django.utils import timezone

from encryption.adapters.kmip_tls import Timeouts
from encryption.engine import keywrap
from encryption.engine.key_server import (
    ClientTls,
    KeyOrder,
    KeyServer,
    KeyState,
    KmsError,
    KmsUnreachable,
    KmsUntrusted,
    ServerAddress,
    WrongState,
)
from encryption.engine.secret import Secret
from encryption.models import Key, KmsCluster, KmsServer
from encryption.services.kms_state import note_connected, note_failure, service_error
from inventory import events, jobs
from inventory.authorize import SYSTEM
from inventory.errors import Conflict, NotFound, ServiceError, Untrusted
from inventory.models import Event, Host, Job, VirtualMachine
from inventory.services import console_key as console_keys

T = TypeVar("T")
LABEL: Final = "bartizan"
# In a session: the KEK that the present VM has and the one that it gets.
_KEPT_KEYS: Final = 2
_NOTED_AT_ONCE: Final = 20
_JUST_LOST: Final = timedelta(seconds=60)
_DOUBTFUL_SECONDS: Final = 2.0


def console_key() -> Secret:
    return Secret(console_keys.console_key())


def open_client(cluster: KmsCluster, server: KmsServer, timeout: float | None = None) -> KeyServer:
    """A client that connects with its first request. `timeout` in seconds, where it is not to be the usual one."""
    if not cluster.trusted_pem:
        raise Untrusted(
            "kms_server_not_trusted",
            f"no certificate is trusted yet for {cluster}",
            hint="trust its CA under Key Providers",
        )
    if not cluster.client_certificate_pem:
        raise Untrusted(
            "kms_client_certificate_missing",
            f"this console has no client certificate for {cluster}",
            hint="create a client key, have its request signed, install the certificate",
        )
    key = unsealed(cluster, bytes(cluster.client_key_sealed))
    return client_with(cluster, server, cluster.client_certificate_pem, key, timeout)


def client_with(
    cluster: KmsCluster, server: KmsServer, certificate_pem: str, key: Secret, timeout: float | None = None
) -> KeyServer:
    """A client that shows this certificate. Raises KmsUntrusted for PEM that cannot be used."""
    tls = ClientTls(ca_pem=cluster.trusted_pem.encode(), certificate_pem=certificate_pem.encode(), key_pem=key)
    seconds = timeout or float(settings.KMIP_TIMEOUT_SECONDS)
    # Here and not above: PyKMIP takes a third of a second to import, and the web process never needs it.
    from encryption.adapters.kmip_client import KmipClient

    return KmipClient(ServerAddress(server.host, server.port), tls, Timeouts(connect=seconds, request=seconds))


def unsealed(cluster: KmsCluster, sealed: bytes) -> Secret:
    """A private key of ours for this cluster, out of the database. Raises Untrusted under another console key."""
    try:
        return keywrap.unwrap(console_key(), sealed)
    except keywrap.UnwrapFailed as exc:
        raise Untrusted(
            "client_key_sealed_otherwise",
            f"the client key for {cluster} was sealed under another console key",
            hint="restore that console key, or create a new client key",
        ) from exc


class KeySession:
    """Requests to one key provider over one connection. For one thread (and its own, `ask_ahead`); a context manager.

    The first server that answers is kept, and the next is taken when it is lost. One that was lost within the last
    minute is asked after the others and not waited for long, so that work for a provider that hangs delays little
    else. Only a server that cannot be reached or trusted is passed over. A request whose outcome is not known is not
    repeated elsewhere: `use` must itself look for what it may have made. What the server says of a key is final.
    """

    def __init__(self, cluster: KmsCluster) -> None:
        """Connects to nothing yet."""
        self.cluster = cluster
        self._open: tuple[KmsServer, KeyServer] | None = None
        self._fetched: dict[uuid.UUID, Secret] = {}
        self._used: set[uuid.UUID] = set()
        self._lent: Mapping[uuid.UUID, Secret] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up when nothing is under way, forgets the keys that were fetched last, notes when they were used."""
        if self._thread is not None:
            self._thread.shutdown()
        self._note_uses()
        self._fetched.clear()
        self._lent = {}
        self._hang_up()

    def ask_ahead(self, use: Callable[[KeyServer], None]) -> None:
        """Runs `use` with the server in use in a thread of its own, while this one is at other work. Other requests
        wait for its end. `use` keeps its failures to itself, and reads and writes no rows.

        Does nothing while no server is connected.
        """
        if self._open is None:
            return
        self.wait()
        self._thread = self._thread or ThreadPoolExecutor(1, "key-server")
        self._ahead = self._thread.submit(use, self._open[1])

    def wait(self) -> None:
        """Until nothing is under way. Raises what is a bug in `use`."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.result()

    def lend(self, keks: Mapping[uuid.UUID, Secret]) -> None:
        """KEKs that `fetch` then need not ask for, by the primary keys of their rows; instead of those lent before."""
        self._lent = keks

    def ask(self, use: Callable[[KeyServer], T]) -> T:
        """Runs `use` with the server in use, or the first of the cluster that answers. Raises ServiceError."""
        self.wait()
        failures: list[KmsError] = []
        for server in self._candidates():
            asked_at = timezone.now()
            try:
                result = use(self._client(server))
            except (KmsUnreachable, KmsUntrusted) as exc:
                self._hang_up()
                note_failure(server, exc, asked_at=asked_at)
                failures.append(exc)
                if isinstance(exc, KmsUnreachable) and exc.outcome_unknown:
                    break
            except KmsError as exc:
                raise service_error(exc) from exc
            else:
                if server.state != KmsServer.State.CONNECTED:
                    note_connected(server)
                return result
        if not failures:
            raise Conflict("no_key_server", f"{self.cluster} has no server", hint="add one under Key Providers")
        raise _all_failed(failures) from failures[0]

    def fetch(self, key: Key) -> Secret:
        """The KEK itself, which is noted as used. One that several VMs in a row share is asked for once."""
        kek = self._fetched.pop(key.pk, None) or self._lent.get(key.pk)
        if kek is None:
            kek = self.ask(lambda server: server.get_key(key.key_id))
        while len(self._fetched) >= _KEPT_KEYS:
            del self._fetched[next(iter(self._fetched))]
        self._fetched[key.pk] = kek
        self._used.add(key.pk)
        if len(self._used) >= _NOTED_AT_ONCE:
            self._note_uses()
        return kek

    def _note_uses(self) -> None:
        if self._used:
            Key.objects.filter(pk__in=self._used).update(**_use())
            self._used.clear()

    def _candidates(self) -> Iterator[KmsServer]:
        first = self._open[0] if self._open else None
        if first is not None:
            yield first
        now = timezone.now()
        others = (server for server in self.cluster.servers.all() if server != first)
        yield from sorted(others, key=lambda server: _was_just_lost(server, now))

    def _client(self, server: KmsServer) -> KeyServer:
        if self._open is None:
            usual = float(settings.KMIP_TIMEOUT_SECONDS)
            seconds = min(_DOUBTFUL_SECONDS, usual) if _was_just_lost(server, timezone.now()) else usual
            self._open = (server, open_client(self.cluster, server, seconds))
        return self._open[1]

    def _hang_up(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def _was_just_lost(server: KmsServer, now: datetime) -> bool:
    if server.state != KmsServer.State.UNREACHABLE or server.checked_at is None:
        return False
    return now - server.checked_at < _JUST_LOST


def with_key_server(cluster: KmsCluster, use: Callable[[KeyServer], T]) -> T:
    """`KeySession.ask` for a single request."""
    with KeySession(cluster) as session:
        return session.ask(use)


def _all_failed(failures: list[KmsError]) -> ServiceError:
    """The first server's failure with its remedy, and what became of the others."""
    found = service_error(failures[0])
    if len(failures) == 1:
        return found
    return type(found)(found.code, "; ".join(str(one) for one in failures), hint=found.hint)


def make_key(
    cluster: KmsCluster, vm: VirtualMachine, *, name: str, job: Job, about: VirtualMachine | Host | None = None
) -> Key:
    """Creates and activates a KEK at the KMS. `name` is unique to this job, so that a repeated call finds it again.

    `about`: whose event it is, where `vm` has no row yet.
    """
    with KeySession(cluster) as session:
        return session_key(session, vm, name=name, job=job, about=about)


def session_key(
    session: KeySession, vm: VirtualMachine, *, name: str, job: Job, about: VirtualMachine | Host | None = None
) -> Key:
    """`make_key` over a connection that is there."""
    key_id = session.ask(_creator(vm, name, job))
    key, created = Key.objects.update_or_create(
        cluster=session.cluster, key_id=key_id, defaults={"name": name, "state": Key.State.ACTIVE}
    )
    if created:
        tell_created(key, vm, job, about)
    return key


def made_kek(session: KeySession, vm: VirtualMachine, *, name: str, job: Job) -> tuple[str, Secret]:
    """Creates, activates and fetches a KEK; its identifier and the key itself. No row is written by this."""
    create = _creator(vm, name, job)

    def use(server: KeyServer) -> tuple[str, Secret]:
        key_id = create(server)
        return key_id, server.get_key(key_id)

    return session.ask(use)


def key_order(vm: VirtualMachine, name: str) -> KeyOrder:
    """A KEK for a VM, which the key server's own administrators can tell by the name and the label."""
    return KeyOrder(name, {LABEL: f"vm {vm.name} {vm.uuid}"})


def _creator(vm: VirtualMachine, name: str, job: Job) -> Callable[[KeyServer], str]:
    """Creates and activates a key and gives its identifier; called again, it looks for what it may have made."""
    tries, order = 0, key_order(vm, name)

    def create(server: KeyServer) -> str:
        nonlocal tries
        tries += 1
        # Looked for only where it can be: on many servers a search by name takes the longer the more keys there are.
        found = server.locate(name=name) if tries > 1 or job.attempts > 1 else ()
        key_id = found[0] if found else server.create_key(name=order.name, labels=order.labels)
        try:
            server.activate(key_id)
        except WrongState as exc:
            if exc.state is not KeyState.ACTIVE:  # as an earlier try, or the server itself, made it
                raise
        return key_id

    return create


def used_key(cluster: KmsCluster, key_id: str, name: str) -> Key:
    """The row, not written yet, of a key that the running job has made and fetched."""
    return Key(cluster=cluster, key_id=key_id, name=name, state=Key.State.ACTIVE, **_use())


def tell_created(key: Key, vm: VirtualMachine, job: Job, about: VirtualMachine | Host | None = None) -> None:
    created_event(key, vm, job, about).save(force_insert=True)


def created_event(key: Key, vm: VirtualMachine, job: Job, about: VirtualMachine | Host | None = None) -> Event:
    """The row of that event, not written yet."""
    return events.draft(
        "key.created", f"Key {key} created at {key.cluster} for {vm}", target=about or vm, actor=job.actor, job=job,
        data={"key_id": key.key_id, "kms": key.cluster.name},
    )  # fmt: skip


@contextmanager
def fetched_key(key: Key, session: KeySession | None = None) -> Iterator[Secret]:
    """The KEK itself, from the KMS, for the time of the block; over `session` where that is of the key's provider."""
    if session is not None and session.cluster.pk == key.cluster_id:
        yield session.fetch(key)
        return
    with KeySession(key.cluster) as own:
        kek = own.fetch(key)
    yield kek


def _use() -> dict[str, Any]:
    """Who uses a key now, and what for."""
    job = jobs.running()
    return {
        "last_used_at": timezone.now(),
        "last_used_by": job.actor if job else SYSTEM.username,
        "last_used_for": f"{jobs.label(job)} of {job.target_name}"[:340]
        if job
        else "Check by this console, without a task",
    }


def cluster_of(job: Job) -> KmsCluster:
    found = KmsCluster.objects.filter(pk=job.target_id).first()
    if found is None:
        raise NotFound("key_provider_not_found", f"the key provider {job.target_name} is gone")
    return found


def new_key_name(vm: VirtualMachine, job_id: uuid.UUID) -> str:
    """What a KMS administrator sees: whose key it is."""
    return f"bartizan/{vm.uuid}/{job_id}"
