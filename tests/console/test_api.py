"""The frame of the REST API: who gets in, what refusals look like, and that nothing is open by accident."""

import re
from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import get_resolver, reverse
from django.utils import timezone

from console import api_tokens
from console.api import api
from console.models import ApiToken
from inventory.models import Event
from tests import sample
from tests.api_client import ROOT, Caller, caller

pytestmark = pytest.mark.django_db


def routes() -> list[tuple[str, str]]:
    """Every (method, path) of the API, with ids that nothing has."""
    found = []
    for path, operations in api.get_openapi_schema()["paths"].items():
        filled = (
            path.replace("{view}", "hosts")
            .replace("{kind}", "host")
            .replace("{event_id}", "1")
            .replace("{verdict_id}", "1")
        )
        filled = re.sub(r"\{\w+\}", str(uuid4()), filled).removeprefix(ROOT)
        found += [(method.upper(), filled) for method in operations]
    return found


def token(user: User, **values: object) -> str:
    made = api_tokens.create_token(user=user, name=str(uuid4()), days=1, actor=user)
    ApiToken.objects.filter(pk=made.row.pk).update(**values)
    return made.token


def test_no_route_answers_somebody_unknown() -> None:
    walked = routes()
    assert len(walked) > 50
    for method, path in [*walked, ("GET", "/openapi.json")]:
        answer = Caller(None)(method, path, {} if method in ("POST", "PUT", "PATCH") else None)
        assert (answer.status, answer.code) == (401, "not_authenticated"), f"{method} {path}"
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="Bartizan"'
        assert answer.body["hint"]


def test_no_route_lets_one_who_may_only_look_change_anything(charlie: User) -> None:
    """Input is valid in form nowhere here, so a 403, 404 or 422 is what a change may end in; never a 2xx.

    A plan changes nothing; a crypto inventory is what auditors are there for."""
    call = caller(charlie)
    allowed = re.compile(r"^/virtual-machines/[^/]+/options/plan$|^/crypto-inventories$")
    for method, path in routes():
        if method == "GET" or allowed.match(path):
            continue
        answer = call(method, path, {} if method in ("POST", "PUT", "PATCH") else None)
        assert answer.status in (403, 404, 422), f"{method} {path}: {answer.status}"
        assert {"code", "message"} <= answer.body.keys(), f"{method} {path}"


def test_a_token_answers_with_its_users_rights(alice: User, charlie: User) -> None:
    assert caller(alice).get("/me").body == {"username": "alice", "is_administrator": True}
    assert caller(charlie).get("/me").body == {"username": "charlie", "is_administrator": False}


def test_answers_are_kept_out_of_caches_and_under_the_policy(alice: User) -> None:
    answer = caller(alice).get("/me")
    assert answer.headers["Cache-Control"] == "no-store, private"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "values",
    [{"expires_at": timezone.now() - timedelta(seconds=1)}, {"sha256": "0" * 64}],
    ids=["ended", "of another digest"],
)
def test_a_token_that_does_not_hold(alice: User, values: dict[str, object]) -> None:
    answer = Caller(token(alice, **values)).get("/me")
    assert (answer.status, answer.code) == (401, "not_authenticated")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


def test_a_token_of_a_user_who_may_not_log_in(alice: User) -> None:
    call = caller(alice)
    assert call.get("/me").status == 200
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert call.get("/me").status == 401


def test_a_revoked_token(alice: User) -> None:
    call = caller(alice)
    row = ApiToken.objects.get()
    assert call("DELETE", f"/api-tokens/{row.pk}").status == 204
    assert call.get("/me").status == 401


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer x", "Basic YTpi", "Bearer bartizan_\x7f", "Token 1"]
)
def test_an_authorization_header_that_is_no_token(alice: User, header: str) -> None:
    client = Client(headers={"Authorization": header})
    client.force_login(alice)  # the cookie does not save it
    assert client.get(f"{ROOT}/me").status_code == 401


def test_when_a_token_was_used_is_noted_once_a_minute(alice: User) -> None:
    secret = token(alice)
    now = timezone.now()
    assert api_tokens.user_of(secret, now=now) == alice
    assert api_tokens.user_of(secret, now=now + timedelta(seconds=59)) == alice
    assert ApiToken.objects.get().last_used_at == now
    later = now + timedelta(seconds=60)
    assert api_tokens.user_of(secret, now=later) == alice
    assert ApiToken.objects.get().last_used_at == later


