"""Tags and filters of the pages: icons, sizes, statuses, links of jobs and events, the tree."""

from typing import Any, Final

from django import template
from django.db.models import Model
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString

from inventory import authorize, jobs
from inventory.models import Alarm, Event, Job, JobStatus, Severity, TargetKind
from inventory.views import extensions, tree
from inventory.views.pages import ICONS, Step

register = template.Library()

_OPENERS: Final = frozenset(
    ["a", "an", "another", "cannot", "its", "no", "nothing", "only", "that", "the", "there", "these", "this", "you"]
)
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_JOB_STYLES: Final = {
    JobStatus.WAITING.value: ("users", "warning"),
    JobStatus.PENDING.value: ("hourglass", "quiet"),
    JobStatus.RUNNING.value: ("sync", "info"),
    JobStatus.SUCCEEDED.value: ("check-circle", "success"),
    JobStatus.FAILED.value: ("exclamation-circle", "danger"),
    JobStatus.ERRORED.value: ("exclamation-circle", "danger"),
    JobStatus.CANCELLED.value: ("minus-circle", "quiet"),
}
_SEVERITY_STYLES: Final = {
    Severity.INFO.value: ("info-circle", "info"),
    Severity.WARNING.value: ("exclamation-triangle", "warning"),
    Severity.ERROR.value: ("exclamation-circle", "danger"),
}


@register.simple_tag
def icon(name: str, style: str = "") -> SafeString:
    """An icon of the sprite (static/icons.txt). It is decoration: a word must stand beside it."""
    return format_html(
        '<svg class="i {}" aria-hidden="true"><use href="{}#{}"/></svg>', style, static("icons.svg"), name
    )


@register.simple_tag
def status(icon_name: str, word: str, style: str = "") -> SafeString:
    """Icon and word; `style` is success, info, warning, danger or quiet."""
    return format_html('<span class="status {}">{}{}</span>', style, icon(icon_name), word)


@register.simple_tag
def job_status(job: Job) -> SafeString:
    """Icon, word, and while it runs its step and a progress bar."""
    return status(_JOB_STYLES[job.status][0], job.get_status_display(), _JOB_STYLES[job.status][1])


@register.simple_tag
def severity(event: Event | Alarm) -> SafeString:
    return status(*_both(event))


def _both(event: Event | Alarm) -> tuple[str, str, str]:
    icon_name, style = _SEVERITY_STYLES[event.severity]
    return icon_name, event.get_severity_display(), style


@register.simple_tag(takes_context=True)
def may(context: dict[str, Any], action: str, target: Model | None = None) -> bool:
    """Whether the user of the page has the right on the object; without one, at the root."""
    return authorize.may(context["request"].user, action, target)


@register.simple_tag(takes_context=True)
def may_somewhere(context: dict[str, Any], action: str) -> bool:
    """Whether the user of the page has the right on any object."""
    return authorize.may_somewhere(context["request"].user, action)


@register.filter
def job_label(job: Job) -> str:
    return jobs.label(job)


@register.filter
def target_url(row: Job | Event | Alarm) -> str:
    return extensions.target_url(row.target_kind, row.target_id)


@register.filter
def facts(event: Event) -> list[tuple[str, str]]:
    """What an event holds besides its line, for people."""
    fixed = {
        "Reason": event.reason,
        "Task": str(event.job_id or ""),
        "Plan": event.plan_digest,
        "Number": str(event.sequence or "not sealed yet"),
        "Digest": event.digest,
    }
    found = [(name, value) for name, value in fixed.items() if value]
    for name, value in sorted(event.data.items()):
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        found.append((name.replace("_", " "), text))
    return found


@register.filter
def kind_icon(kind: str) -> str:
    return ICONS.get(TargetKind(kind), "objects") if kind in TargetKind.values else "objects"


@register.filter
def size(count: int | None) -> str:
    """Bytes for people: 1.5 GiB."""
    number = float(count or 0)
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "B" or number == int(number) else f"{number:.1f} {unit}"


@register.filter
def sentence(text: str) -> str:
    """Begins with a capital, unless it begins with what may be an object's name."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0] in _OPENERS else text


@register.filter
def percent_of(part: int, whole: int) -> int:
    return min(100, max(0, part * 100 // whole)) if whole else 0


@register.filter
def lacking(whole: int | None, part: int | None) -> int:
    return (whole or 0) - (part or 0)


@register.inclusion_tag("inventory/_tree.html", takes_context=True)
def inventory_tree(context: dict[str, Any]) -> dict[str, Any]:
    """The tree with the path to the present object open, as it is when a page is loaded whole."""
    path: list[Step] = context.get("path") or []
    request = context["request"]
    view = tree.view_of(request)
    values = tree.whole_context(request.user, view, [step.node for step in path[:-1]])
    return values | {"request": request, "node": context.get("node", "")}
