"""Many requests of one kind to a key server: in messages of many where it takes them, else one by one. No KMIP here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar, final

from encryption.adapters.kmip_tls import ConnectionDropped
from encryption.engine.key_server import KmsError, KmsUnreachable, KmsUntrusted

T = TypeVar("T")
W = TypeVar("W")

# PyKMIP's server needs a third to a half less time for each key in messages of 20 requests than of one, and no less in
# longer ones; and 20 stay far within the limits of time and size of a message.
MESSAGE_REQUESTS: Final = 20


@final
class Batches:
    """What is known of one server: whether it takes messages of many requests. To be kept with the connection."""

    def __init__(self) -> None:
        self._takes_many = True
        self._took_many = False

    def ask_each(
        self,
        wanted: Sequence[W],
        *,
        together: Callable[[Sequence[W]], Mapping[int, T | KmsError]],
        alone: Callable[[W, bool], T],
    ) -> tuple[T | KmsError, ...]:
        """The rule of `KeyServer.create_keys` and its like.

        `together` asks in one message, and gives what was answered by position. Whatever it leaves out is asked for by
        `alone(one, was it in a message before?)`, and so is all else from then on.
        """
        outcomes: list[T | KmsError] = []
        for first in range(0, len(wanted), MESSAGE_REQUESTS):
            lost = self._ask_part(wanted[first : first + MESSAGE_REQUESTS], together, alone, outcomes)
            if lost is not None:
                outcomes += [_not_asked(lost)] * (len(wanted) - len(outcomes))
                break
        return tuple(outcomes)

    def _ask_part(
        self,
        part: Sequence[W],
        together: Callable[[Sequence[W]], Mapping[int, T | KmsError]],
        alone: Callable[[W, bool], T],
        outcomes: list[T | KmsError],
    ) -> KmsError | None:
        """Appends one outcome for each. Returns what the connection was lost with."""
        answered: Mapping[int, T | KmsError] = {}
        was_asked = self._takes_many and len(part) > 1
        if was_asked:
            try:
                answered = together(part)
            except (KmsUnreachable, KmsUntrusted) as exc:
                # A server that hangs up on its first message of many may do so because of that.
                if self._took_many or not isinstance(exc, ConnectionDropped):
                    outcomes += [_without_frames(exc)] * len(part)
                    return exc
            self._took_many = self._took_many or bool(answered)
            self._takes_many = len(answered) == len(part)
        lost: KmsError | None = None
        for position, one in enumerate(part):
            if position in answered:
                outcomes.append(answered[position])
            elif lost is not None:
                outcomes.append(_not_asked(lost, outcome_unknown=was_asked))
            else:
                try:
                    outcomes.append(alone(one, was_asked))
                except KmsError as exc:
                    if isinstance(exc, KmsUnreachable | KmsUntrusted):
                        lost = exc
                    if isinstance(exc, KmsUnreachable):
                        exc.outcome_unknown = exc.outcome_unknown or was_asked
                    outcomes.append(_without_frames(exc))
        return lost


def _without_frames(exc: KmsError) -> KmsError:
    """A failure that is kept as a value must not keep frames, which hold keys."""
    return exc.with_traceback(None)


def _not_asked(lost: KmsError, *, outcome_unknown: bool = False) -> KmsError:
    if isinstance(lost, KmsUnreachable):
        return KmsUnreachable(lost.server, lost.message, outcome_unknown=outcome_unknown)
    return _without_frames(lost)