def test_the_token_is_kept_nowhere(alice: User) -> None:
    made = api_tokens.create_token(user=alice, name="backup", days=30, actor=alice)
    hidden = made.token.removeprefix(made.row.prefix)
    assert len(hidden) > 30
    row = ApiToken.objects.values().get()
    assert hidden not in str(row)
    assert hidden not in repr(made)
    assert hidden not in str(list(Event.objects.values()))


def test_a_session_reads_and_needs_the_csrf_header_to_write(alice: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    assert client.get(f"{ROOT}/me").json()["username"] == "alice"
    body = {"data": '{"name": "East"}', "content_type": "application/json"}
    refused = client.post(f"{ROOT}/datacenters", **body)  # type: ignore[arg-type]
    assert (refused.status_code, refused.json()["code"]) == (403, "csrf_failed")
    client.get(reverse("inventory:root"))
    header = {"X-CSRFToken": client.cookies["csrftoken"].value}
    assert client.post(f"{ROOT}/datacenters", headers=header, **body).status_code == 201  # type: ignore[arg-type]


def test_nobodys_post_is_unauthenticated_before_it_is_forged() -> None:
    answer = Client(enforce_csrf_checks=True).post(f"{ROOT}/datacenters", data="{}", content_type="application/json")
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/", "/nothing", "/hosts/", "/hosts/7", "/hosts/../admin"])
def test_an_unknown_address(alice: User, path: str) -> None:
    answer = caller(alice).get(path)
    assert answer.status == 404
    assert answer.code == "not_found"


def test_a_wrong_method(alice: User) -> None:
    answer = caller(alice)("DELETE", "/jobs")
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET"


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '"x"', "\x00", '{"name": 7}', '{"name": "x", "nmae": "y"}'])
def test_a_body_that_cannot_be_read(alice: User, body: str) -> None:
    answer = caller(alice)("POST", "/datacenters", body)
    assert (answer.status, answer.code) in {(400, "malformed_request"), (422, "invalid_input")}
    assert answer.body["message"]


def test_invalid_input_names_its_fields_and_does_not_repeat_it(alice: User) -> None:
    answer = caller(alice).post("/clusters", {"datacenter_id": "planted-input", "nmae": "planted-input"})
    assert (answer.status, answer.code) == (422, "invalid_input")
    assert {one["field"] for one in answer.body["fields"]} == {"body.datacenter_id", "body.name", "body.nmae"}
    assert "planted-input" not in answer.text


def test_an_internal_error_is_json_without_its_text(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("planted-detail")

    monkeypatch.setattr("inventory.services.listings.datacenters", broken)
    client = Client(raise_request_exception=False, headers={"Authorization": f"Bearer {token(alice)}"})
    answer = client.get(f"{ROOT}/datacenters")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert b"planted-detail" not in answer.content


def test_the_schema_has_every_operation_once_with_its_refusal(alice: User) -> None:
    schema = caller(alice).get("/openapi.json").body
    operations = [one for path in schema["paths"].values() for one in path.values()]
    ids = [one["operationId"] for one in operations]
    assert len(set(ids)) == len(ids)
    for one in operations:
        assert one["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/Failure"), one
        assert one["security"] == [{"Token": []}, {"Session": []}], one["operationId"]
    names = set(re.findall(r"#/components/schemas/(\w+)", str(schema)))
    assert names <= schema["components"]["schemas"].keys()


def test_the_reference_page_holds_every_route_and_loads_nothing_from_elsewhere(alice: User, client: Client) -> None:
    assert client.get(reverse("api-docs")).headers["Location"] == "/login/?next=/api/v1/docs"
    client.force_login(alice)
    page = client.get(reverse("api-docs")).content.decode()
    for path, operations in api.get_openapi_schema()["paths"].items():
        assert path in page
        for one in operations.values():
            assert f'id="{one["operationId"]}"' in page
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r'id="([^"]+)"', page))
    assert not re.search(r"""(src|href|action)=["'](https?:)?//""", page)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page)


