"""An API token has at most what was chosen for it, and never more than its user has at the time it is used."""

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from console import api_tokens
from console.models import ApiToken
from inventory.authorize import ROLES, Role
from inventory.models import RoleAssignment
from tests.api_client import Caller

pytestmark = pytest.mark.django_db


def limited(user: User, **chosen: object) -> Caller:
    made = api_tokens.create_token(user=user, name=str(chosen)[:80], days=1, actor=user, **chosen)  # type: ignore[arg-type]
    return Caller(made.token)


def test_a_token_of_an_administrator_for_an_auditor(alice: User) -> None:
    call = limited(alice, role="auditor")
    assert call.get("/datacenters").status == 200
    assert call.post("/datacenters", {"name": "New"}).code == "not_permitted"
    assert call.get("/me").body["is_administrator"] is False
    assert ApiToken.objects.get().privileges == sorted(ROLES[Role.AUDITOR])


def test_a_token_of_single_privileges(alice: User) -> None:
    call = limited(alice, privileges=["System.View", "Datacenter.Create"])
    assert call.post("/datacenters", {"name": "New"}).status == 201
    assert call.get("/key-providers").code == "not_permitted"


def test_a_token_has_no_more_than_its_user_has_now(alice: User) -> None:
    dora = User.objects.create_user("dora")
    row = RoleAssignment.objects.create(user=dora, role=Role.AUDITOR, assigned_by="test")
    call = limited(dora, role="administrator")
    assert call.get("/datacenters").status == 200
    assert call.post("/datacenters", {"name": "New"}).code == "not_permitted"
    row.delete()
    assert call.get("/datacenters").code == "not_permitted"


def test_a_token_whose_privileges_are_no_longer_known_has_none(alice: User) -> None:
    call = limited(alice, privileges=["System.View"])
    ApiToken.objects.update(privileges=["Gone.Away"])
    assert call.get("/datacenters").code == "not_permitted"


@pytest.mark.parametrize(
    ("chosen", "code"),
    [({"role": "emperor"}, "role_unknown"), ({"privileges": ["System.View", "Make.Tea"]}, "privilege_unknown")],
    ids=["role", "privilege"],
)
def test_what_is_no_right(alice: User, admin: Client, chosen: dict[str, object], code: str) -> None:
    answer = admin.post("/api/v1/api-tokens", {"name": "x", **chosen}, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert not ApiToken.objects.exists()


def test_through_the_page_and_the_session(alice: User, admin: Client) -> None:
    answer = admin.post(reverse("add-api-token"), {"name": "backup", "days": "30", "role": "operator"})
    assert answer.status_code == 201
    assert ApiToken.objects.get().privileges == sorted(ROLES[Role.OPERATOR])
    assert f"At most {len(ROLES[Role.OPERATOR])} privileges" in admin.get(reverse("api-tokens")).content.decode()
    made = admin.post("/api/v1/api-tokens", {"name": "y", "role": "auditor"}, content_type="application/json").json()
    assert made["privileges"] == sorted(ROLES[Role.AUDITOR])
    assert admin.post(reverse("add-api-token"), {"name": "z", "days": "30", "role": "emperor"}).status_code == 422


def test_single_privileges_on_the_page(alice: User, admin: Client) -> None:
    address, some = reverse("add-api-token"), ["Datacenter.Create", "System.View"]
    sent = {"name": "some", "days": "30", "role": "privileges"}
    assert admin.post(address, sent | {"privileges": some}).status_code == 201
    assert ApiToken.objects.get().privileges == some
    for wrong in ({}, {"privileges": ["Make.Tea"]}, {"privileges": some, "role": ""}):
        assert admin.post(address, sent | wrong | {"name": "other"}).status_code == 422, wrong
    assert "Tick at least one" in admin.post(address, sent).content.decode()
    assert ApiToken.objects.count() == 1


def test_on_the_command_line(alice: User) -> None:
    call_command("create_api_token", username="alice", name="cli", role="operator")
    assert ApiToken.objects.get().privileges == sorted(ROLES[Role.OPERATOR])
    with pytest.raises(CommandError, match="no role emperor"):
        call_command("create_api_token", username="alice", name="other", role="emperor")
