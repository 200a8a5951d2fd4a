"""Every address of the console, from the URL resolver and the API's routers, with input that its form accepts."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, get_args, get_origin
from uuid import UUID

from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from ninja.operation import Operation
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from console.api import api
from tests.api_client import ROOT

# Django's own, and what is answered without a login.
PUBLIC: Final = frozenset({"healthz", "login", "login-code", "logout", "oidc-begin", "oidc-finish", "readyz", "theme"})
KINDS: Final = ("datacenter", "cluster", "host", "datastore", "vm")
PLAIN: Final[Mapping[str, object]] = {
    "verb": "on", "view": "hosts", "direction": "up", "fingerprint": "0" * 64, "target": "vda", "nv_index": 29360130,
    "method": "upload", "what": "certificate.der",
    "action": "encryption.decrypt_vm", "rule": "encryption.decrypt_vm",
    "username": "holder",
}  # fmt: skip

QUERIES: Final[Mapping[str, Mapping[str, str]]] = {
    "GET search_inventory": {"text": "x"},
    "GET plan_vtpm": {"present": "true"},
}


@dataclass(frozen=True, slots=True)
class Route:
    """`name`: as the table of rights has it. `kind`: of `target_id`, where the address has one."""

    name: str
    method: str
    url: str  # a URL name, or a path of the API with braces
    parameters: tuple[str, ...]
    kind: str = ""
    fixed_kind: bool = False
    body: type[BaseModel] | None = None

    def send(self, client: Client, ids: Mapping[str, object]) -> Any:
        known = dict(PLAIN) | dict(ids) | {"target_id": ids.get(f"{self.kind}_id"), "kind": self.kind}
        if self.name in ("GET approve-task", "POST approve-task", "POST approve_job"):
            known["job_id"] = ids["waiting_id"]
        if self.url.startswith("/"):
            if self.name.endswith(" download_certificate"):
                known["what"] = "console-ca"
            path = re.sub(r"\{(?:\w+:)?(\w+)\}", lambda match: str(known[match[1]]), self.url)
            data = "" if self.body is None else json.dumps(_example(self.body, known))
            asked = QUERIES.get(self.name, {})
            return client.generic(
                self.method, ROOT + path, data=data, content_type="application/json", query_params=asked
            )
        names = [one for one in self.parameters if not (one == "kind" and self.fixed_kind)]
        if self.url.startswith("encryption:kms") or self.url.startswith("encryption:key-provider"):
            known["cluster_id"] = ids["provider_id"]
        query = "?vm=" + str(known["vm_id"]) if self.url.endswith("vm-options-many") else ""
        path = reverse(self.url, kwargs={one: known[one] for one in names}) + query
        sent = {"vm": known["vm_id"]} if query else {}
        # As htmx asks for it: the page without the shell around it, which has questions of its own.
        headers = {"HX-Request": "true", "HX-Target": "content"}
        return client.post(path, sent, headers=headers) if self.method == "POST" else client.get(path, headers=headers)


def pages() -> Iterator[Route]:
    """Each page twice: GET, and POST with nothing filled in."""
    for name, parameters, fixed in _patterns(get_resolver().url_patterns):
        if name in PUBLIC:
            continue
        kinds = [""]
        if "target_id" in parameters:
            kinds = [str(fixed["kind"])] if "kind" in fixed else _kinds(name)
        for kind in kinds:
            told = f"{name}[{kind}]" if len(kinds) > 1 else name
            for method in ("GET", "POST"):
                yield Route(f"{method} {told}", method, name, parameters, kind, "kind" in fixed)


def _kinds(name: str) -> list[str]:
    limited = {"inventory:vms": KINDS[:3], "inventory:hosts": KINDS[:2], "inventory:tree-children": KINDS[:3]}
    return list(limited.get(name, KINDS))


def _patterns(
    patterns: "list[URLPattern | URLResolver]", space: str = "", above: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...], dict[str, Any]]]:
    for one in patterns:
        parameters = (*above, *one.pattern.converters)
        if isinstance(one, URLResolver):
            below = ":".join(part for part in (space, one.namespace) if part)
            if below not in ("admin", "api"):
                yield from _patterns(one.url_patterns, below, parameters)
        elif one.name is not None:
            yield f"{space}:{one.name}" if space else one.name, parameters, dict(one.default_args)


def operations() -> Iterator[Route]:
    """Of the API, each with a body that its schema accepts."""
    _ = get_resolver().url_patterns  # only this builds the routers below the first
    for prefix, router in api._routers:
        for path, view in router.path_operations.items():
            for one in view.operations:
                where = prefix + path
                parameters = tuple(re.findall(r"\{(?:\w+:)?(\w+)\}", where))
                for method in one.methods:
                    name = f"{method} {one.view_func.__name__}"
                    yield Route(name, method, where, parameters, "host", False, _body_of(one))


def _body_of(operation: Operation) -> type[BaseModel] | None:
    for model in operation.models:
        if model.__ninja_param_source__ == "body":
            for field in model.model_fields.values():
                if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                    return field.annotation
    return None


def _example(model: type[BaseModel], known: Mapping[str, object]) -> dict[str, Any]:
    """What is required, and of what is not, ids of objects in the tree: so that they are in the right one."""
    found = {}
    for name, field in model.model_fields.items():
        if field.is_required() or name in ("datastore_id", "cluster_id", "host_id"):
            found[name] = _value(name, field, field.annotation, known)
    return found


def _value(name: str, field: FieldInfo, shape: Any, known: Mapping[str, object]) -> Any:
    if name in known:
        value = known[name]
        return [str(one) for one in value] if isinstance(value, list) else str(value)
    if get_origin(shape) is list:
        return [_value(name, field, get_args(shape)[0], known)]
    if get_origin(shape) is dict:
        return {}
    options = [one for one in get_args(shape) if one is not type(None)]
    if options and not isinstance(options[0], type):
        return options[0] if isinstance(options[0], str | int) else _value(name, field, options[0], known)
    shape = options[0] if options else shape
    if isinstance(shape, type) and issubclass(shape, Enum):
        return next(iter(shape)).value
    if isinstance(shape, type) and issubclass(shape, BaseModel):
        return _example(shape, known)
    return {int: 512, bool: False, UUID: str(UUID(int=7))}.get(shape, "x")
