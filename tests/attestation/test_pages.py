"""Attestation through its pages and the API: right person, wrong person, bad input, twice."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from attestation.models import (
    HostAttestation,
    PendingRegistration,
    ReferenceSet,
    TpmIdentity,
    TrustAnchor,
    Verdict,
    VerdictReason,
)
from attestation.services import hosts, references, verifier, verifier_identity
from inventory import jobs
from inventory.models import Cluster, Event, Host, Job, JobStatus
from tests.api_client import Answer, Caller, caller
from tests.attestation.recorded import EVIDENCE
from tests.attestation.simulated import SimulatedAgent, own_certificate

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
MAKER = (EVIDENCE / "captured/ca/root.pem").read_text()


@pytest.fixture
def admin(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


@pytest.fixture
def looker(charlie: User) -> Client:
    found = Client()
    found.force_login(charlie)
    return found


@pytest.fixture
def call(alice: User) -> Caller:
    return caller(alice)


@pytest.fixture
def passed(enrolled: HostAttestation) -> Verdict:
    """A verdict that passed, without reference values."""
    return attest(enrolled.host)


def attest(host: Host) -> Verdict:
    assert verifier.attest_hosts([host.pk], reason=VerdictReason.DEMAND) == 1
    return Verdict.objects.filter(host=host)[0]


def url(name: str, *args: object) -> str:
    return reverse(f"attestation:{name}", args=args)


def text_of(who: Client, address: str) -> str:
    answer = who.get(address)
    assert answer.status_code == 200, address
    return answer.content.decode()


def refused(who: Client, address: str, status: int, words: str, **data: Any) -> None:
    answer = who.post(address, data)
    assert (answer.status_code, words in answer.content.decode()) == (status, True), answer.content.decode()


def failed(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code), answer.text


class TestReport:
    def test_what_a_good_host_shows(self, admin: Client, passed: Verdict, agent: SimulatedAgent) -> None:
        page = text_of(admin, url("report", passed.host_id))
        assert "This host has proven what it booted" in page and "with Secure Boot on" in page
        assert agent.values[7].hex() in page and "Secure Boot" in page
        assert "Trust this boot" in page and "Download evidence" in page and "Attest now" in page
        assert "fingerprint compared on the console" in page

    def test_the_same_over_rest(self, call: Caller, passed: Verdict, agent: SimulatedAgent) -> None:
        found = call.get(f"/hosts/{passed.host_id}/attestation").body
        assert (found["status"], found["is_required"], found["is_trusted"]) == ("passed", True, True)
        assert found["verdict"]["secure_boot"] is True and found["verdict"]["findings"] == []
        row = next(each for each in found["pcrs"] if each["index"] == 7)
        assert row["quoted"] == row["replayed"] == agent.values[7].hex() and row["agrees"] is True
        assert found["tpm"]["vouched_by"] == "alice"

    def test_who_may_only_look_sees_no_buttons(self, looker: Client, passed: Verdict) -> None:
        page = text_of(looker, url("report", passed.host_id))
        assert "Attest now" not in page and "Trust this boot" not in page and "Download evidence" not in page

    def test_a_failed_host_says_why_and_what_to_do(
        self, admin: Client, enrolled: HostAttestation, agent: SimulatedAgent
    ) -> None:
        agent.signs_another_nonce = True
        attest(enrolled.host)
        page = text_of(admin, url("report", enrolled.host_id))
        assert "could not prove" in page and "nonce_mismatch" in page and "Have the agent make a new quote" in page
        assert "Not given: encrypted VMs do not start here" in page and "Trust this boot" not in page

    def test_a_host_without_a_tpm(self, admin: Client, call: Caller, host: Host) -> None:
        page = text_of(admin, url("report", host.pk))
        assert "No TPM of this host is enrolled" in page and "Enrol TPM" in page
        assert call.get(f"/hosts/{host.pk}/attestation").body["status"] == "not_applicable"

    def test_an_earlier_verdict(self, admin: Client, passed: Verdict, agent: SimulatedAgent) -> None:
        agent.signs_another_nonce = True
        attest(passed.host)
        page = text_of(admin, url("report", passed.host_id) + f"?verdict={passed.pk}")
        assert "This is an earlier verdict" in page
        assert admin.get(url("report", passed.host_id) + "?verdict=999999").status_code == 404

    def test_a_verdict_of_another_host(self, admin: Client, passed: Verdict, cluster: Cluster) -> None:
        other = Host.objects.create(cluster=cluster, name="kvm-z", uri="qemu+tls://z/system")
        assert admin.get(url("report", other.pk) + f"?verdict={passed.pk}").status_code == 404

    def test_history_over_rest(self, call: Caller, passed: Verdict) -> None:
        attest(passed.host)
        found = call.get(f"/hosts/{passed.host_id}/verdicts").body
        assert found["total"] == 2 and [each["is_change"] for each in found["items"]] == [False, True]

    def test_attest_now(self, admin: Client, looker: Client, call: Caller, passed: Verdict) -> None:
        answer = admin.post(url("attest", passed.host_id))
        assert answer.status_code == 302
        job = Job.objects.get(kind="attestation.attest_host")
        jobs.run(str(job.pk), hosts.run_attest_host)
        job.refresh_from_db()
        assert job.status == JobStatus.SUCCEEDED, job.message
        assert looker.post(url("attest", passed.host_id)).status_code == 403
        assert call.post(f"/hosts/{passed.host_id}/attest").status == 202
        failed(call.post(f"/hosts/{passed.host_id}/attest"), 409, "target_busy")

    def test_the_job_fails_with_the_host(self, call: Caller, passed: Verdict, agent: SimulatedAgent) -> None:
        agent.signs_another_nonce = True
        job_id = call.post(f"/hosts/{passed.host_id}/attest").body["id"]
        jobs.run(job_id, hosts.run_attest_host)
        assert Job.objects.get(pk=job_id).error_code == "host_not_trusted"
        agent.stop()
        job_id = call.post(f"/hosts/{passed.host_id}/attest").body["id"]
        jobs.run(job_id, hosts.run_attest_host)
        assert Job.objects.get(pk=job_id).error_code == "agent_unreachable"

    def test_attest_a_host_that_is_not_enrolled(self, admin: Client, call: Caller, host: Host) -> None:
        refused(admin, url("attest", host.pk), 409, "has no enrolled TPM")
        failed(call.post(f"/hosts/{host.pk}/attest"), 409, "host_not_enrolled")


class TestBootLog:
    def test_browsed_and_filtered(self, admin: Client, call: Caller, passed: Verdict) -> None:
        page = text_of(admin, url("boot-log", passed.pk))
        assert "EV_EFI_VARIABLE_DRIVER_CONFIG" in page and "SecureBoot" in page
        only = text_of(admin, url("boot-log", passed.pk) + "?pcr=4")
        assert "EV_EFI_BOOT_SERVICES_APPLICATION" in only and "EV_EFI_VARIABLE_DRIVER_CONFIG" not in only
        found = call.get(f"/verdicts/{passed.pk}/boot-log", pcr=7, page_size=2).body
        assert len(found["items"]) == 2 and found["total"] > 2
        assert {each["pcr"] for each in found["items"]} == {7} and found["items"][0]["is_covered"]

    def test_where_none_is_kept(
        self, admin: Client, call: Caller, enrolled: HostAttestation, agent: SimulatedAgent
    ) -> None:
        agent.log = None
        verdict = attest(enrolled.host)
        assert admin.get(url("boot-log", verdict.pk)).status_code == 404
        failed(call.get(f"/verdicts/{verdict.pk}/boot-log"), 404, "boot_log_not_kept")


class TestEvidence:
    def test_the_download_verifies_by_the_command(
        self, admin: Client, alice: User, passed: Verdict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        answer = admin.get(url("evidence", passed.pk))
        assert answer.status_code == 200 and answer.headers["Content-Type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            archive.extractall(tmp_path)
        nonce = json.loads((tmp_path / "verdict.json").read_text())["nonce"].encode().hex()
        options = {"event_log": "eventlog.bin", "quote": "quote.attest", "signature": "quote.sig", "ak": "ak.pub"}
        call_command(
            "appraise", "--json", f"--nonce={nonce}", f"--pcrs={tmp_path / 'pcrs.json'}",
            *(f"--{name.replace('_', '-')}={tmp_path / file}" for name, file in options.items()),
        )  # fmt: skip
        told = json.loads(capsys.readouterr().out)
        assert told["verdict"] == "passed" and told["secure_boot"] is True
        (event,) = Event.objects.filter(kind="host.evidence_downloaded")
        assert event.actor == "alice" and event.data["verdict"] == passed.pk

    def test_not_for_everybody(
        self, looker: Client, admin: Client, charlie: User, call: Caller, passed: Verdict
    ) -> None:
        assert looker.get(url("evidence", passed.pk)).status_code == 403
        failed(caller(charlie).get(f"/verdicts/{passed.pk}/evidence"), 403, "not_permitted")
        answer = admin.get(f"/api/v1/verdicts/{passed.pk}/evidence")
        assert answer.status_code == 200 and zipfile.is_zipfile(io.BytesIO(answer.content))
        failed(call.get("/verdicts/999999/evidence"), 404, "verdict_not_found")

    def test_none_kept(self, admin: Client, call: Caller, enrolled: HostAttestation, agent: SimulatedAgent) -> None:
        agent.body = b"nothing"
        verdict = attest(enrolled.host)
        assert admin.get(url("evidence", verdict.pk)).status_code == 404
        failed(call.get(f"/verdicts/{verdict.pk}/evidence"), 404, "evidence_not_kept")
        failed(call.post(f"/verdicts/{verdict.pk}/trust", {"reason": "x"}), 409, "evidence_not_kept")


class TestSecurity:
    def test_hosts_of_a_cluster_and_a_data_center(
        self, admin: Client, call: Caller, passed: Verdict, cluster: Cluster
    ) -> None:
        Host.objects.create(cluster=cluster, name="kvm-b", uri="qemu+tls://b/system")
        for address in (
            url("cluster-security", cluster.pk), url("datacenter-security", cluster.datacenter_id),
        ):  # fmt: skip
            page = text_of(admin, address)
            assert "kvm-a" in page and "Passed" in page and "kvm-b" in page and "None enrolled" in page
        found = call.get("/attestation/hosts", cluster_id=cluster.pk).body
        assert [(each["host"]["name"], each["status"]) for each in found["items"]] == [
            ("kvm-a", "passed"), ("kvm-b", "not_applicable"),
        ]  # fmt: skip
        assert call.get("/attestation/hosts", datacenter_id=cluster.datacenter_id).body["total"] == 2
        assert call.get("/attestation/hosts").body["total"] == 2

    def test_a_constant_number_of_queries(self, admin: Client, passed: Verdict, cluster: Cluster) -> None:
        def queries() -> int:
            with CaptureQueriesContext(connection) as found:
                text_of(admin, url("cluster-security", cluster.pk))
            return len(found)

        few = queries()
        for number in range(5):
            Host.objects.create(cluster=cluster, name=f"kvm-{number}", uri=f"qemu+tls://k{number}/system")
        assert queries() == few

    def test_the_tree_marks_a_failed_host(
        self, admin: Client, enrolled: HostAttestation, agent: SimulatedAgent
    ) -> None:
        path = reverse("inventory:summary", args=["host", enrolled.host_id])
        assert "has an alarm" not in text_of(admin, path)
        agent.signs_another_nonce = True
        attest(enrolled.host)
        assert "has an alarm" in text_of(admin, path)

    def test_badges(self, admin: Client, passed: Verdict) -> None:
        assert "Attested" in text_of(admin, reverse("inventory:summary", args=["host", passed.host_id]))
        assert "Attested" in text_of(admin, reverse("inventory:hosts", args=["cluster", passed.host.cluster_id]))


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


class TestReferences:
    def test_trusted_shown_compared(self, admin: Client, call: Caller, passed: Verdict) -> None:
        answer = admin.post(url("trust-boot", passed.pk), {"reason": "installed today", "keeps_others": "on"})
        assert answer.status_code == 302
        row = ReferenceSet.objects.get()
        assert (row.version, row.made_by, row.approved_by, row.from_verdict) == (1, "alice", "alice", passed)
        page = text_of(admin, url("cluster", row.cluster_id))
        assert "Must be on" in page and "installed today" in page and "In force" in page
        assert "Added" in text_of(admin, url("reference", row.pk))
        details = call.get(f"/reference-values/{row.pk}").body
        assert details["body"]["format"] == "bartizan-reference" and details["changes"]
        verdict = attest(passed.host)
        assert verdict.status == "passed" and verdict.reference == row
        assert "The same" in text_of(admin, url("report", passed.host_id))

    def test_nothing_that_failed_can_be_trusted(
        self, admin: Client, call: Caller, enrolled: HostAttestation, agent: SimulatedAgent
    ) -> None:
        agent.log = (EVIDENCE / "captured/d-log-edited/eventlog-event-removed.bin").read_bytes()
        verdict = attest(enrolled.host)
        refused(admin, url("trust-boot", verdict.pk), 409, "proves what", reason="x")
        failed(call.post(f"/verdicts/{verdict.pk}/trust", {"reason": "x"}), 409, "boot_not_trustworthy")

    def test_a_reason_is_needed(self, admin: Client, call: Caller, passed: Verdict) -> None:
        assert admin.post(url("trust-boot", passed.pk), {"reason": ""}).status_code == 422
        failed(call.post(f"/verdicts/{passed.pk}/trust", {"reason": " "}), 422, "reason_missing")

    def test_what_an_update_changed_is_named_and_accepted(
        self, admin: Client, call: Caller, alice: User, passed: Verdict
    ) -> None:
        """The values of before an update, that is: without what the boot shows now."""
        made = references.trust_boot(verdict_id=passed.pk, reason="seen", actor=alice)
        values = json.loads(made.body)
        del values["components"][0]
        values["command_lines"], values["authorities"] = ["* root=/dev/old ro"], values["authorities"][1:]
        body = {"body": values, "reason": "as it was before"}
        assert call.post(f"/clusters/{made.cluster_id}/reference-values", body).status == 201
        verdict = attest(passed.host)
        assert verdict.status == "failed"
        assert {each["code"] for each in verdict.findings} == {
            "unknown_component", "command_line_changed", "unknown_signer",
        }  # fmt: skip
        events = [each.event for each in references.acceptable(verdict)]
        assert events and "Accept changes" in text_of(admin, url("report", passed.host_id))
        failed(call.post(f"/verdicts/{verdict.pk}/accept", {"events": [9999], "reason": "x"}), 422, "nothing_to_accept")
        assert admin.post(url("accept-changes", verdict.pk), {"events": ["9999"], "reason": "x"}).status_code == 422
        data = {"events": [str(event) for event in events], "reason": "kernel update"}
        assert admin.post(url("accept-changes", verdict.pk), data).status_code == 302
        verdict = attest(passed.host)
        assert verdict.status == "passed", verdict.findings
        assert ReferenceSet.objects.get(version=3).reason == "kernel update"

    def test_nothing_to_accept_without_values(self, call: Caller, passed: Verdict) -> None:
        body = {"events": [1], "reason": "x"}
        failed(call.post(f"/verdicts/{passed.pk}/accept", body), 409, "references_missing")

    def test_edited_by_hand(self, admin: Client, call: Caller, alice: User, passed: Verdict) -> None:
        made = references.trust_boot(verdict_id=passed.pk, reason="seen", actor=alice)
        page = text_of(admin, url("edit-references", made.cluster_id))
        assert "spellcheck" in page
        data = {
            "secure_boot": "on", "look_at_command_lines": "on", "command_lines": "* root=** ro\n\n* quiet\n",
            "look_at_authorities": "on", "authorities": "ab" * 32 + " Our CA 2026", "dbx_minimum": "3",
            "look_at_files": "on", "ima_files": "sha256:" + "cd" * 32 + " /usr/bin/true", "reason": "by hand",
            "ima_excluded": "/tmp/**", "tolerate_violations": "on",
        }  # fmt: skip
        assert admin.post(url("edit-references", made.cluster_id), data).status_code == 302
        values = json.loads(ReferenceSet.objects.get(version=2).body)
        assert values["command_lines"] == ["* root=** ro", "* quiet"] and values["components"] is None
        assert values["authorities"] == [{"name": "Our CA 2026", "sha256": "ab" * 32}]
        assert values["ima"]["allowed"] == {"/usr/bin/true": ["sha256:" + "cd" * 32]}
        assert values["revocations"]["minimum"] == 3
        for field, text in (("authorities", "zz x"), ("ima_files", "sha256:00"), ("command_lines", "[" * 5000)):
            assert admin.post(url("edit-references", made.cluster_id), {**data, field: text}).status_code == 422, field
        path = f"/clusters/{made.cluster_id}/reference-values"
        failed(call.post(path, {"body": {"format": "other"}, "reason": "x"}), 422, "references_malformed")
        assert call.get(path).body["total"] == 2

    def test_two_people(self, admin: Client, call: Caller, alice: User, passed: Verdict) -> None:
        path = f"/clusters/{passed.host.cluster_id}/attestation-policy"
        policy = {"require": "auto", "freshness_minutes": 60, "interval_minutes": 10, "two_person_references": True}
        assert call("PUT", path, policy).body["two_person_references"] is True
        made = references.trust_boot(verdict_id=passed.pk, reason="seen", actor=alice)
        assert made.approved_at is None and attest(passed.host).reference is None
        refused(admin, url("approve-reference", made.pk), 403, "somebody else has to approve")
        failed(call.post(f"/reference-values/{made.pk}/approve"), 403, "second_person_needed")
        bob = caller(User.objects.create_user("bob", is_superuser=True))
        assert bob.post(f"/reference-values/{made.pk}/approve").body["approved_by"] == "bob"
        failed(bob.post(f"/reference-values/{made.pk}/approve"), 409, "references_approved")
        assert attest(passed.host).reference == made

    def test_an_older_version_is_not_put_in_force(self, call: Caller, alice: User, passed: Verdict) -> None:
        made = references.trust_boot(verdict_id=passed.pk, reason="one", actor=alice)
        ReferenceSet.objects.filter(pk=made.pk).update(approved_at=None)
        references.trust_boot(verdict_id=passed.pk, reason="two", actor=alice)
        failed(call.post(f"/reference-values/{made.pk}/approve"), 409, "references_superseded")
        failed(call.post(f"/reference-values/{uuid4()}/approve"), 404, "reference_set_not_found")

    def test_files_of_the_ima_list(self, admin: Client, call: Caller, passed: Verdict) -> None:
        data = {"reason": "seen", "with_files": "on"}
        assert admin.post(url("trust-boot", passed.pk), data).status_code == 302
        assert json.loads(ReferenceSet.objects.get().body)["ima"] is not None
        later = attest(passed.host)
        attest(passed.host)
        assert later.status == "passed"


class TestPolicy:
    def test_shown_and_edited(self, admin: Client, call: Caller, cluster: Cluster) -> None:
        assert "Hosts with an enrolled TPM" in text_of(admin, url("cluster", cluster.pk))
        data = {"require": "always", "freshness_minutes": "15", "interval_minutes": "5"}
        assert admin.post(url("edit-policy", cluster.pk), data).status_code == 302
        found = call.get(f"/clusters/{cluster.pk}/attestation-policy").body
        assert found == {
            "require": "always", "freshness_minutes": 15, "interval_minutes": 5, "two_person_references": False,
        }  # fmt: skip
        refused(admin, url("edit-policy", cluster.pk), 422, "1 to 10080", **{**data, "freshness_minutes": "0"})
        path = f"/clusters/{cluster.pk}/attestation-policy"
        failed(call("PUT", path, {**found, "require": "no"}), 422, "attestation_policy_invalid")
