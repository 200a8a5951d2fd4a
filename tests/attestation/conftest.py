"""A host with an enrolled TPM behind a simulated agent."""

from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User

from attestation.models import HostAttestation, Verdict
from attestation.services import enrolment, verifier_identity
from inventory.models import Host
from tests.api_client import Caller, caller
from tests.attestation.pages import attest
from tests.attestation.simulated import SimulatedAgent, simulated_agent


@pytest.fixture
def agent(db: None) -> Iterator[SimulatedAgent]:
    with simulated_agent("agent-a", verifier_identity.ca_pem()) as found:
        yield found


@pytest.fixture
def enrolled(agent: SimulatedAgent, host: Host, alice: User, sent: list[tuple[str, list[str], str]]) -> HostAttestation:
    """`host`, enrolled and not attested yet."""
    enrolment.enrol_host(
        host_id=host.pk,
        registration_id=agent.registered().pk,
        actor=alice,
        reason="fingerprint compared on the console",
    )
    return HostAttestation.objects.get(host=host)


@pytest.fixture
def call(alice: User) -> Caller:
    return caller(alice)


@pytest.fixture
def passed(enrolled: HostAttestation) -> Verdict:
    """A verdict that passed, without reference values."""
    return attest(enrolled.host)
