"""When a process that has ended by itself is started again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = ["Restarts"]

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
STEADY_S: Final = 60.0
"""A process that ran so long has not failed again, but for the first time."""


class Restarts:
    """The pauses between the lives of one process.

    Args:
        clock: Monotonic time in seconds.
        rng: Draws the jitter.
    """

    def __init__(
        self, clock: Callable[[], float], *, rng: random.Random | None = None
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._failures = 0
        self._begun = clock()

    def begin(self) -> None:
        """Note that the process is being started."""
        self._begun = self._clock()

    def pause_s(self) -> float:
        """Return how long to wait before the next start; the process has ended."""
        if self._clock() - self._begun > STEADY_S:
            self._failures = 0
        self._failures += 1
        return backoff_s(
            self._failures,
            first_s=FIRST_PAUSE_S,
            longest_s=LONGEST_PAUSE_S,
            rng=self._rng,
        )
