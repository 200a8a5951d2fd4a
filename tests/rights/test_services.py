"""Every function that a person can reach asks for a right: the services read as syntax trees.

A public function with an `actor` calls `authorize`, or hands the actor on to one that does. What is asked for stands in
the table of rights, and the table has nothing that nobody asks for. NOT seen here: whether it is asked before anything
is changed; that is what the matrix beside it tries.
"""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from inventory.authorize import OWN, VIEW, VIEW_ALL
from inventory.engine.privileges import RIGHTS

ROOT: Final = Path(__file__).parents[2]
APPS: Final = ("inventory", "attestation", "encryption", "console")
# With an actor, and reached by no person: what they are for stands behind them.
INNER: Final = {
    "inventory.alarms.raise_alarm",  # by what observes
    "inventory.authorize.authorize",
    "inventory.authorize.held_by",
    "inventory.authorize.limit",
    "inventory.authorize.may",
    "inventory.authorize.may_somewhere",
    "inventory.authorize.visible",
    "inventory.authorize.visible_targets",
    "inventory.events.record",  # by services, when they have asked
    "inventory.jobs.release",
    "inventory.jobs.request_cancel",
    "inventory.jobs.start",
    "inventory.services.alarms.unseen_count",  # only of what may be seen
    "inventory.services.approvals.may_approve",  # for controls
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Services, and the modules of inventory that they stand on."""
    found = [path for app in APPS for path in (ROOT / app).glob("services/**/*.py")]
    found += [ROOT / "inventory" / f"{name}.py" for name in ("alarms", "authorize", "events", "jobs")]
    found += (ROOT / "console").glob("**/*.py")
    for path in sorted(found):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name, ast.parse(path.read_text())


def functions() -> dict[str, tuple[str, ast.FunctionDef]]:
    """Those with an `actor` that is an actor, by dotted name; a name that a record carries is a plain `str`."""
    found = {}
    for module, tree in modules():
        for one in tree.body:
            if isinstance(one, ast.FunctionDef):
                arguments = [*one.args.args, *one.args.kwonlyargs]
                if any(each.arg == "actor" and "str" not in _text(each.annotation).split(" | ") for each in arguments):
                    found[f"{module}.{one.name}"] = (module, one)
    return found


def _text(node: ast.expr | None) -> str:
    return "" if node is None else ast.unparse(node)


def _calls_with_actor(function: ast.FunctionDef) -> set[str]:
    """Last names of what is called with the actor."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            given = [*node.args, *(each.value for each in node.keywords)]
            if any(isinstance(each, ast.Name) and each.id == "actor" for each in given):
                found.add(_text(node.func).rpartition(".")[2])
    return found


def test_every_service_asks_for_a_right() -> None:
    all_functions = functions()
    assert len(all_functions) > 150
    asking = {"authorize"}
    inner = {name.rpartition(".")[2] for name in INNER} - asking
    while True:
        more = {
            name.rpartition(".")[2]
            for name, (_, one) in all_functions.items()
            if name not in INNER and _calls_with_actor(one) & asking
        } - asking
        if not more - inner:
            break
        asking |= more - inner
    silent = {
        name
        for name, (_, one) in all_functions.items()
        if name not in INNER and not one.name.startswith("_") and one.name not in asking
    }
    assert silent == set(), f"these ask for nothing: {silent}"


def _asked(module: str, function: ast.FunctionDef) -> Iterator[str]:
    """Actions that are named by a constant; a local variable is not followed."""
    here = importlib.import_module(module)
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and _text(node.func).rpartition(".")[2] in ("authorize", "may", "may_somewhere"):
            if len(node.args) < 2:
                continue
            for part in ast.walk(node.args[1]):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value
                elif isinstance(part, ast.Name | ast.Attribute):
                    value: object = here
                    for name in _text(part).split("."):
                        value = getattr(value, name, None)
                    if isinstance(value, str):
                        yield value


def test_the_table_of_rights_is_what_services_ask_for() -> None:
    asked = {action for module, one in functions().values() for action in _asked(module, one)}
    for name, tree in modules():  # those that are asked for by a local variable stand in the module
        if name in ("inventory.services.power", "encryption.services.options"):
            here = importlib.import_module(name)
            constants = [_text(one.target) for one in tree.body if isinstance(one, ast.AnnAssign)]
            values = [getattr(here, each) for each in constants if each.isupper() and not each.startswith("_")]
            asked |= {each if isinstance(each, str) else each.name for each in values if hasattr(each, "name")}
            asked |= {each for each in values if isinstance(each, str) and "." in each}
    asked -= {"encryption.apply_options"}  # the job's name; the rights are those of its plan's steps
    assert asked - RIGHTS.keys() == set(), "add these to RIGHTS in inventory/engine/privileges.py"
    assert RIGHTS.keys() - asked <= {OWN, VIEW, VIEW_ALL}, "nobody asks for these"
