"""The web application. WSGI with threads: pages are plain Django, and live parts poll (see docs/architecture.md)."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")  # noqa: TID251  Django's own switch

application = get_wsgi_application()
