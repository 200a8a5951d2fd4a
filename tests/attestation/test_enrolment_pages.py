"""Enrolment and trust anchors through pages and API: right person, wrong person, bad input, twice."""

from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from django.contrib.auth.models import User
from django.test import Client

from attestation.models import (
    HostAttestation,
    PendingRegistration,
    TpmIdentity,
    TrustAnchor,
    Verdict,
)
from attestation.services import verifier_identity
from inventory.models import Cluster, Event, Host
from tests.api_client import Caller, caller
from tests.attestation.pages import MAKER, attest, failed, refused, text_of, url
from tests.attestation.recorded import EVIDENCE
from tests.attestation.simulated import SimulatedAgent, own_certificate

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


class TestEnrolment:
    @pytest.fixture
    def waiting(self, agent: SimulatedAgent) -> PendingRegistration:
        return agent.registered()

    def test_through_the_page(self, admin: Client, host: Host, waiting: PendingRegistration) -> None:
        assert "agent-a" in text_of(admin, url("trust")) and "agent-a" in text_of(admin, url("enrol", host.pk))
        data = {"registration": str(waiting.pk), "reason": "compared", "contact_host": ""}
        assert admin.post(url("enrol", host.pk), data).status_code == 302
        identity = TpmIdentity.objects.get(host=host)
        assert (identity.agent_id, identity.enrolled_by, identity.ek_accepted_by) == ("agent-a", "alice", "alice")
        assert not PendingRegistration.objects.exists()
        assert Event.objects.get(kind="host.tpm_enrolled").data["why"] == "compared"
        assert "Not attested yet" in text_of(admin, url("cluster-security", host.cluster_id))

    def test_over_rest_and_twice(self, call: Caller, host: Host, waiting: PendingRegistration) -> None:
        body = {"registration_id": waiting.pk, "reason": "compared", "contact_host": "kvm-a.example"}
        made = call.post(f"/hosts/{host.pk}/tpm", body)
        assert made.status == 201 and made.body["contact_host"] == "kvm-a.example"
        assert TpmIdentity.objects.get().has_fixed_contact
        failed(call.post(f"/hosts/{host.pk}/tpm", body), 404, "registration_not_found")

    def test_one_that_is_enrolled_already(
        self, admin: Client, call: Caller, enrolled: HostAttestation, agent: SimulatedAgent
    ) -> None:
        second = agent.registered(agent_id="agent-b")
        data = {"registration": str(second.pk), "reason": "compared"}
        refused(admin, url("enrol", enrolled.host_id), 409, "has an enrolled TPM already", **data)
        body = {"registration_id": second.pk, "reason": "x"}
        failed(call.post(f"/hosts/{enrolled.host_id}/tpm", body), 409, "host_enrolled")

    def test_a_tpm_of_another_host(
        self, call: Caller, cluster: Cluster, enrolled: HostAttestation, agent: SimulatedAgent
    ) -> None:
        other = Host.objects.create(cluster=cluster, name="kvm-b", uri="qemu+tls://b/system")
        second = agent.registered(ek_name=TpmIdentity.objects.get().ek_name)
        failed(call.post(f"/hosts/{other.pk}/tpm", {"registration_id": second.pk, "reason": "x"}), 409, "tpm_in_use")

    def test_without_anybody_who_vouches(
        self, admin: Client, call: Caller, host: Host, waiting: PendingRegistration
    ) -> None:
        refused(admin, url("enrol", host.pk), 422, "no trust anchor vouches", registration=str(waiting.pk))
        failed(call.post(f"/hosts/{host.pk}/tpm", {"registration_id": waiting.pk}), 422, "ek_not_vouched_for")

    def test_by_a_trust_anchor(self, admin: Client, call: Caller, host: Host, agent: SimulatedAgent) -> None:
        folder = EVIDENCE / "captured/a-secureboot-on"
        leaf = x509.load_der_x509_certificate((folder / "ek-cert-rsa.der").read_bytes())
        chain = leaf.public_bytes(Encoding.PEM).decode() + (EVIDENCE / "captured/ca/intermediate.pem").read_text()
        row = agent.registered(
            ek_public=(folder / "ek.pub").read_bytes(), ek_name="000b" + "ab" * 32, ek_certificate_pem=chain
        )
        body = {"registration_id": row.pk}
        failed(call.post(f"/hosts/{host.pk}/tpm", body), 422, "ek_not_vouched_for")
        admin.post(url("add-anchor"), {"name": "The maker", "certificate": MAKER})
        made = call.post(f"/hosts/{host.pk}/tpm", body)
        assert made.status == 201 and made.body["vouched_by"] == "The maker"
        assert attest(host).status == "passed"
        anchor = TrustAnchor.objects.get()
        admin.post(url("remove-anchor", anchor.pk))
        verdict = attest(host)
        assert verdict.status == "failed" and [each["code"] for each in verdict.findings] == ["ek_untrusted"]

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            # the attestation key: bits of its attributes, its hash
            (lambda area: area[:7] + b"\x04" + area[8:], "attestation_key_unfit"),
            (lambda area: area[:2] + b"\x00\x04" + area[4:], "attestation_key_unfit"),
            (lambda area: b"no key", "attestation_key_unfit"),
        ],
        ids=["unrestricted", "named by SHA-1", "none"],
    )
    def test_a_key_that_is_no_attestation_key(
        self, call: Caller, host: Host, agent: SimulatedAgent, change: Callable[[bytes], bytes], code: str
    ) -> None:
        row = agent.registered(ak_public=change(agent.tpm.ak_area))
        failed(call.post(f"/hosts/{host.pk}/tpm", {"registration_id": row.pk, "reason": "x"}), 422, code)

    def test_another_key_than_the_activated_one(self, call: Caller, host: Host, agent: SimulatedAgent) -> None:
        row = agent.registered(ak_name="000b" + "00" * 32)
        body = {"registration_id": row.pk, "reason": "x"}
        failed(call.post(f"/hosts/{host.pk}/tpm", body), 422, "attestation_key_unfit")

    @pytest.mark.parametrize(
        "values",
        [
            {"mtls_certificate_pem": ""}, {"contact_host": "a b"}, {"contact_host": ""},
            {"contact_host": "x\r\nHost: y"}, {"contact_port": 0}, {"api_version": "2.1\n"},
        ],
    )  # fmt: skip
    def test_an_agent_that_cannot_be_asked(
        self, call: Caller, host: Host, agent: SimulatedAgent, values: dict[str, object]
    ) -> None:
        row = agent.registered(**values)
        body = {"registration_id": row.pk, "reason": "x"}
        failed(call.post(f"/hosts/{host.pk}/tpm", body), 422, "agent_contact_invalid")

    def test_one_that_has_not_answered_its_challenge(self, admin: Client, call: Caller, host: Host,
                                                     agent: SimulatedAgent) -> None:  # fmt: skip
        row = agent.registered(activated_at=None)
        assert "agent-a" not in text_of(admin, url("trust"))
        body = {"registration_id": row.pk, "reason": "x"}
        failed(call.post(f"/hosts/{host.pk}/tpm", body), 404, "registration_not_found")

    def test_a_new_tpm_is_accepted_with_a_reason(
        self, admin: Client, call: Caller, passed: Verdict, agent: SimulatedAgent
    ) -> None:
        old = TpmIdentity.objects.get().ek_name
        other = agent.registered(refusal_code="tpm_changed", refusal="another TPM")
        page = text_of(admin, url("report", passed.host_id))
        assert "registered with another TPM" in page and "Accept new TPM" in page
        body = {"registration_id": other.pk, "reason": " "}
        failed(call("PUT", f"/hosts/{passed.host_id}/tpm", body), 422, "reason_missing")
        data = {"registration": str(other.pk), "reason": "new mainboard"}
        assert admin.post(url("accept-new-tpm", passed.host_id), data).status_code == 302
        assert TpmIdentity.objects.get().ek_name != old
        standing = HostAttestation.objects.get()
        assert standing.status == "pending" and standing.passed_at is None and standing.clock is None
        assert Event.objects.get(kind="host.tpm_replaced").data["before"] == old

    def test_none_to_replace(self, admin: Client, call: Caller, host: Host, waiting: PendingRegistration) -> None:
        refused(admin, url("accept-new-tpm", host.pk), 409, "has no enrolled TPM")
        body = {"registration_id": waiting.pk, "reason": "x"}
        failed(call("PUT", f"/hosts/{host.pk}/tpm", body), 409, "host_not_enrolled")

    def test_a_tpm_goes_with_a_reason(self, admin: Client, call: Caller, passed: Verdict) -> None:
        path = f"/hosts/{passed.host_id}/tpm/remove"
        failed(call.post(path, {"reason": ""}), 422, "reason_missing")
        assert admin.post(url("remove-tpm", passed.host_id), {"reason": "host retired"}).status_code == 302
        assert not TpmIdentity.objects.exists() and not HostAttestation.objects.exists()
        failed(call.post(path, {"reason": "again"}), 409, "host_not_enrolled")

    def test_dismissed(self, admin: Client, call: Caller, waiting: PendingRegistration) -> None:
        assert call.get("/tpm-registrations").body["items"][0]["agent_id"] == "agent-a"
        assert admin.post(url("dismiss-registration", waiting.pk)).status_code == 302
        failed(call("DELETE", f"/tpm-registrations/{waiting.pk}"), 404, "registration_not_found")

    def test_only_administrators(self, looker: Client, charlie: User, passed: Verdict, agent: SimulatedAgent) -> None:
        row = agent.registered()
        by_looker = caller(charlie)
        for address in (
            url("enrol", passed.host_id), url("accept-new-tpm", passed.host_id), url("remove-tpm", passed.host_id),
            url("dismiss-registration", row.pk), url("trust-boot", passed.pk), url("accept-changes", passed.pk),
            url("edit-policy", passed.host.cluster_id), url("edit-references", passed.host.cluster_id),
            url("add-anchor"),
        ):  # fmt: skip
            assert looker.post(address, {}).status_code == 403, address
        body = {"registration_id": row.pk, "reason": "x"}
        for method, path, sent in (
            ("POST", f"/hosts/{passed.host_id}/tpm", body), ("PUT", f"/hosts/{passed.host_id}/tpm", body),
            ("POST", f"/hosts/{passed.host_id}/tpm/remove", {"reason": "x"}),
            ("POST", f"/verdicts/{passed.pk}/trust", {"reason": "x"}),
            ("POST", f"/verdicts/{passed.pk}/accept", {"reason": "x", "events": [1]}),
            ("POST", f"/hosts/{passed.host_id}/attest", None),
        ):  # fmt: skip
            failed(by_looker(method, path, sent), 403, "not_permitted")


