"""For sessions of users who came by the OpenID provider: they end when it is switched off, or its user disabled."""

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.http import HttpRequest
from typing_extensions import override


class OidcBackend(ModelBackend):
    """Nobody gets in by a password here; views.py logs in whom the provider has proved."""

    @override
    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        return None
