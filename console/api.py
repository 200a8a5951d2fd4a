"""The REST API: all routers under one root, callers known by token or session, refusals in one shape.

Denied by default: authentication stands at the root, so a route that is added later has it too (a test walks them).
"""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from django.contrib.auth.models import User
from django.http import Http404, HttpRequest, HttpResponse
from ninja import NinjaAPI, Router, Schema
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.openapi.schema import OpenAPISchema
from ninja.operation import Operation
from pydantic import Field
from typing_extensions import override

from attestation.api import router as attestation_router
from console import api_tokens
from console.account_api import router as account_router
from console.api_auth import Session, Token, by_token, refuse_tokens
from console.appliance.api import router as appliance_router
from console.models import ApiToken
from encryption.api import router as encryption_router
from inventory.api import router as inventory_router
from inventory.api.frame import Failure, FieldProblem, Input, actor_of
from inventory.authorize import may
from inventory.errors import ServiceError
from inventory.services import access
from inventory.services.roles import ASSIGN

VERSION: Final = "1"
DESCRIPTION: Final = """\
Whatever the pages of this console can do, over the same services and with the same rights.

Send `Authorization: Bearer <token>` with a token from *API tokens* in the user menu. Long operations answer 202 with a
job: read it at `/jobs/{job_id}` until `is_live` is false. Refusals are JSON with a stable `code`, a `message` and a
`hint`. Lists are paged by `page` and `page_size` (at most 500). Times are UTC, sizes bytes, ids UUIDs.
"""


class ConsoleApi(NinjaAPI):
    """NinjaAPI with short operation ids and the refusals in the schema of every operation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._schemas: dict[str | None, OpenAPISchema] = {}

    @override
    def get_openapi_operation_id(self, operation: Operation) -> str:
        return operation.view_func.__name__

    @override
    def get_openapi_schema(
        self, *, path_prefix: str | None = None, path_params: dict[str, Any] | None = None
    ) -> OpenAPISchema:
        """Of the running code, so once is enough: nothing in our addresses is a parameter of the whole API."""
        if path_params:
            raise ValueError("the API's root has no parameters")
        return self._schemas.get(path_prefix) or self._schemas.setdefault(path_prefix, self._made(path_prefix))

    def _made(self, path_prefix: str | None) -> OpenAPISchema:
        schema = super().get_openapi_schema(path_prefix=path_prefix)
        shapes: dict[str, Any] = schema["components"]["schemas"]
        shapes["FieldProblem"] = FieldProblem.model_json_schema()
        failure = Failure.model_json_schema(ref_template="#/components/schemas/{model}")
        failure.pop("$defs", None)
        shapes["Failure"] = failure
        refusal = {
            "description": "Not carried out",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}},
        }
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["summary"] = _words(operation["operationId"])
                operation["responses"]["default"] = refusal
        return schema

    @override
    def create_response(self, request: HttpRequest, data: Any, **options: Any) -> HttpResponse:
        response = super().create_response(request, data, **options)
        response.headers["Cache-Control"] = "no-store, private"
        return response


def _words(operation_id: str) -> str:
    words = [{"api": "API", "vm": "VM"}.get(word, word) for word in operation_id.split("_")]
    return " ".join([words[0].capitalize(), *words[1:]])


api = ConsoleApi(
    title="Bartizan",
    version=VERSION,
    description=DESCRIPTION,
    urls_namespace="api",
    auth=[Token(), Session()],
    docs_url=None,
    openapi_url=None,
)


def failure(request: HttpRequest, status: int, found: Failure) -> HttpResponse:
    return api.create_response(request, found.dict(exclude_none=True), status=status)


@api.exception_handler(ServiceError)
def service_refused(request: HttpRequest, exc: ServiceError) -> HttpResponse:
    return failure(request, exc.http_status, Failure(code=exc.code, message=exc.message, hint=exc.hint))


@api.exception_handler(AuthenticationError)
def unauthenticated(request: HttpRequest, exc: AuthenticationError) -> HttpResponse:
    """RFC 9110, 15.5.2: a 401 names the way in. RFC 6750, 3.1: `invalid_token` where one was given."""
    given = by_token(request)
    if given:
        access.record_token_refused()
    found = Failure(
        code="not_authenticated",
        message="the API token is not valid, has ended or was revoked" if given else "no API token was sent",
        hint="send Authorization: Bearer with a token from API tokens in the user menu",
    )
    response = failure(request, 401, found)
    response.headers["WWW-Authenticate"] = 'Bearer realm="Bartizan"' + (', error="invalid_token"' if given else "")
    return response


@api.exception_handler(ValidationError)
def input_invalid(request: HttpRequest, exc: ValidationError) -> HttpResponse:
    """Names the fields and what is wrong with them; never repeats what was sent."""
    problems = [FieldProblem(field=_field_path(error["loc"]), message=str(error["msg"])) for error in exc.errors]
    names = ", ".join(problem.field for problem in problems[:5])
    found = Failure(
        code="invalid_input", message=f"the input is wrong: {names}", hint="see fields", fields=problems[:50]
    )
    return failure(request, 422, found)


@api.exception_handler(HttpError)
def http_error(request: HttpRequest, exc: HttpError) -> HttpResponse:
    """What the framework itself refuses: in practice a body that is no JSON."""
    found = Failure(code="malformed_request", message=str(exc).lower(), hint="send the body as JSON")
    return failure(request, exc.status_code, found)


@api.exception_handler(Http404)
def not_found(request: HttpRequest, exc: Http404) -> HttpResponse:
    return failure(request, 404, Failure(code="not_found", message="there is nothing at this address"))


def _field_path(location: tuple[str | int, ...]) -> str:
    """body.certificate_pem, query.page: the name of the route's own parameter for the body is left out."""
    parts = [str(part) for part in location]
    return ".".join([parts[0], *parts[2:]] if parts[0] == "body" and len(parts) > 2 else parts)


