"""A real OpenID provider, django-oauth-toolkit, as a process of its own with settings of its own.

    python -m tests.console.sign_on.real_provider FOLDER REDIRECT_URI

It makes its database in FOLDER, says its issuer on standard output, and serves it on loopback. One client, whose people
need not consent; two people. It knows nothing of this product's settings.
"""

import sys
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import django
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from typing_extensions import override

CLIENT_ID: Final = "bartizan"
CLIENT_SECRET: Final = "planted-client-secret"
PEOPLE: Final = {"bob": ["auditors", "staff"], "administrator": []}
PARTS: Final = "tests.console.sign_on.real_provider_parts"
PASSWORD: Final = "password of the provider"


class QuietHandler(WSGIRequestHandler):
    @override
    def log_message(self, format: str, *args: Any) -> None:
        pass


def configure(folder: Path, issuer: str) -> None:
    key = rsa.generate_private_key(65537, 2048)
    settings.configure(
        SECRET_KEY="x" * 50, ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=PARTS, USE_TZ=True, LOGIN_URL="/accounts/login/",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "provider.sqlite3")}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.PBKDF2PasswordHasher"],
        INSTALLED_APPS=[
            "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "oauth2_provider",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware", "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        TEMPLATES=[{
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {
                "registration/login.html": "<form method=post>{% csrf_token %}{{ form }}</form>",
            })]},
        }],
        OAUTH2_PROVIDER={
            "OIDC_ENABLED": True, "OIDC_ISS_ENDPOINT": issuer, "PKCE_REQUIRED": True,
            "OIDC_RSA_PRIVATE_KEY": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            "SCOPES": {"openid": "who you are", "profile": "what you are called"},
            "OAUTH2_VALIDATOR_CLASS": f"{PARTS}.Claims",
        },
    )  # fmt: skip
    django.setup()


def fill(redirect_uri: str) -> None:
    from django.contrib.auth.models import Group, User
    from django.core.management import call_command
    from oauth2_provider.models import Application

    call_command("migrate", verbosity=0)
    for name, groups in PEOPLE.items():
        user = User.objects.create_user(name, password=PASSWORD)
        user.groups.set(Group.objects.get_or_create(name=group)[0] for group in groups)
    Application.objects.create(
        client_id=CLIENT_ID, client_secret=CLIENT_SECRET, redirect_uris=redirect_uri, skip_authorization=True,
        client_type=Application.CLIENT_CONFIDENTIAL, authorization_grant_type=Application.GRANT_AUTHORIZATION_CODE,
        algorithm=Application.RS256_ALGORITHM, name="Bartizan",
    )  # fmt: skip


def main() -> None:
    folder, redirect_uri = Path(sys.argv[1]), sys.argv[2]
    with WSGIServer(("127.0.0.1", 0), QuietHandler) as server:
        issuer = f"http://127.0.0.1:{server.server_port}/o"
        configure(folder, issuer)
        fill(redirect_uri)
        server.set_app(get_wsgi_application())
        print(issuer, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
