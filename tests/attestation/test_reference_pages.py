"""Reference values and policy through pages and API: right person, wrong person, bad input, twice."""

import json
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client

from attestation.models import (
    HostAttestation,
    ReferenceSet,
    Verdict,
)
from attestation.services import references
from inventory.models import Cluster
from tests.api_client import Caller, caller
from tests.attestation.pages import attest, failed, refused, text_of, url
from tests.attestation.recorded import EVIDENCE
from tests.attestation.simulated import SimulatedAgent

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


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
