"""Addresses and claims of the real provider (real_provider.py): what Django wants to import by name."""

from typing import Any

from django.contrib.auth.views import LoginView
from django.urls import include, path
from oauth2_provider.oauth2_validators import OAuth2Validator

urlpatterns = [
    path("accounts/login/", LoginView.as_view()),
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
]


class Claims(OAuth2Validator):  # type: ignore[misc]  # django-oauth-toolkit has no types
    """Name and groups, under the names that most providers use. The latter in no scope of OpenID Connect's own."""

    oidc_claim_scope = OAuth2Validator.oidc_claim_scope | {"groups": "profile"}

    def get_additional_claims(self) -> dict[str, Any]:
        return {
            "preferred_username": lambda request: request.user.username,
            "groups": lambda request: list(request.user.groups.values_list("name", flat=True)),
        }
