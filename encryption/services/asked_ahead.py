"""Requests to a key server that a helper thread makes while the thread of the session is at other work.

The helper only talks to the key server: it reads and writes no rows. What a request came to, a key or a failure, waits
until the session's thread asks for the same, and is handled there as if it had been asked then.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar, final

from encryption.engine.key_server import KeyServer, KmsError

T = TypeVar("T")


@final
class Request(Generic[T]):
    """One request, made ahead or not. Called, it gives what it came to. A failure is raised once: called again, as for
    the next server of a cluster, the request is made anew."""

    def __init__(self, use: Callable[[KeyServer], T]) -> None:
        self._use = use
        self._answers: list[T] = []
        self._failure: KmsError | None = None

    def make(self, server: KeyServer) -> bool:
        """Ahead of its time. Whether it was answered."""
        try:
            self._answers.append(self._use(server))
        except KmsError as exc:
            self._failure = exc
        return self._failure is None

    def __call__(self, server: KeyServer) -> T:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self._answers.pop() if self._answers else self._use(server)


@final
class HelperThread:
    """Makes one list of requests after the other, over a connection that is left to it until `wait` returns."""

    def __init__(self) -> None:
        self._threads: Final = ThreadPoolExecutor(1, "key-server")
        self._running: Future[None] | None = None
        self._is_ended = False

    def make(self, requests: Sequence[Request[Any]], server: KeyServer) -> None:
        """In this order, and none after one that failed."""
        self.wait()
        self._running = self._threads.submit(self._make, requests, server)

    def wait(self) -> None:
        """Until nothing is under way. Raises what is a bug in a request."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def end(self) -> None:
        """After the request that is under way."""
        self._is_ended = True
        self._threads.shutdown()

    def _make(self, requests: Sequence[Request[Any]], server: KeyServer) -> None:
        for request in requests:
            if self._is_ended or not request.make(server):
                return
