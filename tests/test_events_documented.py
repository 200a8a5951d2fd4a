"""docs/events.md names every kind of event, and none besides: read from the code that records them."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
APPS: Final = ("console", "inventory", "encryption", "attestation")
# Functions of events.py, and the place of the kind among their arguments.
RECORDERS: Final = {"record": 0, "draft": 0, "record_once": 0}
# Functions of one file that pass a kind on: looked at where they are called.
PASSING_ON: Final[Mapping[str, Mapping[str, int]]] = {
    "encryption/services/disk_jobs.py": {"_settle": 5},
    "encryption/services/key_lifecycle.py": {"_record": 2},
    "console/second_factor.py": {"_record": 0},
    "inventory/jobs.py": {"_record_end": 1},
    "inventory/services/roles.py": {"_record": 0},
    "inventory/services/sync.py": {"_event": 0},
}
POWER: Final = ("vm.power_on_requested", "vm.shut_down_requested", "vm.power_off_requested", "vm.reboot_requested")
DISKS: Final = tuple(f"vm.{verb}_disk_requested" for verb in ("add", "attach", "detach", "destroy"))
# Kinds that are put together or looked up.
COMPUTED: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("attestation/services/verifier.py", "kind"): tuple(
        f"host.attestation_{word}" for word in ("passed", "warned", "failed", "unreachable")
    ),
    ("encryption/services/boot_security.py", "kind"): (
        "vm.vbs_set", "vm.vbs_unset", "vm.secure_boot_on", "vm.secure_boot_off",
    ),
    ("encryption/services/disks.py", "f\"vm.{kind.name.partition('.')[2]}_requested\""): DISKS,
    ("encryption/services/vtpm_certificates.py", "f\"vm.{kind.name.partition('.')[2]}_requested\""): (
        "vm.read_vtpm_requested", "vm.replace_vtpm_certificate_requested",
    ),
    ("inventory/jobs.py", "f'job.{status}'"): ("job.failed", "job.errored", "job.cancelled"),
    ("inventory/services/access.py", "kind"): ("user.login_failed",),
    ("inventory/services/access.py", "f'{noun}.{change}'"): tuple(
        f"{noun}.{change}" for noun in ("user", "group") for change in ("added", "changed", "deleted")
    ),
    ("inventory/services/checkpoints.py", "KIND"): ("audit.checkpoint",),
    ("inventory/services/places.py", "f'{events.kind_of(place).value}.renamed'"): (
        "datacenter.renamed", "cluster.renamed",
    ),
    ("inventory/services/places.py", "f'{events.kind_of(place).value}.removed'"): (
        "datacenter.removed", "cluster.removed",
    ),
    ("inventory/services/power.py", "f\"vm.{kind.name.partition('.')[2]}_requested\""): POWER,
    ("inventory/services/sync.py", "kind"): (
        "vm.powered_on", "vm.powered_off", "vm.paused", "vm.resumed", "vm.crashed",
    ),
}  # fmt: skip


def calls(tree: ast.AST, path: str) -> Iterator[ast.expr]:
    """The expressions that give the kind of an event."""
    passing = PASSING_ON.get(path, {})
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name in passing
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        place = passing.get(name)
        if place is None and name.startswith("events.") and id(node) not in inside:
            place = RECORDERS.get(name.removeprefix("events."))
        if place is not None:
            yield node.args[place]


def kinds_of(expression: ast.expr, path: str) -> tuple[str, ...]:
    if isinstance(expression, ast.Constant):
        return (str(expression.value),)
    if isinstance(expression, ast.IfExp):
        return kinds_of(expression.body, path) + kinds_of(expression.orelse, path)
    text = ast.unparse(expression)
    assert (path, text) in COMPUTED, f"{path}: which kinds of event does {text} stand for? Add it to COMPUTED"
    return COMPUTED[path, text]


def kinds_in_code() -> set[str]:
    found: set[str] = set()
    for app in APPS:
        for file in (ROOT / app).rglob("*.py"):
            path = str(file.relative_to(ROOT))
            if path != "inventory/events.py":
                for expression in calls(ast.parse(file.read_text(encoding="utf-8")), path):
                    found.update(kinds_of(expression, path))
    return found


def kinds_in_docs() -> list[str]:
    text = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|", text, re.MULTILINE)


def test_every_kind_of_event_is_documented_and_no_other() -> None:
    recorded, documented = kinds_in_code(), kinds_in_docs()
    assert documented == sorted(documented), "docs/events.md: keep the kinds in order"
    assert len(documented) == len(set(documented))
    assert recorded - set(documented) == set(), "add these kinds to the table in docs/events.md"
    assert set(documented) - recorded == set(), "docs/events.md: nothing records these kinds"


def test_nobody_writes_events_past_the_one_function() -> None:
    """Which gives each its address, reason and plan."""
    for app in APPS:
        for file in (ROOT / app).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            if file != ROOT / "inventory/events.py" and "/migrations/" not in str(file):
                assert "Event.objects.create(" not in text and not re.search(r"[^.\w]Event\(\s*$", text, re.M), file
