"""New KEKs for a batch of VMs, and the KEKs that these have now: a few messages to the key server for all of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar, final
from uuid import UUID

from encryption.engine.key_server import (
    KeyServer,
    KeyState,
    KmsError,
    KmsUnreachable,
    KmsUntrusted,
    WrongState,
)
from encryption.engine.secret import Secret
from encryption.services.key_access import key_order
from inventory.models import VirtualMachine

T = TypeVar("T")
W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class WantedKek:
    """A KEK to be made for a VM under a name of its own, and the KEKs of the same key provider that it has now: primary
    key of the row -> identifier."""

    vm: VirtualMachine
    name: str
    present: Mapping[UUID, str]


@final
class KekBatch:
    """Made once, and called with one key server after the other until it raises nothing: each time it does the rest.

    So what one server has made is gone on with at the next, and nothing is forgotten when all are lost: `made` knows
    every identifier that a server gave, `suspects` the names of keys that may have been made although no answer came.
    These are looked for by name before they are made; others are not, because on many servers that takes the longer the
    more keys there are. No key is made for a VM whose present ones cannot be had. No rows are read or written here, so
    that a thread without a database connection can call it.
    """

    def __init__(self, wanted: Iterable[WantedKek], *, suspects: Iterable[str] = ()) -> None:
        """`suspects`: names that an earlier run may have made keys under."""
        self.wanted: Final = {one.name: one for one in wanted}
        self.present: Final[dict[UUID, Secret]] = {}
        self.made: Final[dict[str, str]] = {}
        self.suspects: Final = set(suspects)
        self._active: Final[set[str]] = set()
        self._fetched: Final[dict[str, Secret]] = {}
        self._failures: Final[dict[str, KmsError]] = {}
        self._early: KmsError | None = None

    def take_present(self, other: "KekBatch") -> None:
        """What both need of the KEKs that another batch has fetched: VMs may share one."""
        needed = {key for one in self.wanted.values() for key in one.present}
        self.present.update((pk, kek) for pk, kek in other.present.items() if pk in needed)

    def run_ahead(self, server: KeyServer) -> None:
        """As a call; what that raises is raised by the next call in its place."""
        try:
            self(server)
        except KmsError as exc:
            self._early = exc.with_traceback(None)

    def __call__(self, server: KeyServer) -> None:
        """Raises KmsUnreachable or KmsUntrusted, when there may be more to do at another server."""
        if self._early is not None:
            early, self._early = self._early, None
            raise early
        self._fetch_present(server)
        self._create(server)
        self._activate(server)
        self._fetch_made(server)

    def kek(self, name: str) -> tuple[str, Secret]:
        """The identifier of a key that was made, and the key itself. Raises the KmsError that it failed with; KeyError
        for one that was not asked for."""
        if name in self._failures:
            raise self._failures[name]
        return self.made[name], self._fetched[name]

    def has(self, name: str) -> bool:
        """Whether `kek` has an answer."""
        return name in self._fetched or name in self._failures

    def _fetch_present(self, server: KeyServer) -> None:
        keys = {key: key_id for one in self._open() for key, key_id in one.present.items() if key not in self.present}
        failures: dict[UUID, KmsError] = {}
        _settle(list(keys), server.get_keys(list(keys.values())), self.present, failures, server)
        for one in self._open():
            failed = next((failures[key] for key in one.present if key in failures), None)
            if failed is not None:
                self._failures[one.name] = failed

    def _create(self, server: KeyServer) -> None:
        for name in [one.name for one in self._open() if one.name in self.suspects]:
            try:
                found = server.locate(name=name)
            except (KmsUnreachable, KmsUntrusted):
                raise
            except KmsError as exc:
                self._failures[name] = exc.with_traceback(None)
                continue
            self.suspects.discard(name)
            if found:
                self.made[name] = found[0]
        orders = [key_order(one.vm, one.name) for one in self._open() if one.name not in self.made]
        outcomes = server.create_keys(orders)
        for order, outcome in zip(orders, outcomes, strict=True):
            if isinstance(outcome, KmsUnreachable) and outcome.outcome_unknown:
                self.suspects.add(order.name)
        is_unknown = any(order.name in self.suspects for order in orders)
        _settle([order.name for order in orders], outcomes, self.made, self._failures, server, is_unknown=is_unknown)

    def _activate(self, server: KeyServer) -> None:
        names = [one.name for one in self._open() if one.name not in self._active]
        outcomes = [_activated(outcome) for outcome in server.activate_keys([self.made[name] for name in names])]
        done: dict[str, None] = {}
        try:
            _settle(names, outcomes, done, self._failures, server)
        finally:
            self._active.update(done)

    def _fetch_made(self, server: KeyServer) -> None:
        names = [one.name for one in self._open() if one.name not in self._fetched]
        keys = server.get_keys([self.made[name] for name in names])
        _settle(names, keys, self._fetched, self._failures, server)

    def _open(self) -> list[WantedKek]:
        return [one for one in self.wanted.values() if one.name not in self._failures]


def _activated(outcome: KmsError | None) -> KmsError | None:
    """An earlier try, or the server itself, may have made it active."""
    if isinstance(outcome, WrongState) and outcome.state is KeyState.ACTIVE:
        return None
    return outcome


def _settle(
    names: Sequence[W],
    outcomes: Sequence[T | KmsError],
    results: dict[W, T],
    failures: dict[W, KmsError],
    server: KeyServer,
    *,
    is_unknown: bool = False,
) -> None:
    """Sorts what came of each into results and failures. Raises what the connection was lost with."""
    lost: KmsError | None = None
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, KmsUnreachable | KmsUntrusted):
            lost = lost or outcome
        elif isinstance(outcome, KmsError):
            failures[name] = outcome
        else:
            results[name] = outcome
    if isinstance(lost, KmsUnreachable):
        # To get or activate a key once more, elsewhere, does no harm.
        raise KmsUnreachable(server.address, lost.message, outcome_unknown=is_unknown)
    if lost is not None:
        raise lost
