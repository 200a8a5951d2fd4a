"""A counting relay: forwards TCP connections and looks at what passes, in both directions."""

import selectors
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self


@dataclass
class Seen:
    """`first`: the first bytes that the one who connected has sent, of each connection."""

    moved: int = 0
    found: dict[bytes, int] = field(default_factory=dict)
    first: list[bytes] = field(default_factory=list)


class Relay:
    """Listens on `address` at each of `ports` and forwards to `target`, the same port; counts `needles` meanwhile."""

    def __init__(self, address: str, target: str, ports: Iterable[int], needles: Iterable[bytes]) -> None:
        self.needles = tuple(needles)
        self._target = target
        self._listeners = [socket.create_server((address, port)) for port in ports]
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.seen = Seen()
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self.seen = Seen(found=dict.fromkeys(self.needles, 0))

    def __enter__(self) -> Self:
        for listener in self._listeners:
            self._run(self._accept, listener)
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for listener in self._listeners:
            listener.close()
        for thread in self._threads:
            thread.join(timeout=10)

    def _run(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        listener.settimeout(0.2)
        while not self._ended.is_set():
            try:
                caller, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self._run(self._forward, caller, listener.getsockname()[1])

    def _forward(self, caller: socket.socket, port: int) -> None:
        longest = max(map(len, self.needles))
        with caller, socket.create_connection((self._target, port)) as callee, selectors.DefaultSelector() as selector:
            tails = {caller: b"", callee: b""}
            has_begun = False
            selector.register(caller, selectors.EVENT_READ, callee)
            selector.register(callee, selectors.EVENT_READ, caller)
            while selector.get_map() and not self._ended.is_set():
                for key, _ in selector.select(timeout=0.2):
                    source, other = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    try:
                        data = source.recv(1 << 20)
                        if not data:
                            selector.unregister(source)
                            other.shutdown(socket.SHUT_WR)
                            continue
                        other.sendall(data)
                    except OSError:
                        return
                    with self._lock:
                        if source is caller and not has_begun:
                            has_begun = True
                            self.seen.first.append(data[:8])
                        whole = tails[source] + data
                        for needle in self.needles:
                            self.seen.found[needle] += whole.count(needle) - tails[source].count(needle)
                        self.seen.moved += len(data)
                        tails[source] = whole[-(longest - 1) :]
