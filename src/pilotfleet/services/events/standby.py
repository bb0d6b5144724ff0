"""Which of a fleet's brokers to publish to. Performs no I/O.

The first that can be reached is used. One that failed is left alone for a while, so
that nobody waits for it, and then tried again: the fleet comes together at its first
broker once more, not all in the same moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    import random

__all__ = ["StandbyChoice"]

FIRST_PAUSE_S: Final = 10.0
"""Before the jitter, which takes up to a half off."""
LONGEST_PAUSE_S: Final = 60.0


class StandbyChoice:
    """The state of some brokers, by their place in the list."""

    def __init__(self, count: int, *, rng: random.Random | None = None) -> None:
        self._failures = [0] * count
        self._due_at = [0.0] * count
        self._rng = rng

    def order(self, now: float) -> list[int]:
        """Return which to try, the best first: all that are due, else all."""
        places = range(len(self._due_at))
        return [at for at in places if self._due_at[at] <= now] or list(places)

    def has_due(self, now: float) -> bool:
        """Tell whether one may be tried at once."""
        return any(due <= now for due in self._due_at)

    def better(self, used: int, now: float) -> int | None:
        """Return a broker before the used one that is worth another try."""
        return next((at for at in range(used) if self._due_at[at] <= now), None)

    def failed(self, place: int, now: float) -> None:
        """Leave a broker alone for a while."""
        self._failures[place] += 1
        self._due_at[place] = now + backoff_s(
            self._failures[place],
            first_s=FIRST_PAUSE_S,
            longest_s=LONGEST_PAUSE_S,
            rng=self._rng,
        )

    def reached(self, place: int) -> None:
        """Take note that a broker takes events."""
        self._failures[place] = 0
        self._due_at[place] = 0.0
