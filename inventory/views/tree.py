"""The inventory tree at the left: three views of the same objects, children read when a node is first opened."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.urls import reverse
from django.views.decorators.http import require_safe

from inventory.authorize import VIEW, Actor, may
from inventory.models import TargetKind
from inventory.services import tree as reads
from inventory.views import extensions
from inventory.views.extensions import Badge

COOKIE: Final = "bartizan_tree"
VIEWS: Final = {
    "hosts": ("Hosts and clusters", "host"),
    "vms": ("Virtual machines", "vm"),
    "storage": ("Storage", "storage"),
}
MOST_OPEN: Final = 60  # nodes that are opened again at once; each costs two queries


@dataclass(frozen=True, slots=True)
class Branch:
    """A node as it is drawn. `url` gives its children, `next_url` more of them where not all are here."""

    key: str
    node: reads.Node
    level: int
    url: str
    is_open: bool
    children: "list[Branch]"
    next_url: str
    hidden: int
    marks: Sequence[Badge]  # what is wrong, as the apps above know it

    @property
    def has_lock(self) -> bool:
        """Whether a mark shows the lock of an encrypted VM already."""
        return any(icon == "lock" for _, icon, _ in self.marks)


def view_of(request: HttpRequest) -> str:
    wanted = request.GET.get("view") or request.COOKIES.get(COOKIE, "")
    return wanted if wanted in VIEWS else "hosts"


@require_safe
def whole(request: HttpRequest) -> HttpResponse:
    """The tree with the nodes in `open` opened; 204 while it would be what the browser has (`v`)."""
    view = view_of(request)
    context = whole_context(request.user, view, request.GET.get("open", "").split(","))
    if request.GET.get("v") == context["version"]:
        return HttpResponse(status=204)
    response = render(request, "inventory/_tree.html", context)
    response.set_cookie(COOKIE, view, httponly=True, samesite="Lax", secure=request.is_secure())
    return response


def whole_context(actor: Actor, view: str, wanted: Collection[str]) -> dict[str, Any]:
    left = list(dict.fromkeys(key for key in wanted if key))[:MOST_OPEN]
    roots = reads.roots(actor=actor).nodes if may(actor, VIEW) else ()
    branches = [_branch(actor, view, node, 1, set(left)) for node in roots]
    context: dict[str, Any] = {"view": view, "views": VIEWS, "branches": branches}
    drawn = render_to_string("inventory/_tree_branches.html", context)
    version = hashlib.sha256(f"{view}\n{drawn}".encode()).hexdigest()[:16]
    return context | {"drawn": drawn, "version": version}


@require_safe
def children(request: HttpRequest, view: str, kind: str, target_id: UUID) -> HttpResponse:
    """The lines below one node."""
    level = _number(request.GET.get("level", ""), 2, 20)
    limit = _number(request.GET.get("limit", ""), reads.LIMIT, reads.MOST)
    below, next_url, hidden = _below(request.user, view, TargetKind(kind), target_id, level, set(), limit)
    context = {"branches": below, "next_url": next_url, "hidden": hidden}
    return render(request, "inventory/_tree_branches.html", context)


def _number(text: str, default: int, most: int) -> int:
    return min(int(text), most) if text.isascii() and text.isdigit() and len(text) < 8 else default


def _branch(
    actor: Actor, view: str, node: reads.Node, level: int, wanted: set[str], badges: Sequence[Badge] = ()
) -> Branch:
    key = f"{node.kind}-{node.id}"
    is_open = node.has_children and key in wanted
    below, next_url, hidden = (
        _below(actor, view, node.kind, node.id, level + 1, wanted, reads.LIMIT) if is_open else ([], "", 0)
    )
    url = _url(view, node.kind, node.id, level + 1)
    marks = [badge for badge in badges if badge[0] == "label-danger"]
    return Branch(key, node, level, url, is_open, below, next_url, hidden, marks)


def _below(
    actor: Actor, view: str, kind: TargetKind, target_id: UUID, level: int, wanted: set[str], limit: int
) -> tuple[list[Branch], str, int]:
    found = reads.children(view=reads.View(view), kind=kind, target_id=target_id, actor=actor, limit=limit)
    hidden = found.total - len(found.nodes)
    next_url = f"{_url(view, kind, target_id, level)}&limit={limit + reads.LIMIT}" if hidden else ""
    vms = [node.id for node in found.nodes if node.kind == TargetKind.VIRTUAL_MACHINE]
    badges = extensions.list_badges(TargetKind.VIRTUAL_MACHINE, vms) if vms else {}
    below = [_branch(actor, view, node, level, wanted, badges.get(node.id, ())) for node in found.nodes]
    return below, next_url, hidden


def _url(view: str, kind: TargetKind, target_id: UUID, level: int) -> str:
    return f"{reverse('inventory:tree-children', args=[view, kind, target_id])}?level={level}"
