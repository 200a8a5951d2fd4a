"""What every route of the REST API shares: who calls, the shape of a refusal, pages of a list."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from django.contrib.auth.models import User
from django.http import HttpRequest, StreamingHttpResponse
from ninja import Schema
from pydantic import ConfigDict, Field

from inventory.services.listings import Paging
from inventory.services.search import MOST_PAGE_SIZE, PAGE_SIZE

# A search text or name; PostgreSQL takes no NUL in a text.
Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
MAX_OFFSET_PAGE = 1_000_000


def actor_of(request: HttpRequest) -> User:
    """Whom the token or the session belongs to; console/api.py lets nobody else come this far."""
    if not isinstance(request.user, User):
        raise TypeError("a route of the API was reached without authentication")
    return request.user


class FieldProblem(Schema):
    """One field of the input that is wrong; `field` is its path, such as body.name."""

    field: str
    message: str


class Failure(Schema):
    """Why a request was not carried out: `code` for programs, `message` and `hint` for people."""

    code: str
    message: str
    hint: str = ""
    fields: list[FieldProblem] | None = None


class Input(Schema):
    """A request's body. Fields that are not known are refused: a misspelt one must not pass for one left out."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


class PageQuery(Schema):
    """Which part of a list: `page` counts from 1."""

    page: Annotated[int, Field(ge=1, le=MAX_OFFSET_PAGE)] = 1
    page_size: Annotated[int, Field(ge=1, le=MOST_PAGE_SIZE)] = PAGE_SIZE

    def paging(self) -> Paging:
        return Paging(self.page, self.page_size)


class PageOut(Schema):
    """One page of a list. `page` is the last one where a later one was asked for."""

    total: int
    page: int
    pages: int


class Streamed(Protocol):
    """A file that is written while it is read."""

    @property
    def name(self) -> str: ...
    @property
    def content_type(self) -> str: ...
    @property
    def chunks(self) -> Iterator[str]: ...


def streamed(found: Streamed) -> StreamingHttpResponse:
    """As an attachment; nobody keeps a copy on the way."""
    headers = {"Content-Disposition": f'attachment; filename="{found.name}"', "Cache-Control": "no-store, private"}
    return StreamingHttpResponse(found.chunks, content_type=found.content_type, headers=headers)


Item = TypeVar("Item")
Row_co = TypeVar("Row_co", covariant=True)


class PageOfRows(Protocol[Row_co]):
    """What services give for one page of a list."""

    @property
    def items(self) -> Sequence[Row_co]: ...
    @property
    def total(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def pages(self) -> int: ...


def page_of(found: PageOfRows[Row_co], show: Callable[[Row_co], Item]) -> dict[str, Any]:
    """The answer of a list's route."""
    return {
        "items": [show(row) for row in found.items],
        "total": found.total,
        "page": found.number,
        "pages": found.pages,
    }
