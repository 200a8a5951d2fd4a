"""The REST API as a program calls it: by token, in JSON."""

import json
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User
from django.core.serializers.json import DjangoJSONEncoder
from django.test import Client

from console import api_tokens
from console.models import ApiToken

ROOT = "/api/v1"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Any
    headers: Any
    text: str

    @property
    def code(self) -> str:
        """Of a refusal."""
        return str(self.body["code"])


class Caller:
    """`token` None: without an Authorization header."""

    def __init__(self, token: str | None) -> None:
        self._client = Client(headers={} if token is None else {"Authorization": f"Bearer {token}"})

    def __call__(self, method: str, path: str, body: Any = None, **query: Any) -> Answer:
        found = self._client.generic(
            method,
            ROOT + path,
            data="" if body is None else body if isinstance(body, str) else _json(body),
            content_type="application/json",
            query_params=query,
        )
        content = b"".join(found) if getattr(found, "streaming", False) else found.content
        is_json = found.headers.get("Content-Type", "").partition(";")[0] == "application/json" and content
        return Answer(found.status_code, found.json() if is_json else None, found.headers, content.decode())

    def get(self, path: str, **query: Any) -> Answer:
        return self("GET", path, **query)

    def post(self, path: str, body: Any = None) -> Answer:
        return self("POST", path, body)


def caller(user: User) -> Caller:
    name = f"test {ApiToken.objects.filter(user=user).count()}"
    return Caller(api_tokens.create_token(user=user, name=name, days=1, actor=user).token)


def _json(body: Any) -> str:
    return json.dumps(body, cls=DjangoJSONEncoder)