class TestAnchors:
    def test_added_shown_removed(self, admin: Client, call: Caller) -> None:
        made = call.post("/trust-anchors", {"name": "The maker", "certificate": MAKER})
        assert made.status == 201 and len(made.body["fingerprint"]) == 64
        page = text_of(admin, url("trust"))
        assert "The maker" in page and made.body["fingerprint"] in page
        assert [each["name"] for each in call.get("/trust-anchors").body] == ["The maker"]
        assert call("DELETE", f"/trust-anchors/{made.body['id']}").status == 204
        failed(call("DELETE", f"/trust-anchors/{made.body['id']}"), 404, "trust_anchor_not_found")
        kinds = set(Event.objects.values_list("kind", flat=True))
        assert {"attestation.anchor_added", "attestation.anchor_removed"} <= kinds

    def test_refused(self, admin: Client, call: Caller) -> None:
        refused(admin, url("add-anchor"), 422, "malformed certificate", name="x", certificate="none")
        failed(call.post("/trust-anchors", {"name": "x", "certificate": MAKER + MAKER}), 422, "trust_anchor_invalid")
        failed(call.post("/trust-anchors", {"name": " ", "certificate": MAKER}), 422, "trust_anchor_invalid")
        assert admin.post(url("add-anchor"), {"name": "one", "certificate": MAKER}).status_code == 302
        refused(admin, url("add-anchor"), 409, "is a trust anchor two already", name="two", certificate=MAKER)
        other = own_certificate("other")[0].decode()
        failed(call.post("/trust-anchors", {"name": "one", "certificate": other}), 409, "trust_anchor_exists")

    def test_the_console_s_own_ca(self, admin: Client, call: Caller) -> None:
        assert admin.get(url("verifier-ca")).status_code == 404
        failed(call.get("/verifier-ca"), 404, "verifier_ca_not_made")
        pem = verifier_identity.ca_pem()
        assert admin.get(url("verifier-ca")).content.decode() == pem
        assert call.get("/verifier-ca").body["certificate_pem"] == pem
        assert "Download certificate" in text_of(admin, url("trust"))
