"""Reports, boot logs, evidence and security tables, by page and API: right person, wrong person, bad input, twice."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from attestation.models import (
    HostAttestation,
    Verdict,
)
from attestation.services import hosts
from inventory import jobs
from inventory.models import Cluster, Event, Host, Job, JobStatus
from tests.api_client import Caller, caller
from tests.attestation.pages import attest, failed, refused, text_of, url
from tests.attestation.simulated import SimulatedAgent

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


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

    def test_a_page_past_the_end_is_the_last_one(self, admin: Client, call: Caller, passed: Verdict) -> None:
        found = call.get(f"/verdicts/{passed.pk}/boot-log", page=9999, page_size=2).body
        assert found["items"] and found["page"] == found["pages"]
        assert "No events" not in text_of(admin, url("boot-log", passed.pk) + "?page=9999")

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
