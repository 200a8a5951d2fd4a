"""Pages of a list, as a browser asks for them and as _pager.html shows them."""

from collections.abc import Sequence
from typing import Any

from django.core.paginator import Page, Paginator
from django.http import HttpRequest

from inventory.services.listings import Listing, Paging
from inventory.services.search import PAGE_SIZE


def asked_page(request: HttpRequest, size: int = PAGE_SIZE) -> Paging:
    """From the address; what is no number is the first page."""
    text = request.GET.get("page", "1")
    return Paging(int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 1, size)


def pager(found: Listing[Any], size: int = PAGE_SIZE) -> Page[int]:
    """Django's pager knows ranges and neighbours; the rows themselves come from the service."""
    rows: Sequence[int] = range(found.total)
    return Paginator(rows, size).page(found.number)