# What a page can do, and how a program does it. A new page that changes something must be entered here, or have no
# counterpart for a reason that is given.
ROUTES_OF_VIEWS = {
    "cancel-task": "cancel_job",
    "sign-checkpoint": "sign_checkpoint",
    "add-role": "assign_role",
    "approve-task": "approve_job",
    "switch-two-person-rule": "switch_two_person_rule_on",  # and switch_two_person_rule_off
    "remove-role": "remove_role",
    "acknowledge-alarm": "acknowledge_alarm",
    "revoke-api-token": "revoke_api_token",
    "add-api-token": "create_api_token",
    "change-password": "change_password",
    "enrol-second-factor": "enrol_second_factor",
    "renew-recovery-codes": "renew_recovery_codes",
    "remove-second-factor": "remove_own_second_factor",  # and remove_second_factor, in Django's admin
    "appliance:syslog-add": "add_syslog_target",
    "appliance:syslog-edit": "edit_syslog_target",
    "appliance:syslog-remove": "remove_syslog_target",
    "appliance:syslog-test": "send_syslog_test",
    "appliance:syslog-upload-client": "upload_syslog_client_certificate",
    "appliance:syslog-remove-client": "remove_syslog_client_certificate",
    "encryption:vm-options-many": "apply_many_vm_options",
    "encryption:make-crypto-inventory": "make_crypto_inventory",
    "inventory:add-datacenter": "add_datacenter",
    "inventory:rename-datacenter": "rename_datacenter",
    "inventory:remove-datacenter": "remove_datacenter",
    "inventory:add-cluster": "add_cluster",
    "inventory:rename-cluster": "rename_cluster",
    "inventory:remove-cluster": "remove_cluster",
    "inventory:add-host": "add_host",
    "inventory:edit-host": "edit_host",
    "inventory:refresh-host": "refresh_host",
    "inventory:remove-host": "remove_host",
    "inventory:power": "power_on",
    "inventory:remove-vm": "remove_virtual_machine",
    "inventory:discard-saved-state": "discard_saved_state",
    "encryption:vm-options": "apply_vm_options",
    "encryption:vm-plan": "plan_vm_options",
    "encryption:vm-recrypt": "recrypt_vm",  # and deep_recrypt_vm, rotate_passphrases
    "encryption:vm-recrypt-plan": "plan_recrypt",
    "encryption:vm-unlock": "unlock_vm",
    "encryption:vm-check": "check_vm_compliance",
    "encryption:host-check": "check_host_compliance",
    "encryption:policy-check": "check_policy_compliance",
    "encryption:policy-add": "create_storage_policy",
    "encryption:policy-edit": "edit_storage_policy",
    "encryption:policy-clone": "clone_storage_policy",
    "encryption:policy-delete": "delete_storage_policy",
    "encryption:add-disk": "add_disk",
    "encryption:attach-disk": "attach_disk",
    "encryption:detach-disk": "detach_disk",
    "encryption:destroy-disk": "destroy_detached_disk",
    "encryption:add-vtpm": "add_vtpm",
    "encryption:remove-vtpm": "remove_vtpm",
    "encryption:vtpm-read": "read_vtpm_certificates",
    "encryption:vtpm-replace": "replace_vtpm_certificate",
    "appliance:crypto-modules-test": "test_crypto_modules",
    "encryption:find-leftovers": "find_leftovers",
    "encryption:destroy-leftover": "destroy_leftover",
    "encryption:keep-leftover": "keep_leftover",
    "encryption:kms-recrypt": "recrypt_provider",
    "encryption:vm-migrate": "migrate_vm",
    "encryption:vm-encrypted-vmotion": "set_encrypted_vmotion",
    "encryption:cluster-probe": "probe_cluster",
    "encryption:new-vm": "create_vm",
    "encryption:new-vm-plan": "plan_new_vm",
    "encryption:vm-clone": "clone_vm",
    "encryption:vm-export": "export_vm",
    "encryption:import-vm": "import_vm",
    "encryption:bundles-look": "look_for_bundles",
    "encryption:bundle-delete": "delete_bundle",
    "encryption:kms-add": "add_key_provider",
    "encryption:kms-add-server": "add_key_server",
    "encryption:kms-remove-server": "remove_key_server",
    "encryption:kms-edit-server": "edit_key_server",
    "encryption:kms-move-server": "move_key_server",
    "encryption:kms-fetch-certificate": "fetch_server_certificate",
    "encryption:kms-review-certificate": "accept_server_certificate",
    "encryption:kms-make-client": "make_client_certificate",
    "encryption:kms-upload-client": "upload_client_identity",
    "encryption:kms-use-client": "use_client_certificate",
    "encryption:kms-refresh-keys": "refresh_keys",
    "encryption:kms-adopt-key": "adopt_key",
    "encryption:kms-distrust": "distrust_certificate",
    "encryption:kms-revoke-key": "revoke_key",
    "encryption:kms-destroy-key": "destroy_key",
    "encryption:kms-trust": "trust_key_servers",
    "encryption:kms-client-key": "create_client_key",
    "encryption:kms-client-certificate": "install_client_certificate",
    "encryption:kms-adopt": "adopt_keys",
    "encryption:kms-check": "check_key_provider",
    "encryption:kms-default": "set_default_key_provider",
    "encryption:kms-remove": "remove_key_provider",
    "attestation:edit-policy": "edit_attestation_policy",
    "attestation:edit-references": "save_reference_values",
    "attestation:approve-reference": "approve_reference_values",
    "attestation:attest": "attest_host",
    "attestation:enrol": "enrol_tpm",
    "attestation:accept-new-tpm": "accept_new_tpm",
    "attestation:remove-tpm": "remove_tpm",
    "attestation:trust-boot": "trust_boot",
    "attestation:accept-changes": "accept_changes",
    "attestation:add-anchor": "add_trust_anchor",
    "attestation:remove-anchor": "remove_trust_anchor",
    "attestation:dismiss-registration": "dismiss_tpm_registration",
}
ONLY_OF_BROWSERS = {"login", "login-code", "logout", "theme"}


