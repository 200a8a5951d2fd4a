"""The API's reference as a page of this console, drawn from its OpenAPI schema. Loads nothing from elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render, resolve_url
from django.views.decorators.http import require_safe

from console.api import api

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """A parameter, or a field of a shape. `where`: path, query or empty; `shape`: the name to link to, if it is one."""

    name: str
    type: str
    where: str = ""
    is_required: bool = False
    text: str = ""
    shape: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    id: str
    method: str
    path: str
    summary: str
    text: str
    values: tuple[Value, ...]
    body: Value | None
    status: str
    answer: Value | None


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    text: str
    fields: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    groups: Mapping[str, tuple[Route, ...]]
    shapes: tuple[Shape, ...]


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """A page for people, so that somebody unknown goes to the login and not to a 401."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path(), resolve_url("login"))
    return render(request, "console/api_docs.html", {"reference": _reference(), "description": api.description})


@cache
def _reference() -> Reference:
    """Of the running code, so once is enough."""
    return reference(api.get_openapi_schema())


def reference(schema: Json) -> Reference:
    """The parts of an OpenAPI 3.1 document that the page shows."""
    schema = _with_choices(schema, schema["components"]["schemas"])
    groups: dict[str, list[Route]] = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            group = operation.get("tags", ["Other"])[0]
            groups.setdefault(group, []).append(_route(method.upper(), path, operation))
    shapes = [
        Shape(
            name,
            shape.get("description", ""),
            tuple(_value(field, inner, field in shape.get("required", [])) for field, inner in _fields(shape)),
        )
        for name, shape in sorted(schema["components"]["schemas"].items())
        if "properties" in shape and not name.endswith("Query")
    ]
    return Reference({name: tuple(routes) for name, routes in sorted(groups.items())}, tuple(shapes))


def _with_choices(part: Any, shapes: Json) -> Any:
    """The same with the choices themselves in place of the names of enumerations."""
    if isinstance(part, list):
        return [_with_choices(one, shapes) for one in part]
    if not isinstance(part, Mapping):
        return part
    named = shapes.get(_reference_of(part), {}) if "$ref" in part else {}
    if "enum" in named:
        return {"enum": named["enum"]}
    return {key: _with_choices(value, shapes) for key, value in part.items()}


def _route(method: str, path: str, operation: Json) -> Route:
    values = tuple(
        _value(one["name"], _given(one["schema"]), one.get("required", False), where=one["in"])
        for one in operation.get("parameters", [])
    )
    body = operation.get("requestBody")
    status, answer = next((code, answer) for code, answer in operation["responses"].items() if code != "default")
    return Route(
        id=operation["operationId"],
        method=method,
        path=path,
        summary=operation["summary"],
        text=operation.get("description", ""),
        values=values,
        body=_value("body", _content(body), True) if body else None,
        status=str(status),
        answer=_value("answer", _content(answer), True) if answer.get("content") else None,
    )


def _given(schema: Json) -> Json:
    """A parameter that may be left out, as it is when it is not: without the null that stands for leaving it out."""
    kept = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**kept[0], **rest} if len(kept) == 1 else schema


def _content(holder: Json) -> Json:
    content: Json = holder["content"]["application/json"]["schema"]
    return content


def _fields(shape: Json) -> list[tuple[str, Json]]:
    return list(shape["properties"].items())


def _value(name: str, schema: Json, is_required: bool, *, where: str = "") -> Value:
    shape = _reference_of(schema)
    return Value(name, _type(schema), where, is_required, schema.get("description", ""), shape)


def _reference_of(schema: Json) -> str:
    """The shape that a schema, the items of its list, or its first alternative names; empty for none."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    inner: list[Json] = [schema["items"]] if "items" in schema else [*schema.get("anyOf", []), *schema.get("allOf", [])]
    return next((found for one in inner if (found := _reference_of(one))), "")


def _type(schema: Json) -> str:
    if "$ref" in schema:
        return _reference_of(schema)
    if "allOf" in schema:
        return _type(schema["allOf"][0])
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(one) for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    words = str(schema.get("format") or schema.get("type", "any"))
    limits = [f"{sign} {schema[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    if "maxLength" in schema:
        limits.append(f"at most {schema['maxLength']} characters")
    return f"{words} ({', '.join(limits)})" if limits else words
