"""Key providers: clusters of KMIP key servers, and the two directions of trust with them.

The web process writes addresses and certificates only. Everything that needs the client's private key, or a
connection, is a job on a worker, which has the console key (settings.CONSOLE_KEY).
"""

from functools import partial
from typing import Final
from uuid import UUID

from cryptography import x509
from django.db import transaction
from django.db.models import Max, Q, QuerySet

from encryption.models import Key, KmsCluster, KmsServer
from encryption.services import certificates, kms_alarms, messages
from inventory import events, jobs
from inventory.alarms import drop_alarms
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Job, Severity, TargetKind
from inventory.services.addresses import checked_host

CREATE_CLIENT_KEY: Final = jobs.register(jobs.JobKind("encryption.create_client_key", "Create client key"))
CHECK: Final = jobs.register(jobs.JobKind("encryption.check_key_provider", "Check key provider", queue=messages.QUEUE))
MANAGE: Final = "encryption.manage_key_servers"
READ: Final = "encryption.read_key_servers"
MAX_NAME: Final = 80


def clusters(*, actor: Actor) -> QuerySet[KmsCluster]:
    """All key providers with their servers, in two queries."""
    authorize(actor, READ)
    return KmsCluster.objects.prefetch_related("servers")


def cluster(cluster_id: UUID, *, actor: Actor) -> KmsCluster:
    authorize(actor, READ)
    return _there(KmsCluster.objects.filter(pk=cluster_id).first(), cluster_id)


def held(cluster_id: UUID, *, actor: Actor) -> KmsCluster:
    """For whoever changes it: see KmsClusterManager.hold."""
    authorize(actor, READ)
    return _there(KmsCluster.objects.hold(cluster_id), cluster_id)


def _there(found: KmsCluster | None, cluster_id: UUID) -> KmsCluster:
    if found is None:
        raise NotFound("key_provider_not_found", f"there is no key provider {cluster_id}")
    return found


@transaction.atomic
def add_cluster(*, name: str, actor: Actor, is_lab: bool = False, identity: UUID | None = None) -> KmsCluster:
    """A key provider without servers. The first one becomes the default.

    `identity`: the UUID by which the metadata of VMs names it, where another console knew it before.
    """
    authorize(actor, MANAGE)
    name = name.strip()
    if not name:
        raise Invalid("name_missing", "the key provider has no name", hint="give it one")
    if len(name) > MAX_NAME or not name.isprintable():
        raise Invalid(
            "name_invalid",
            "that name is too long or holds characters that cannot be printed",
            hint=f"at most {MAX_NAME} characters; it is written into the metadata of VMs",
        )
    if KmsCluster.objects.filter(name__iexact=name).exists():
        raise Conflict("name_taken", f"there is a key provider {name} already", hint="choose another name")
    is_default = not KmsCluster.objects.filter(is_default=True).exists()
    if identity is not None and KmsCluster.objects.filter(pk=identity).exists():
        raise Conflict("identity_taken", f"there is a key provider with the identity {identity} already")
    added = KmsCluster.objects.create(
        name=name, is_lab=is_lab, is_default=is_default, **({} if identity is None else {"id": identity})
    )
    events.record("kms.added", f"Key provider {name} added", target=added, actor=actor, default=is_default, lab=is_lab,
                  identity=str(added.pk))  # fmt: skip
    return added


@transaction.atomic
def add_provider(*, name: str, host: str, port: int, actor: Actor, identity: UUID | None = None) -> KmsCluster:
    """A key provider with its first server."""
    added = add_cluster(name=name, actor=actor, identity=identity)
    add_server(cluster_id=added.pk, host=host, port=port, actor=actor)
    return added


def server(server_id: UUID, *, actor: Actor) -> KmsServer:
    authorize(actor, READ)
    found = KmsServer.objects.select_related("cluster").filter(pk=server_id).first()
    if found is None:
        raise NotFound("key_server_not_found", f"there is no key server {server_id}")
    return found


def _held_server(server_id: UUID, *, actor: Actor) -> KmsServer:
    """As it is now, with its key provider held."""
    KmsCluster.objects.hold(server(server_id, actor=actor).cluster_id)
    return server(server_id, actor=actor)