def test_whatever_a_page_can_change_the_api_can(alice: User, client: Client) -> None:
    """Posts to every page of the product: whatever does not answer 405 is a change and has a route."""
    inventory = sample.make()
    client.force_login(alice)
    operations = {one["operationId"] for path in api.get_openapi_schema()["paths"].values() for one in path.values()}
    changes = set()
    for name, args in _pages(inventory):
        if name not in ONLY_OF_BROWSERS and client.post(reverse(name, args=args)).status_code != 405:
            changes.add(name)
    assert changes == ROUTES_OF_VIEWS.keys()
    assert set(ROUTES_OF_VIEWS.values()) <= operations


def _pages(inventory: sample.Sample) -> list[tuple[str, list[object]]]:
    """Every named page with arguments that fit its pattern."""
    fitting = {
        "kind": "vm", "verb": "on", "view": "hosts", "nv_index": 1, "job_id": uuid4(), "vm_id": inventory.vm.pk,
        "host_id": inventory.host.pk, "cluster_id": inventory.cluster.pk, "datacenter_id": inventory.datacenter.pk,
        "verdict_id": 1,
    }  # fmt: skip
    found: list[tuple[str, list[object]]] = []
    resolver = get_resolver()
    spaces = [("", resolver), *((f"{name}:", inner) for name, (_, inner) in resolver.namespace_dict.items())]
    for prefix, inner in spaces:
        if prefix in ("admin:", "api:"):
            continue
        for name in {key for key in inner.reverse_dict if isinstance(key, str)}:
            ((_, parameters),) = inner.reverse_dict.getlist(name)[0][0]
            values = [fitting.get(one, uuid4()) for one in parameters]
            if name in ("vms", "hosts"):
                values[0] = "cluster"
            found.append((prefix + name, values))
    return found


