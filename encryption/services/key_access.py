"""Worker side of the key providers: our client key, connections with failover, keys. Never in the web process."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from encryption.adapters.kmip_client import KmipClient
from encryption.adapters.kmip_tls import Timeouts
from encryption.engine import keywrap
from encryption.engine.key_server import (
    ClientTls,
    KeyNotFound,
    KeyServer,
    KeyState,
    KmsError,
    KmsUnreachable,
    KmsUntrusted,
    NotPermitted,
    ServerAddress,
)
from encryption.engine.secret import Secret
from encryption.models import Key, KmsCluster, KmsServer
from inventory import events
from inventory.authorize import SYSTEM
from inventory.errors import Conflict, NotFound, Refused, ServiceError, Unavailable, Untrusted
from inventory.jobs import Progress
from inventory.models import Job, Severity, VirtualMachine

T = TypeVar("T")
LABEL: Final = "bartizan"


def service_error(exc: KmsError) -> ServiceError:
    """The named KMIP failure as what the caller of a service sees."""
    kinds: dict[type[KmsError], type[ServiceError]] = {
        KmsUnreachable: Unavailable,
        KmsUntrusted: Untrusted,
        KeyNotFound: NotFound,
        NotPermitted: Refused,
    }
    return kinds.get(type(exc), Conflict)(exc.code, str(exc), hint=exc.hint)


def create_client_key(job: Job, progress: Progress) -> None:
    """Makes the console's key pair for one key provider, seals it, and writes the CSR for its administrator."""
    cluster = _cluster(job)
    progress.step("creating the client key")
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bartizan {cluster.id}")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with transaction.atomic():
        cluster.client_key_next_sealed = keywrap.wrap(_console_key(), Secret(pem))
        cluster.client_csr_pem = request.public_bytes(serialization.Encoding.PEM).decode()
        cluster.save(update_fields=["client_key_next_sealed", "client_csr_pem"])
        events.record(
            "kms.client_key_created",
            f"{cluster}: new client key; its signing request waits for the KMS administrator",
            target=cluster, actor=job.actor, job=job,
        )  # fmt: skip


def check_key_provider(job: Job, progress: Progress) -> None:
    """Connects to each server in turn; the job fails when none is usable, and each server's row says why."""
    cluster = _cluster(job)
    servers = list(cluster.servers.all())
    if not servers:
        raise Conflict("no_key_server", f"{cluster} has no server", hint="add one")
    failure: ServiceError | None = None
    usable = 0
    for number, server in enumerate(servers):
        progress.step(f"connecting to {server}", total=len(servers))
        progress.advance(number)
        try:
            _probe(cluster, server)
            usable += 1
        except KmsError as exc:
            failure = service_error(exc)
            _note_failure(server, exc)
    if failure is not None and not usable:
        raise failure


def _probe(cluster: KmsCluster, server: KmsServer) -> None:
    began = time.monotonic()
    with _client(cluster, server) as client:
        client.locate(maximum=1)  # an operation needs both directions of trust; a query does not on every server
        info = client.query()
    server.latency_ms = round((time.monotonic() - began) * 1000)
    server.vendor = info.vendor[:200]
    _note(server, KmsServer.State.CONNECTED, "")


def _note_failure(server: KmsServer, exc: KmsError) -> None:
    state = KmsServer.State.UNTRUSTED if isinstance(exc, KmsUntrusted) else KmsServer.State.UNREACHABLE
    server.latency_ms = None
    _note(server, state, f"{exc}; {exc.hint}")


def _note(server: KmsServer, state: KmsServer.State, reason: str) -> None:
    """Events only for a change of state: a server that stays down does not fill the history."""
    changed = server.state != state
    server.state, server.state_reason, server.checked_at = state, reason[:500], timezone.now()
    server.save(update_fields=["state", "state_reason", "checked_at", "latency_ms", "vendor"])
    if changed:
        bad = state != KmsServer.State.CONNECTED
        events.record(
            "kms.server_lost" if bad else "kms.server_connected",
            f"Key server {server} of {server.cluster}: {state.label.lower()}" + (f": {reason}" if reason else ""),
            target=server.cluster, actor=SYSTEM, severity=Severity.ERROR if bad else Severity.INFO, server=str(server),
        )  # fmt: skip


