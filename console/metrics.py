"""/metrics for Prometheus: counts and times of what the database and the broker know, in a fixed number of queries.

The names of hosts, key providers and syslog targets stand in labels, so only who may look at everything gets them: the
bearer of an API token with the role Auditor at the root, for one.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

from django.contrib.auth.decorators import login_not_required
from django.db.models import Count, Min, Model, Q
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as BrokerError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from typing_extensions import override

from attestation.models import HostAttestation, VerdictStatus
from console import broker
from console.api_auth import Token
from console.appliance.services import syslog_targets
from console.models import SyslogTarget
from encryption.models import Key, KmsServer, VmSecurity
from inventory.authorize import SYSTEM, VIEW_ALL, authorize
from inventory.models import Alarm, Event, EventChain, Host, Job, JobStatus, Severity, VirtualMachine

_BEARER: Final = Token()


@login_not_required  # knows its caller by token; a browser's session does as well
@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    user = _BEARER(request) if "Authorization" in request.headers else request.user
    if user is None or not user.is_authenticated:
        return HttpResponse(
            "an API token is needed: Authorization: Bearer bartizan_...\n",
            status=401, content_type="text/plain", headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    authorize(user, VIEW_ALL)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Console())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Console(Collector):
    @override
    def collect(self) -> Iterable[Metric]:
        now = timezone.now()
        yield from _jobs()
        yield from _inventory()
        yield from _protection()
        yield from _key_servers(now)
        yield from _keys(now)
        yield from _history()
        yield from _syslog(now)


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(f"bartizan_{name}", text, labels=labels)
    for given, value in values:
        family.add_metric(given, value)
    return family


def _counted(
    model: type[Model], field: str, known: Iterable[str], rows: Q | None = None
) -> list[tuple[tuple[str], float]]:
    """How many rows have each value of the field; values that none has count 0, so that alerts can rely on them."""
    counted = model._default_manager.filter(rows or Q()).order_by().values_list(field).annotate(number=Count("pk"))
    found = dict(counted)
    return [((value,), float(found.get(value, 0))) for value in known]


def _jobs() -> Iterator[Metric]:
    yield _gauge("jobs", "Jobs by state; ended ones for 90 days.", ("status",),
                 _counted(Job, "status", JobStatus.values))  # fmt: skip
    try:
        waiting = broker.waiting_messages()
    except (BrokerError, KombuError, OSError):
        waiting = {}
    yield _gauge("broker_up", "1 while the broker answers.", (), [((), float(bool(waiting)))])
    yield _gauge("queue_messages", "Messages that no worker has taken yet.", ("queue",),
                 (((queue,), float(number)) for queue, number in waiting.items()))  # fmt: skip


def _inventory() -> Iterator[Metric]:
    yield _gauge("hosts", "Hosts by state of their connection.", ("state",),
                 _counted(Host, "state", Host.State.values))  # fmt: skip
    yield _gauge("host_verdicts", "Hosts with a TPM enrolled, by what their attestation says now.", ("verdict",),
                 _counted(HostAttestation, "status", VerdictStatus.values))  # fmt: skip
    yield _gauge("alarms", "Alarms that are not over, by severity and whether somebody has acknowledged them.",
                 ("severity", "acknowledged"), _alarms())  # fmt: skip


def _alarms() -> Iterator[tuple[tuple[str, str], float]]:
    found = Alarm.objects.filter(cleared_at__isnull=True).order_by().values_list("severity").annotate(
        open=Count("pk", filter=Q(acknowledged_at__isnull=True)), known=Count("pk", filter=~Q(acknowledged_at=None))
    )  # fmt: skip
    by_severity = {severity: (unseen, known) for severity, unseen, known in found}
    for severity in Severity.values:
        unseen, known = by_severity.get(severity, (0, 0))
        yield (severity, "no"), float(unseen)
        yield (severity, "yes"), float(known)


def _protection() -> Iterator[Metric]:
    present = Q(is_present=True)
    counted = VirtualMachine.objects.aggregate(
        all=Count("pk", filter=present),
        home=Count("pk", filter=present & (Q(is_nvram_encrypted=True) | Q(is_tpm_encrypted=True))),
        tpm=Count("pk", filter=present & Q(is_tpm_encrypted=True)),
    )
    disks = VirtualMachine.objects.filter(present, disks__is_encrypted=True).distinct().count()
    yield _gauge("virtual_machines", "Virtual machines, all and those of which a part was seen encrypted.", ("part",),
                 [(("any",), counted["all"]), (("home",), counted["home"]), (("vtpm",), counted["tpm"]),
                  (("disk",), disks)])  # fmt: skip
    locked = VmSecurity.objects.filter(locked_at__isnull=False).count()
    yield _gauge("virtual_machines_locked", "Virtual machines whose keys cannot be had.", (), [((), locked)])


def _key_servers(now: datetime) -> Iterator[Metric]:
    servers = list(KmsServer.objects.select_related("cluster"))
    labels = ("provider", "server")
    named = [((server.cluster.name, f"{server.host}:{server.port}"), server) for server in servers]
    yield _gauge("key_server_up", "1 where the last look at a key server found it usable.", labels,
                 ((names, float(server.state == KmsServer.State.CONNECTED)) for names, server in named))  # fmt: skip
    yield _gauge("key_server_latency_seconds", "Time of its last answer.", labels,
                 ((names, server.latency_ms / 1000) for names, server in named
                  if server.latency_ms is not None))  # fmt: skip
    yield _gauge("key_server_certificate_remaining_seconds", "Until the key server's certificate ends.", labels,
                 ((names, (server.certificate_not_after - now).total_seconds()) for names, server in named
                  if server.certificate_not_after is not None))  # fmt: skip


def _keys(now: datetime) -> Iterator[Metric]:
    yield _gauge("keys", "Key-encryption keys known here, by their state at the key server.", ("state",),
                 _counted(Key, "state", Key.State.values))  # fmt: skip
    oldest = Key.objects.filter(virtual_machines__isnull=False).aggregate(oldest=Min("created_at"))["oldest"]
    age = [((), (now - oldest).total_seconds())] if oldest is not None else []
    yield _gauge("key_age_max_seconds", "Age of the oldest key that protects a virtual machine.", (), age)


def _history() -> Iterator[Metric]:
    head = EventChain.objects.values_list("sequence", "signed_sequence").first() or (0, 0)
    yield _gauge("events_sealed", "Events in the chained history.", (), [((), float(head[0]))])
    yield _gauge("events_unsigned", "Sealed events that no signed checkpoint vouches for yet.", (),
                 [((), float(head[0] - head[1]))])  # fmt: skip
    unsealed = Event.objects.filter(sequence__isnull=True).count()
    yield _gauge("events_unsealed", "Events that are not in the chain yet.", (), [((), float(unsealed))])


def _syslog(now: datetime) -> Iterator[Metric]:
    """Of a target of which nothing is known (UDP; no forwarder) there is no `up`."""
    found = [((str(one.row),), one) for one in syslog_targets.targets(actor=SYSTEM, now=now)]
    yield _gauge("syslog_target_up", "1 while the log collector takes what is sent.", ("target",),
                 ((names, float(one.state == SyslogTarget.State.UP)) for names, one in found
                  if one.state != SyslogTarget.State.UNKNOWN))  # fmt: skip
    yield _gauge("syslog_backlog_events", "Events that were not written to the log collector yet.", ("target",),
                 ((names, float(one.backlog)) for names, one in found))  # fmt: skip