class TestTokenPages:
    def test_a_token_is_made_shown_once_and_revoked(self, alice: User, client: Client) -> None:
        client.force_login(alice)
        assert "You have no API tokens" in client.get(reverse("api-tokens")).content.decode()
        answer = client.post(reverse("add-api-token"), {"name": "backup", "days": "30"})
        assert answer.status_code == 201
        assert answer.headers["Cache-Control"] == "no-store, private"
        found = re.search(r'value="(bartizan_[\w-]{43})"', answer.content.decode())
        assert found is not None
        assert Caller(found[1]).get("/me").status == 200
        page = client.get(reverse("api-tokens")).content.decode()
        assert "backup" in page and found[1] not in page
        row = ApiToken.objects.get()
        client.post(reverse("revoke-api-token", args=[row.pk]))
        assert not ApiToken.objects.exists()
        assert Caller(found[1]).get("/me").status == 401
        kinds = list(Event.objects.order_by("id").values_list("kind", "actor"))
        assert kinds == [
            ("api_token.created", "alice"), ("api_token.revoked", "alice"), ("api_token.refused", "nobody"),
        ]  # fmt: skip

    @pytest.mark.parametrize("values", [{}, {"name": "x"}, {"name": " ", "days": "30"}, {"name": "x", "days": "9999"}])
    def test_bad_input(self, alice: User, client: Client, values: dict[str, str]) -> None:
        client.force_login(alice)
        assert client.post(reverse("add-api-token"), values).status_code == 422
        assert not ApiToken.objects.exists()

    def test_the_same_name_twice(self, alice: User, client: Client) -> None:
        client.force_login(alice)
        for status in (201, 409):
            answer = client.post(reverse("add-api-token"), {"name": "backup", "days": "30"})
            assert answer.status_code == status
        assert ApiToken.objects.count() == 1

    def test_nobody_sees_or_revokes_anothers(self, alice: User, charlie: User, client: Client) -> None:
        row = api_tokens.create_token(user=charlie, name="charlies own", days=30, actor=charlie).row
        client.force_login(alice)
        assert "charlies own" not in client.get(reverse("api-tokens")).content.decode()
        assert client.post(reverse("revoke-api-token", args=[row.pk])).status_code == 404
        assert caller(alice)("DELETE", f"/api-tokens/{row.pk}").code == "api_token_not_found"
        assert ApiToken.objects.filter(pk=row.pk).exists()

    def test_nobody_is_sent_to_the_login(self, client: Client) -> None:
        for name in ("api-tokens", "add-api-token"):
            assert client.get(reverse(name)).headers["Location"].startswith("/login/")


class TestTokenRoutes:
    def test_a_session_makes_one_and_a_token_may_not(self, alice: User, client: Client) -> None:
        client.force_login(alice)
        made = client.post(f"{ROOT}/api-tokens", {"name": "backup", "days": 7}, content_type="application/json")
        assert made.status_code == 201
        call = Caller(made.json()["token"])
        assert [one["name"] for one in call.get("/api-tokens").body] == ["backup"]
        assert "token" not in call.get("/api-tokens").body[0]
        refused = call.post("/api-tokens", {"name": "another"})
        assert (refused.status, refused.code) == (403, "token_may_not_create_tokens")

    @pytest.mark.parametrize("days", [0, -1, 366, 10**12])
    def test_days_out_of_range(self, alice: User, client: Client, days: int) -> None:
        client.force_login(alice)
        answer = client.post(f"{ROOT}/api-tokens", {"name": "x", "days": days}, content_type="application/json")
        assert (answer.status_code, answer.json()["code"]) == (422, "days_invalid")

    def test_too_many(self, alice: User, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(api_tokens, "MOST_TOKENS", 0)
        client.force_login(alice)
        answer = client.post(f"{ROOT}/api-tokens", {"name": "x", "days": 7}, content_type="application/json")
        assert (answer.status_code, answer.json()["code"]) == (409, "too_many_tokens")
        assert client.post(reverse("add-api-token"), {"name": "x", "days": "30"}).status_code == 409
        assert not ApiToken.objects.exists()


class TestCommand:
    def test_it_prints_the_token(self, charlie: User, capsys: pytest.CaptureFixture[str]) -> None:
        call_command("create_api_token", "--username", "charlie", "--name", "backup")
        made = capsys.readouterr().out.strip()
        assert Caller(made).get("/me").body["username"] == "charlie"

    @pytest.mark.parametrize(
        ("username", "why"), [("nobody", "there is no user nobody"), ("charlie", "may not log in")]
    )
    def test_it_refuses_who_is_not_there_or_may_not_log_in(self, charlie: User, username: str, why: str) -> None:
        User.objects.filter(pk=charlie.pk).update(is_active=False)
        with pytest.raises(CommandError, match=why):
            call_command("create_api_token", "--username", username, "--name", "backup")
        assert not ApiToken.objects.exists()
