"""What can be wrong with a key server, by real TLS: each refused with a code of its own, in the page and the API.

A person asks for a check through the page and through the API; the worker's part is run here.
"""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import Settings

from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.models import KmsCluster, KmsServer
from encryption.services import key_access, kms_health
from inventory import jobs
from inventory.models import Job, JobStatus
from lab import kms
from lab.pki import Authority, Issued
from tests.api_client import Caller, caller
from tests.encryption.adapters.conftest import RunningKms, expired, kms_layout, kms_server, other_ca
from tests.encryption.adapters.fake_server import fake_server, tls_context
from tests.encryption.services.real_kms import connected

__all__ = ["kms_layout", "kms_server", "other_ca"]
pytestmark = pytest.mark.django_db


class Place:
    """A key provider that was connected to a real key server, and what a case then makes of it."""

    def __init__(self, provider: KmsCluster, server: RunningKms, other: Authority, folder: Path) -> None:
        self.provider, self.server, self.other, self.folder = provider, server, other, folder

    @property
    def authority(self) -> Authority:
        return Authority.create(self.server.layout.ca, kms.CA_NAME)

    def show(self, issued: Issued) -> None:
        """From now on the console shows this client certificate."""
        self.provider.client_certificate_pem = issued.certificate_pem.decode()
        self.provider.client_key_sealed = keywrap.wrap(key_access.console_key(), Secret(issued.key_pem))
        self.provider.save()

    def move(self, host: str, port: int) -> None:
        KmsServer.objects.update(host=host, port=port)

    @contextmanager
    def listener(self, issued: Issued, answer: bytes = b"") -> Iterator[None]:
        """A TLS listener in place of the key server, with this certificate. It hears the request first: were it to
        close with that unread, the system would drop the answer."""

        def speak(connection: ssl.SSLSocket, _: object) -> None:
            connection.recv(65536)
            connection.sendall(answer)

        with fake_server(tls_context(self.folder, issued), speak) as address:
            self.move(address.host, address.port)
            yield


Case = Callable[[Place, ExitStack], None]


def other_ca_of_server(place: Place, _: ExitStack) -> None:
    place.provider.trusted_pem = place.other.certificate_pem.decode()
    place.provider.save()


def expired_server(place: Place, stack: ExitStack) -> None:
    stack.enter_context(place.listener(expired(place.authority, "localhost", server=True)))


def other_name(place: Place, stack: ExitStack) -> None:
    stack.enter_context(place.listener(place.authority.issue("localhost", dns=["kms.example"], server=True)))


def unknown_client(place: Place, _: ExitStack) -> None:
    place.show(place.other.issue("stranger", client=True))


def expired_client(place: Place, _: ExitStack) -> None:
    place.show(expired(place.authority, "console"))


def nobody_there(place: Place, _: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        place.move("127.0.0.1", probe.getsockname()[1])


def never_answers(place: Place, stack: ExitStack) -> None:
    """A socket that takes the connection and says nothing: a stand-in for a key server that hangs."""
    place.move("127.0.0.1", stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1])


def no_kmip(place: Place, stack: ExitStack) -> None:
    stack.enter_context(
        place.listener(place.authority.issue("localhost", dns=["localhost"], server=True), b"HTTP/1.1 400 Bad\r\n\r\n")
    )


def nothing_trusted(place: Place, _: ExitStack) -> None:
    place.provider.trusted_pem = ""
    place.provider.save()


def no_client_certificate(place: Place, _: ExitStack) -> None:
    place.provider.client_certificate_pem = ""
    place.provider.save()


def other_console_key(place: Place, _: ExitStack) -> None:
    place.provider.client_key_sealed = keywrap.wrap(Secret(b"k" * 32), Secret(b"x" * 40))
    place.provider.save()


CASES: dict[str, tuple[Case, str, str]] = {
    "wrong server certificate": (other_ca_of_server, "kms_server_ca_unknown", "untrusted"),
    "expired server certificate": (expired_server, "kms_server_certificate_expired", "untrusted"),
    "wrong host name": (other_name, "kms_server_name_mismatch", "untrusted"),
    "unknown client certificate": (unknown_client, "kms_client_ca_unknown", "untrusted"),
    "expired client certificate": (expired_client, "kms_client_certificate_expired", "untrusted"),
    "nobody there": (nobody_there, "kms_unreachable", "unreachable"),
    "never answers": (never_answers, "kms_unreachable", "unreachable"),
    "no key server": (no_kmip, "kms_protocol_error", "failing"),
    "nothing trusted": (nothing_trusted, "kms_server_not_trusted", "untrusted"),
    "no client certificate": (no_client_certificate, "kms_client_certificate_missing", "untrusted"),
    "other console key": (other_console_key, "client_key_sealed_otherwise", "untrusted"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_failure_has_its_code_in_the_page_and_the_api(
    case: str, alice: User, client: Client, kms_server: RunningKms, other_ca: Authority, tmp_path: Path,
    settings: Settings, sent: object,
) -> None:  # fmt: skip
    settings.KMIP_TIMEOUT_SECONDS = 1 if case == "never answers" else 10
    place = Place(connected(alice, kms_server), kms_server, other_ca, tmp_path)
    client.force_login(alice)
    arrange, code, state = CASES[case]
    by_api = caller(alice)
    with ExitStack() as stack:
        arrange(place, stack)
        assert client.post(reverse("encryption:kms-check", args=[place.provider.pk])).status_code == 302
        first = finished()
        asked = by_api.post(f"/key-providers/{place.provider.pk}/check")
        assert asked.status == 202
        second = finished()
    assert first.pk != second.pk
    for job in (first, second):
        assert (job.status, job.error_code) == (JobStatus.FAILED, code), job.message
    check_shown(client, by_api, place.provider, code, state)
    assert by_api.get(f"/jobs/{second.pk}").body["error_code"] == code


def finished() -> Job:
    """The newest job, its work done as a worker does it."""
    job = Job.objects.filter(kind="encryption.check_key_provider").order_by("-created_at")[0]
    jobs.run(str(job.pk), kms_health.check_key_provider)
    job.refresh_from_db()
    return job


def check_shown(client: Client, by_api: Caller, provider: KmsCluster, code: str, state: str) -> None:
    (server,) = by_api.get(f"/key-providers/{provider.pk}").body["servers"]
    assert (server["state_code"], server["state"]) == (code, state)
    row = KmsServer.objects.get()
    page = client.get(reverse("encryption:kms-cluster", args=[provider.pk])).content.decode()
    assert row.get_state_display() in page and row.state_reason.partition(";")[0].partition("'")[0] in page
    assert row.state_reason
