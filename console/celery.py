"""The Celery application. Tasks carry a job's id and nothing else; see inventory/jobs.py."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")  # noqa: TID251  Django's own switch

app = Celery("bartizan")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.autodiscover_tasks(["console.appliance"])
