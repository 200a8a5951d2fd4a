"""Registration and activation as agents call them: nothing but the right TPM's answer changes anything."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from attestation.engine.tpm.public import parse_tpmt_public
from attestation.models import HostAttestation, PendingRegistration, TpmIdentity, VerdictReason
from attestation.registrar.protocol import Answer, Request, answer
from attestation.services import registration, schedule
from inventory.models import Alarm, Event, Host
from tests.attestation.offers import Machine, body

pytestmark = pytest.mark.django_db
ADDRESS = "192.0.2.10"


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


@pytest.fixture(scope="module")
def other() -> Machine:
    """Somebody else's TPM, under the same id."""
    return Machine()


@pytest.fixture
def identity(host: Host, machine: Machine) -> TpmIdentity:
    offer = machine.rust_offer()
    return TpmIdentity.objects.create(
        host=host, agent_id=machine.agent_id, ek_public=machine.ek_area,
        ek_name=parse_tpmt_public(machine.ek_area).name.hex(), ak_public=b"before", ak_name="before",
        mtls_certificate_pem=offer["mtls_cert"], contact_host=ADDRESS, enrolled_by="alice",
        activated_at=timezone.now(),
    )  # fmt: skip


@pytest.fixture
def attested(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """Hosts that are to be attested anew, and why."""
    asked: list[tuple[Any, str]] = []
    monkeypatch.setattr(schedule, "void_and_attest", lambda host_id, *, reason: asked.append((host_id, reason)))
    return asked


def post(machine: Machine, offer: dict[str, Any], source: str = ADDRESS, version: str = "2.1") -> Answer:
    return answer(Request("POST", f"/v{version}/agents/{machine.agent_id}", body(offer), source))


def put(machine: Machine, tag: str, tail: str = "/activate") -> Answer:
    return answer(Request("PUT", f"/v2.1/agents/{machine.agent_id}{tail}", body({"auth_tag": tag}), ADDRESS))


def registered(machine: Machine, offer: dict[str, Any] | None = None, source: str = ADDRESS) -> str:
    """The right answer to the challenge that registering gave."""
    found = post(machine, offer or machine.rust_offer(), source)
    assert found.status == 200, found.text
    return machine.auth_tag(str(found.results["blob"]))


def test_version() -> None:
    said = json.loads(answer(Request("GET", "/version", b"", ADDRESS)).body())
    assert said["code"] == 200
    assert said["results"]["current_version"] == "2.1"
    assert said["results"]["supported_versions"] == ["2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6"]


@pytest.mark.parametrize(("dialect", "tail"), [("python_offer", "/activate"), ("rust_offer", "")])
def test_an_unknown_agent_waits_to_be_enrolled(machine: Machine, dialect: str, tail: str) -> None:
    tag = registered(machine, getattr(machine, dialect)())
    assert PendingRegistration.objects.filter(activated_at=None).count() == 1
    assert put(machine, tag, tail) == Answer(200, "Success")
    row = PendingRegistration.objects.get()
    assert row.activated_at is not None
    assert (row.contact_host, row.contact_port, row.refusal_code) == (ADDRESS, 9002, "")
    assert row.ek_name == parse_tpmt_public(machine.ek_area).name.hex()
    assert Event.objects.get().kind == "attestation.agent_waits"
    assert not TpmIdentity.objects.exists()


def test_the_same_answer_twice(machine: Machine) -> None:
    tag = registered(machine)
    assert put(machine, tag).status == 200
    assert put(machine, tag).status == 200
    assert Event.objects.count() == 1


def test_registering_again_replaces_what_waits_and_is_no_news(machine: Machine) -> None:
    for _ in range(3):
        assert put(machine, registered(machine)).status == 200
    assert PendingRegistration.objects.count() == 1
    assert Event.objects.count() == 1


def test_an_agent_that_names_no_address_is_asked_where_it_came_from(machine: Machine) -> None:
    registered(machine, machine.rust_offer(ip=None), source="2001:db8::7")
    assert PendingRegistration.objects.get().contact_host == "2001:db8::7"


def test_a_wrong_answer_changes_nothing(
    machine: Machine, identity: TpmIdentity, attested: list[tuple[Any, str]]
) -> None:
    right = registered(machine)
    rows = list(PendingRegistration.objects.values())
    for tag in ("0" * 96, right[:-1] + ("0" if right[-1] != "0" else "1")):
        assert put(machine, tag).status == 400
    assert list(PendingRegistration.objects.values()) == rows
    identity.refresh_from_db()
    assert identity.ak_name == "before"
    assert not attested
    assert put(machine, right).status == 200


def test_registering_alone_disturbs_no_identity(machine: Machine, other: Machine, identity: TpmIdentity) -> None:
    before = TpmIdentity.objects.values().get()
    registered(machine)
    registered(other)
    assert TpmIdentity.objects.values().get() == before
    assert not Event.objects.exists()
    assert not Alarm.objects.exists()


def test_a_new_attestation_key_of_the_same_tpm_is_taken(
    machine: Machine, identity: TpmIdentity, attested: list[tuple[Any, str]]
) -> None:
    machine.restart()
    assert put(machine, registered(machine, machine.python_offer(port="9100"))).status == 200
    identity.refresh_from_db()
    assert identity.ak_name == parse_tpmt_public(machine.signer.ak_area).name.hex()
    assert (identity.contact_port, identity.registrations) == (9100, 2)
    assert identity.ek_name == parse_tpmt_public(machine.ek_area).name.hex()
    assert not PendingRegistration.objects.exists()
    assert attested == [(identity.host_id, VerdictReason.REGISTRATION)]
    event = Event.objects.get()
    assert (event.kind, event.target_id) == ("host.agent_registered", identity.host_id)
    assert HostAttestation.objects.filter(host=identity.host).exists()


def test_an_address_that_was_given_at_enrolment_stays(
    machine: Machine, identity: TpmIdentity, attested: list[tuple[Any, str]]
) -> None:
    for is_fixed, expected in ((True, ADDRESS), (False, "198.51.100.9")):
        TpmIdentity.objects.update(has_fixed_contact=is_fixed)
        assert put(machine, registered(machine, machine.rust_offer(ip="198.51.100.9", port=9300))).status == 200
        identity.refresh_from_db()
        assert (identity.contact_host, identity.contact_port) == (expected, 9300)


def test_another_tpm_under_a_known_id_is_an_incident(
    machine: Machine, other: Machine, identity: TpmIdentity, attested: list[tuple[Any, str]]
) -> None:
    before = TpmIdentity.objects.values().get()
    for _ in range(2):
        found = put(other, registered(other, source="203.0.113.66"))
        assert found.status == 403
    assert TpmIdentity.objects.values().get() == before
    assert not attested
    row = PendingRegistration.objects.get()
    assert row.refusal_code == "tpm_changed"
    assert row.activated_at is not None
    alarm = Alarm.objects.get()
    assert (alarm.kind, alarm.target_id, alarm.cleared_at) == ("host.tpm_changed", identity.host_id, None)
    assert any("203.0.113.66" in line for line in alarm.evidence)
    assert [event.kind for event in Event.objects.all()] == ["host.tpm_changed"]
    # The one that belongs here comes back.
    assert put(machine, registered(machine)).status == 200
    alarm.refresh_from_db()
    assert alarm.cleared_at is not None
    assert not PendingRegistration.objects.exists()


def test_what_an_agent_says_of_its_key_makes_no_other_tpm(
    machine: Machine, identity: TpmIdentity, attested: list[tuple[Any, str]]
) -> None:
    """The name of a key changes with its attributes, the key does not."""
    TpmIdentity.objects.update(ek_name="000b" + "00" * 32)
    assert put(machine, registered(machine)).status == 200
    assert attested


def test_a_known_tpm_under_another_id(other: Machine, machine: Machine, identity: TpmIdentity) -> None:
    moved = Machine("moved", machine.ek, machine.signer, machine.tls)
    assert put(moved, registered(moved)).status == 403
    assert PendingRegistration.objects.get().refusal_code == "tpm_known_otherwise"
    assert Alarm.objects.get().target_id == identity.host_id


def test_an_answer_that_comes_too_late(machine: Machine) -> None:
    tag = registered(machine)
    PendingRegistration.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert put(machine, tag).status == 400
    registered(Machine("other"))
    assert [row.agent_id for row in PendingRegistration.objects.all()] == ["other"]


def test_nobody_pushes_another_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, attested: list[tuple[Any, str]]
) -> None:
    """Those who register an id they do not own fill their own places only, and in the end are turned away."""
    tag = registered(machine)
    monkeypatch.setattr(registration, "MOST_UNANSWERED_OF_AGENT", 3)
    for last in range(2):
        registered(machine, source=f"203.0.113.{last}")
    registered(machine, source="203.0.113.0")
    assert post(machine, machine.rust_offer(), "203.0.113.9").status == 429
    assert put(machine, tag).status == 200