@transaction.atomic
def add_server(*, cluster_id: UUID, host: str, port: int, actor: Actor) -> KmsServer:
    """One more server of the cluster, tried after those that are there."""
    authorize(actor, MANAGE)
    owner = held(cluster_id, actor=actor)
    host = _checked_address(owner, host, port)
    last = owner.servers.aggregate(last=Max("position"))["last"]
    added = KmsServer.objects.create(cluster=owner, host=host, port=port, position=0 if last is None else last + 1)
    events.record(
        "kms.server_added", f"Key server {added} added to {owner}", target=owner, actor=actor, server=str(added)
    )
    ask_check(owner.pk)
    return added


@transaction.atomic
def edit_server(*, server_id: UUID, host: str, port: int, actor: Actor) -> KmsServer:
    """Another address for a server. What was found out about the old one is forgotten."""
    authorize(actor, MANAGE)
    edited = _held_server(server_id, actor=actor)
    before = str(edited)
    host = _checked_address(edited.cluster, host, port, but=edited)
    if (edited.host, edited.port) == (host, port):
        return edited
    fresh = KmsServer(pk=edited.pk, cluster=edited.cluster, position=edited.position, host=host, port=port)
    fresh.save(force_update=True)
    events.record(
        "kms.server_edited", f"Key server {before} of {fresh.cluster} is at {fresh} now", target=fresh.cluster,
        actor=actor, server=str(fresh), before=before,
    )  # fmt: skip
    ask_check(fresh.cluster_id)
    return fresh


@transaction.atomic
def move_server(*, server_id: UUID, direction: str, actor: Actor) -> KmsServer:
    """Changes places with its neighbour, `direction` "up" (tried earlier) or "down". At the end nothing happens."""
    authorize(actor, MANAGE)
    if direction not in ("up", "down"):
        raise Invalid("direction_invalid", f"{direction[:20]!r} is no direction", hint="up or down")
    moved = _held_server(server_id, actor=actor)
    others = moved.cluster.servers
    if direction == "up":
        neighbour = others.filter(position__lt=moved.position).order_by("-position").first()
    else:
        neighbour = others.filter(position__gt=moved.position).order_by("position").first()
    if neighbour is None:
        return moved
    here, there = moved.position, neighbour.position
    last = moved.cluster.servers.aggregate(last=Max("position"))["last"]
    # By way of a free place: positions are unique at every moment.
    KmsServer.objects.filter(pk=moved.pk).update(position=last + 1)
    KmsServer.objects.filter(pk=neighbour.pk).update(position=here)
    KmsServer.objects.filter(pk=moved.pk).update(position=there)
    moved.position = there
    order = [str(one) for one in moved.cluster.servers.all()]
    events.record(
        "kms.servers_ordered", f"{moved.cluster}: servers are tried in the order {', '.join(order)}",
        target=moved.cluster, actor=actor, order=order,
    )  # fmt: skip
    return moved


@transaction.atomic
def remove_server(*, server_id: UUID, actor: Actor) -> None:
    authorize(actor, MANAGE)
    gone = _held_server(server_id, actor=actor)
    owner, name = gone.cluster, str(gone)
    if _has_living_keys(owner) and owner.servers.count() == 1:
        raise Conflict("key_server_needed", f"{name} is the only server of {owner}, which has keys in use")
    gone.delete()
    events.record(
        "kms.server_removed", f"Key server {name} removed from {owner}", target=owner, actor=actor,
        severity=Severity.WARNING, server=name,
    )  # fmt: skip
    kms_alarms.review_servers(owner)
    kms_alarms.review_certificates(owner)


@transaction.atomic
def remove_cluster(*, cluster_id: UUID, actor: Actor) -> None:
    authorize(actor, MANAGE)
    owner = held(cluster_id, actor=actor)
    if _has_living_keys(owner):
        raise Conflict(
            "key_provider_in_use",
            f"{owner} holds keys of this console's VMs",
            hint="decrypt those VMs and destroy the keys that protect nothing any more",
        )
    owner.keys.all().delete()
    events.record("kms.removed", f"Key provider {owner} removed", target=owner, actor=actor, severity=Severity.WARNING)
    owner.delete()
    drop_alarms(TargetKind.KMS_CLUSTER, [cluster_id])


@transaction.atomic
def set_default(*, cluster_id: UUID, actor: Actor) -> KmsCluster:
    """New keys come from the default provider."""
    authorize(actor, MANAGE)
    chosen = cluster(cluster_id, actor=actor)
    KmsCluster.objects.filter(is_default=True).update(is_default=False)
    chosen.is_default = True
    chosen.save(update_fields=["is_default"])
    events.record("kms.default_set", f"{chosen} is the default key provider now", target=chosen, actor=actor)
    return chosen