class TokenOut(Schema):
    """An API token without itself: `prefix` is how it begins. `privileges` null: all that its user holds."""

    id: UUID
    name: str
    prefix: str
    privileges: list[str] | None
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None


class NewTokenOut(TokenOut):
    """`token` is shown here and never again."""

    token: str


class TokenIn(Input):
    """`role`, `privileges`: at most what they hold, of your own rights at the time it is used; neither: all of them."""

    name: Annotated[str, Field(max_length=80)]
    days: int = 90
    role: Annotated[str, Field(max_length=32)] = ""
    privileges: Annotated[list[Annotated[str, Field(max_length=60)]], Field(max_length=100)] = []


class UserOut(Schema):
    """Whom the request's token or session belongs to."""

    username: str
    is_administrator: bool


router = Router(tags=["Account"])


@router.get("/me", response=UserOut)
def get_current_user(request: HttpRequest) -> UserOut:
    user = actor_of(request)
    return UserOut(username=user.username, is_administrator=may(user, ASSIGN))


@router.get("/api-tokens", response=list[TokenOut])
def list_api_tokens(request: HttpRequest) -> list[ApiToken]:
    """Your own."""
    return list(api_tokens.tokens_of(actor=actor_of(request)))


@router.post("/api-tokens", response={201: NewTokenOut})
def create_api_token(request: HttpRequest, wanted: TokenIn) -> NewTokenOut:
    """Only from a session: a token that could make others would outlive its own end and its revocation."""
    refuse_tokens(
        request, "token_may_not_create_tokens", "an API token cannot make another",
        hint="create it under API tokens in the user menu",
    )  # fmt: skip
    user: User = actor_of(request)
    made = api_tokens.create_token(
        user=user, name=wanted.name, days=wanted.days, role=wanted.role, privileges=wanted.privileges, actor=user
    )
    return NewTokenOut(**TokenOut.from_orm(made.row).dict(), token=made.token)


@router.delete("/api-tokens/{uuid:token_id}", response={204: None})
def revoke_api_token(request: HttpRequest, token_id: UUID) -> None:
    """One of your own, also the one in use."""
    api_tokens.revoke_token(token_id=token_id, actor=actor_of(request))


@router.get("/openapi.json", include_in_schema=False)
def get_openapi(request: HttpRequest) -> OpenAPISchema:
    return api.get_openapi_schema()


api.add_router("", inventory_router)
api.add_router("", encryption_router)
api.add_router("", attestation_router)
api.add_router("", appliance_router)
api.add_router("", router)
api.add_router("", account_router)
