"""The web application. WSGI with threads: pages are plain Django, and live parts poll (see docs/architecture.md)."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")  # noqa: TID251  Django's own switch

application = get_wsgi_application()

import console.urls  # noqa: E402, F401  pages and API are loaded now, not at each worker's first request
from inventory.services import processes  # noqa: E402  after Django is set up

# Once, before gunicorn forks its workers: the module is loaded in the parent (--preload).
processes.started("web")