def test_rows_are_bounded(machine: Machine, other: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "MOST_UNANSWERED_OF_ADDRESS", 1)
    registered(machine)
    assert post(Machine("b", machine.ek), machine.rust_offer()).status == 429
    monkeypatch.setattr(registration, "MOST_UNANSWERED", 1)
    assert post(Machine("b", machine.ek), machine.rust_offer(), "203.0.113.1").status == 429
    monkeypatch.undo()
    monkeypatch.setattr(registration, "MOST_WAITING_OF_AGENT", 1)
    assert put(machine, registered(machine)).status == 200
    assert put(other, registered(other)).status == 429
    assert PendingRegistration.objects.filter(activated_at__isnull=False).count() == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2.1/agents/a", 405),
        ("DELETE", "/v2.1/agents/a", 405),
        ("POST", "/v2.1/agents/a/activate", 405),
        ("POST", "/version", 405),
        ("GET", "/v2.1/agents/", 404),
        ("GET", "/", 404),
        ("POST", "/v2.1/agents/a/../b", 404),
        ("POST", "/v1.0/agents/a", 400),
        ("POST", "/v2.7/agents/a", 400),
        ("POST", "/v3.0/agents/a", 400),
        ("POST", "/v2.1/agents/a%00", 400),
        ("POST", "/v2.1/agents/-a", 400),
        ("POST", "/v2.1/agents/a", 400),
        ("PUT", "/v2.1/agents/a", 400),
    ],
)
def test_other_requests(method: str, path: str, status: int) -> None:
    found = answer(Request(method, path, b"{}", ADDRESS))
    assert found.status == status
    assert json.loads(found.body()) == {"code": status, "status": found.text, "results": {}}
    assert not PendingRegistration.objects.exists()


def test_the_secret_is_nowhere_in_the_database(machine: Machine) -> None:
    """What is kept answers the challenge of this agent id alone."""
    tag = registered(machine)
    kept = repr(list(PendingRegistration.objects.values()))
    assert tag in kept
    assert "secret" not in {field.name for field in PendingRegistration._meta.get_fields()}