@transaction.atomic
def trust_server(*, cluster_id: UUID, certificate_pem: str, actor: Actor) -> KmsCluster:
    """The console trusts servers of this cluster that show a certificate issued by (or equal to) this one."""
    authorize(actor, MANAGE)
    owner = cluster(cluster_id, actor=actor)
    anchors = certificates.given(certificate_pem)
    owner.trusted_pem = certificates.text_of(anchors)
    owner.save(update_fields=["trusted_pem"])
    subjects = [certificates.subject(certificate) for certificate in anchors]
    events.record(
        "kms.server_trusted", f"{owner}: servers under {'; '.join(subjects)} are trusted", target=owner, actor=actor,
        fingerprints=[certificates.fingerprint(certificate) for certificate in anchors],
    )  # fmt: skip
    ask_check(owner.pk)
    return owner


@transaction.atomic
def request_client_key(*, cluster_id: UUID, actor: Actor) -> Job:
    """A worker makes a new client key and a signing request for it. The key in use stays until the new certificate."""
    authorize(actor, MANAGE)
    return jobs.start(CREATE_CLIENT_KEY, target=cluster(cluster_id, actor=actor), actor=actor)


@transaction.atomic
def install_client_certificate(*, cluster_id: UUID, certificate_pem: str, actor: Actor) -> KmsCluster:
    """Installs the certificate that a KMS administrator made from our CSR. It must be for that very key."""
    authorize(actor, MANAGE)
    owner = cluster(cluster_id, actor=actor)
    if not owner.client_csr_pem:
        raise Conflict("no_signing_request", f"{owner} has no signing request", hint="create a client key first")
    chain = certificates.given(certificate_pem)
    wanted = x509.load_pem_x509_csr(owner.client_csr_pem.encode()).public_key()
    if certificates.public_bytes(chain[0].public_key()) != certificates.public_bytes(wanted):
        raise Invalid(
            "certificate_of_another_key",
            f"the first certificate ({certificates.subject(chain[0])}) is not for the key of {owner}'s signing request",
            hint="have the request that is shown now signed, and put its certificate first",
        )
    owner.client_certificate_pem = certificates.text_of(chain)
    owner.client_key_sealed, owner.client_key_next_sealed = owner.client_key_next_sealed, b""
    owner.client_csr_pem = ""
    owner.save(
        update_fields=["client_certificate_pem", "client_key_sealed", "client_key_next_sealed", "client_csr_pem"]
    )
    events.record(
        "kms.client_certificate_installed",
        f"{owner}: client certificate {certificates.subject(chain[0])} installed",
        target=owner, actor=actor, fingerprint=certificates.fingerprint(chain[0]),
        not_after=chain[0].not_valid_after_utc.isoformat(),
    )  # fmt: skip
    ask_check(owner.pk)
    return owner


@transaction.atomic
def check(*, cluster_id: UUID, actor: Actor) -> Job:
    """A worker connects to every server of the cluster and notes what it finds."""
    authorize(actor, MANAGE)
    return jobs.start(CHECK, target=cluster(cluster_id, actor=actor), actor=actor)


def ask_check(cluster_id: UUID) -> None:
    """After a change: a worker looks at the servers soon, besides the schedule."""
    transaction.on_commit(partial(messages.send, "encryption.check_kms_cluster", str(cluster_id)))


def _checked_address(owner: KmsCluster, host: str, port: int, *, but: KmsServer | None = None) -> str:
    """The host as it is kept. Raises Invalid, or Conflict where another server than `but` has the address."""
    host = checked_host(host)
    if not 1 <= port <= 65535:
        raise Invalid("port_invalid", f"{port} is no port", hint="KMIP servers listen on 5696 as a rule")
    taken = owner.servers.filter(host__iexact=host, port=port)
    if but is not None:
        taken = taken.exclude(pk=but.pk)
    if taken.exists():
        raise Conflict("server_taken", f"{owner} has the server {host}:{port} already")
    return host


def _has_living_keys(owner: KmsCluster) -> bool:
    """Keys that exist at the KMS, or that something here still hangs on."""
    living = ~Q(state=Key.State.DESTROYED) | Q(wrapped_secrets__isnull=False) | Q(virtual_machines__isnull=False)
    return owner.keys.filter(living).exists()
