"""All addresses x roles x own and foreign subtree.

The addresses come from the URL resolver and the API's routers, what each asks for is seen at `authorize` itself, and
rights.txt says what it is to ask for: a new address, or one that asks for less, fails here until its line is written.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Model
from django.test import Client

from inventory import authorize
from inventory.authorize import Actor, Role
from inventory.engine.privileges import RIGHTS
from inventory.models import RoleAssignment
from tests.rights import world
from tests.rights.routes import Route, operations, pages
from tests.rights.world import SECRET, Subtree

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]

TABLE: Final = Path(__file__).parent / "rights.txt"
OPEN: Final = "open"  # asks for nothing: the same for everybody who is logged in
KIND_OF: Final = {
    "Datacenter": "datacenter", "Cluster": "cluster", "Host": "host", "Datastore": "datastore", "VirtualMachine": "vm",
}  # fmt: skip
# Answers for each VM by itself, so that a refusal stands in the page.
OF_SINGLE_VMS: Final = frozenset({"POST encryption:vm-options-many", "POST apply_many_vm_options"})
# Shown to everybody, with less in it for who may see less.
EMPTY: Final = frozenset({"GET tasks", "GET inventory:root", "GET inventory:tree", "GET approvals"})
# Found among what the user may see, so that what is foreign is not there.
FOUND: Final = frozenset(
    {
        "POST cancel-task", "POST acknowledge-alarm", "POST cancel_job", "POST acknowledge_alarm", "GET get_datacenter",
        "GET approve-task", "POST approve-task", "POST approve_job",
    }
)  # fmt: skip


def table() -> dict[str, tuple[str, ...]]:
    lines = [line.split() for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    return {f"{line[0]} {line[1]}": tuple(line[2:]) for line in lines}


@dataclass(frozen=True, slots=True)
class World:
    own: Subtree
    foreign: Subtree


@pytest.fixture
def both(db: None) -> World:
    shared = world.everywhere()
    return World(world.subtree("own", shared), world.subtree(SECRET, shared))


Ask = tuple[str, Model | None]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Ask]:
    """What `authorize` is asked for, in order; not what pages ask `may` for to leave controls out."""
    found: list[Ask] = []
    real = authorize.may

    def may(actor: Actor, action: str, target: Model | None = None) -> bool:
        if sys._getframe(1).f_code is authorize.authorize.__code__:
            found.append((action, target))
        return real(actor, action, target)

    monkeypatch.setattr(authorize, "may", may)
    return found


def told(ask: Ask) -> str:
    """As the table has it: an action on a kind of object in the tree, on what stands in no place, or on anything."""
    action, target = ask
    kind = KIND_OF.get(type(target).__name__, "")
    return f"{action}@{kind}" if kind else action


def send(route: Route, client: Client, ids: dict[str, object]) -> Any:
    """Nothing that it changes stays."""
    with transaction.atomic():
        answer = route.send(client, ids)
        transaction.set_rollback(True)
    return answer


def check_asks(routes: Iterator[Route], both: World, asked: list[Ask], alice: User) -> None:
    client = Client()
    client.force_login(alice)
    ids = both.own.ids | {"token_id": world.token_of(alice)}
    expected, wrong = table(), []
    for route in routes:
        asked.clear()
        answer = send(route, client, ids)
        if answer.status_code == 405:
            assert route.name not in expected, f"{route.name} is no address"
            continue
        seen = sorted({told(ask) for ask in asked}) or [OPEN]
        if tuple(seen) != expected.get(route.name):
            wrong.append(" ".join([route.name, *seen]))
    assert wrong == [], "lines for rights.txt, after a look at each:\n" + "\n".join(wrong)


def test_every_address_has_its_line() -> None:
    """At once, without a request; whether the line is right is seen below."""
    names = {route.name for route in [*pages(), *operations()]}
    lines = table()
    assert lines.keys() <= names, lines.keys() - names
    untold = {name.partition(" ")[2] for name in names} - {name.partition(" ")[2] for name in lines}
    assert untold == set(), f"add to {TABLE.name}: {untold}"
    unknown = {one.partition("@")[0] for line in lines.values() for one in line} - RIGHTS.keys() - {OPEN}
    assert unknown == set()


def test_what_the_operations_of_the_api_ask_for(both: World, asked: list[Ask], alice: User) -> None:
    check_asks(operations(), both, asked, alice)


@pytest.mark.slow
def test_what_the_pages_ask_for(both: World, asked: list[Ask], alice: User) -> None:
    check_asks(pages(), both, asked, alice)


def holds(user: User, line: tuple[str, ...], where: Subtree) -> bool:
    for one in line:
        action, _, kind = one.partition("@")
        if action != OPEN and not authorize.may(user, action, where.place(kind) if kind else None):
            return False
    return True


def check_role(user: User, where: Subtree, chosen: Callable[[tuple[str, ...]], bool], *, hides: bool = True) -> None:
    """Refused is what the role does not hold, nothing else; and nothing of the foreign subtree is told."""
    client = Client()
    client.force_login(user)
    ids = where.ids | {"token_id": world.token_of(user)}
    who = User.objects.get(pk=user.pk)  # what it holds stays as it is: every change is taken back
    lines, wrong = table(), []
    for route in [*pages(), *operations()]:
        if route.name not in lines or not chosen(lines[route.name]):
            continue
        answer = send(route, client, ids)
        may = holds(who, lines[route.name], where)
        refused = answer.status_code == 403 or (answer.status_code == 404 and route.name in FOUND)
        if refused is may and route.name not in OF_SINGLE_VMS | EMPTY:
            wrong.append(f"{route.name}: {answer.status_code}, {'allowed' if may else 'not allowed'}")
        if hides and not answer.streaming and SECRET in answer.content.decode(errors="replace"):
            wrong.append(f"{route.name}: tells of the foreign subtree")
    assert wrong == []


def _in_tree(line: tuple[str, ...]) -> bool:
    return any("@" in one for one in line)


def given(role: Role | None, both: World, *, at_root: bool = False) -> User:
    user = User.objects.create_user("bob")
    if role is not None:
        datacenter = None if at_root else both.own.datacenter
        RoleAssignment.objects.create(user=user, role=role, datacenter=datacenter, assigned_by="test")
    return user


@pytest.mark.parametrize("role", [Role.OPERATOR, None], ids=["operator", "no role"])
def test_no_operation_of_the_api_reaches_into_a_foreign_subtree(both: World, role: Role | None) -> None:
    """The quick part of the matrix below."""
    client, lines = Client(), table()
    client.force_login(given(role, both))
    for route in operations():
        if _in_tree(lines[route.name]) and route.name not in OF_SINGLE_VMS:
            answer = send(route, client, both.foreign.ids)
            assert answer.status_code in (403, 404 if route.name in FOUND else 403), route.name
            assert SECRET not in answer.content.decode(), route.name


@pytest.mark.slow
@pytest.mark.parametrize("role", [*Role, None], ids=lambda role: role or "no role")
@pytest.mark.parametrize("place", ["own", "foreign", "root"])
def test_roles(both: World, role: Role | None, place: str) -> None:
    """Of a role on the own data center, in it and in the foreign one; of one at the root what stands in no place."""
    user = given(role, both, at_root=place == "root")
    if place == "root":
        check_role(user, both.own, lambda line: not _in_tree(line), hides=False)
    elif place == "own":
        check_role(user, both.own, bool)
    else:
        check_role(user, both.foreign, _in_tree)
