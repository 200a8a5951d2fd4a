"""The product as a whole. Celery's application is bound here so that every process that loads Django has it."""

from console.celery import app as celery_app

__all__ = ["celery_app"]
