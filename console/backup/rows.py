"""All rows of the database as lines of JSON, and back. The same for SQLite and PostgreSQL, or from one to the other."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import TextIOBase
from typing import Any, Final

from django.apps import apps
from django.core import serializers
from django.core.management import call_command
from django.core.management.color import no_style
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Model
from typing_extensions import override

LEFT_OUT: Final = frozenset({"sessions", "axes"})
"""Who is logged in, and who has failed to: of no use elsewhere."""
_CHUNK: Final = 1000


class _Exact(DjangoJSONEncoder):
    """Django's cuts times to milliseconds; the digests of events are over microseconds."""

    @override
    def default(self, o: Any) -> Any:
        return o.isoformat() if isinstance(o, datetime) else super().default(o)


def migrations() -> list[str]:
    """What has been applied, as "app.name", in order of names."""
    return sorted(f"{app}.{name}" for app, name in MigrationRecorder(connection).applied_migrations())


@contextmanager
def one_moment() -> Iterator[None]:
    """What is read within is what stood in the database at one time. Nobody's writing waits for it."""
    if connection.vendor == "postgresql":
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield
        return
    # SQLite: a deferred transaction reads its snapshot (WAL) and takes no lock for writing.
    mode: str | None = getattr(connection, "transaction_mode", None)
    setattr(connection, "transaction_mode", "DEFERRED")  # noqa: B010  Django's own attribute, not in the stubs
    try:
        with transaction.atomic():
            yield
    finally:
        setattr(connection, "transaction_mode", mode)  # noqa: B010


def write(lines: TextIOBase) -> Counter[str]:
    """One object a line, all but LEFT_OUT. How many of each model."""
    written: Counter[str] = Counter()
    for model in _models():
        rows = model._base_manager.order_by("pk").iterator(chunk_size=_CHUNK)
        serializers.serialize("jsonl", _counted(rows, written), stream=lines, cls=_Exact)
    return written


def replace_by(lines: Iterable[str]) -> Counter[str]:
    """Empties the database and puts in what the lines hold. All or nothing, inside the caller's transaction.

    Raises DeserializationError, or Django's IntegrityError, for lines that `write` did not write.
    """
    read: Counter[str] = Counter()
    call_command("flush", verbosity=0, interactive=False, inhibit_post_migrate=True)
    for found in serializers.deserialize("jsonl", lines):
        found.save()  # as it stands: no field is set anew
        read[found.object._meta.label] += 1
    connection.check_constraints()
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), _models()):
            cursor.execute(statement)
    return read


def _counted(rows: Iterable[Model], written: Counter[str]) -> Iterator[Model]:
    for row in rows:
        written[row._meta.label] += 1
        yield row


def _models() -> list[type[Model]]:
    return [model for model in apps.get_models() if model._meta.app_label not in LEFT_OUT and model._meta.managed]
