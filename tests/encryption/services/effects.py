"""Something happens at the n-th effect that a job has on the outside: files, tools, host, key server, database.

Changes of rows in one transaction are one effect, as long as nothing else happens between them: they come and go
together. Or at the n-th time that the job looks whether it was cancelled.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from django.db import connection

from encryption.adapters import qemu_img
from inventory.jobs import Progress
from tests.encryption.file_host import FileHost, MemoryKeyServer

_FILE_CALLS: Final = ("pwrite", "unlink", "rename", "rmdir", "mkdir", "ftruncate", "open")
_TOOL_CALLS: Final = ("_run", "_run_with_progress", "equal")
_HOST_CALLS: Final = frozenset(
    [
        "redefine",
        "put_secret",
        "remove_secret",
        "start_block_copy",
        "pivot",
        "abort_block_copy",
        "create_file",
        "overwrite_file",
        "copy_image",
        "copy_image half",
        "delete_file",
    ]
)
_LOOK: Final = "a look for a cancellation"


class Killed(BaseException):
    """The worker is dead: nothing that it still tries has an effect."""


class Effects:
    """Calls `strike(what)` before the n-th effect (counted from 1), and, once that raised Killed, before all others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, keys: MemoryKeyServer) -> None:
        self.seen: list[str] = []
        self._at = 0
        self._strike: Callable[[str], None] = _pass
        self._is_armed = self._is_dead = self._at_looks = False
        self._transaction: str | None = None
        for name in _FILE_CALLS:
            monkeypatch.setattr(os, name, self._wrapped(f"os.{name}", getattr(os, name), _changes_files))
        for name in _TOOL_CALLS:
            monkeypatch.setattr(qemu_img, name, self._wrapped(f"qemu-img {name}", getattr(qemu_img, name)))
        for name in ("create_key", "activate"):
            monkeypatch.setattr(keys, name, self._wrapped(f"KMS {name}", getattr(keys, name)))
        asked = FileHost._ask

        def ask(host: FileHost, call: str) -> None:
            if call in _HOST_CALLS:
                self._effect(f"host {call}")
            asked(host, call)

        monkeypatch.setattr(FileHost, "_ask", ask)
        monkeypatch.setattr(Progress, "_save", self._wrapped(_LOOK, Progress._save))

    def _wrapped(self, what: str, call: Any, matters: Callable[..., bool] | None = None) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if matters is None or matters(what, *args):
                self._effect(f"{what} {args[0]}" if what.startswith("os.") else what)
            return call(*args, **kwargs)

        return wrapped

    def _effect(self, what: str, transaction: str | None = None) -> None:
        """`transaction`: the one that rows are changed in, if any."""
        if not self._is_armed:
            return
        if self._is_dead:
            raise Killed(what)
        if (what == _LOOK) is not self._at_looks:
            return
        if transaction is not None and transaction == self._transaction:
            return
        self._transaction = transaction
        self.seen.append(what)
        if len(self.seen) == self._at:
            try:
                self._strike(what)
            except Killed:
                self._is_dead = True
                raise

    @contextmanager
    def armed(
        self, at: int, strike: Callable[[str], None], *, database: bool = True, looks: bool = False
    ) -> Iterator[None]:
        """`database`: its rows' changes are effects, too. `looks`: looks for a cancellation are, and nothing else."""
        self.seen, self._at, self._strike, self._at_looks = [], at, strike, looks
        self._is_armed, self._is_dead, self._transaction = True, False, None
        own = len(connection.savepoint_ids)  # of the test itself

        def execute(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            verb, _, rest = sql.partition(" ")
            if database and verb in ("INSERT", "UPDATE", "DELETE"):
                self._effect(f"database {verb} {rest[:60]}", next(iter(connection.savepoint_ids[own:]), None))
            return run(sql, params, many, context)

        try:
            with connection.execute_wrapper(execute):
                yield
        finally:
            self._is_armed = False
            if self._is_dead and connection.in_atomic_block:
                connection.set_rollback(False)  # Django marks the test's own transaction when a deletion is struck

    @property
    def struck(self) -> bool:
        """Whether the run had that many effects."""
        return len(self.seen) >= self._at

    @property
    def last(self) -> str:
        return f"{self._at}: {self.seen[self._at - 1]}"


def _pass(what: str) -> None:
    return None


def _changes_files(what: str, *args: Any) -> bool:
    return what != "os.open" or (len(args) > 1 and bool(args[1] & os.O_CREAT))
