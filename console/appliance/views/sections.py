"""The side navigation of the appliance's pages, which each of them joins by `add`."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_safe


@dataclass(frozen=True, slots=True)
class Section:
    """One page: its name in the navigation, its URL's name."""

    label: str
    url_name: str

    @property
    def url(self) -> str:
        return reverse(self.url_name)


_sections: list[Section] = []


def add(section: Section) -> None:
    _sections.append(section)


def all_sections() -> Sequence[Section]:
    """For templates: the context of each page has this as `appliance_sections`."""
    return tuple(_sections)


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """The first of the pages."""
    return redirect(_sections[0].url_name)