def _console_key() -> Secret:
    if not settings.CONSOLE_KEY:
        raise Unavailable(
            "console_key_missing",
            "this process was started without the console key",
            hint="set BARTIZAN_CONSOLE_KEY_FILE for the workers",
        )
    return Secret(bytes.fromhex(settings.CONSOLE_KEY))


def _client(cluster: KmsCluster, server: KmsServer) -> KmipClient:
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
    try:
        key_pem = keywrap.unwrap(_console_key(), bytes(cluster.client_key_sealed))
    except keywrap.UnwrapFailed as exc:
        raise Untrusted(
            "client_key_sealed_otherwise",
            f"the client key for {cluster} was sealed under another console key",
            hint="restore that console key, or create a new client key",
        ) from exc
    tls = ClientTls(
        ca_pem=cluster.trusted_pem.encode(), certificate_pem=cluster.client_certificate_pem.encode(), key_pem=key_pem
    )
    seconds = float(settings.KMIP_TIMEOUT_SECONDS)
    return KmipClient(ServerAddress(server.host, server.port), tls, Timeouts(connect=seconds, request=seconds))


def with_key_server(cluster: KmsCluster, use: Callable[[KeyServer], T]) -> T:
    """Runs `use` with the first server of the cluster that answers.

    Only a server that cannot be reached or trusted is passed over. A request whose outcome is not known is not
    repeated elsewhere: `use` must itself look for what it may have made. What the server says of a key is final.
    """
    servers = list(cluster.servers.all())
    if not servers:
        raise Conflict("no_key_server", f"{cluster} has no server", hint="add one under Key Providers")
    failures: list[KmsError] = []
    for server in servers:
        try:
            with _client(cluster, server) as client:
                result = use(client)
            if server.state != KmsServer.State.CONNECTED:
                _note(server, KmsServer.State.CONNECTED, "")
            return result
        except (KmsUnreachable, KmsUntrusted) as exc:
            _note_failure(server, exc)
            failures.append(exc)
            if isinstance(exc, KmsUnreachable) and exc.outcome_unknown:
                break
        except KmsError as exc:
            raise service_error(exc) from exc
    raise service_error(failures[0]) from failures[0]


def make_key(cluster: KmsCluster, vm: VirtualMachine, *, name: str, job: Job) -> Key:
    """Creates and activates a KEK at the KMS. `name` is unique to this job, so that a repeated call finds it again."""

    def create(server: KeyServer) -> str:
        found = server.locate(name=name)
        key_id = found[0] if found else server.create_key(name=name, labels={LABEL: f"vm {vm.name} {vm.uuid}"})
        if server.state(key_id) is KeyState.PRE_ACTIVE:
            server.activate(key_id)
        return key_id

    key_id = with_key_server(cluster, create)
    key, created = Key.objects.update_or_create(
        cluster=cluster, key_id=key_id, defaults={"name": name, "state": Key.State.ACTIVE}
    )
    if created:
        events.record(
            "key.created", f"Key {key_id} created at {cluster} for {vm}", target=vm, actor=job.actor, job=job,
            key_id=key_id, kms=cluster.name,
        )  # fmt: skip
    return key


@contextmanager
def fetched_key(key: Key) -> Iterator[Secret]:
    """The KEK itself, from the KMS, for the time of the block. It is kept nowhere."""
    yield with_key_server(key.cluster, lambda server: server.get_key(key.key_id))


def _cluster(job: Job) -> KmsCluster:
    found = KmsCluster.objects.filter(pk=job.target_id).first()
    if found is None:
        raise NotFound("key_provider_not_found", f"the key provider {job.target_name} is gone")
    return found


def new_key_name(vm: VirtualMachine, job_id: uuid.UUID) -> str:
    """What a KMS administrator sees: whose key it is."""
    return f"bartizan/{vm.uuid}/{job_id}"
