"""When a task is tried again, and after what pause."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

__all__ = ["AttemptEnd", "RetryPolicy"]


class AttemptEnd(Enum):
    """How one attempt at a task ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The worker ran the command, and the command said no."""
    LOST = "lost"
    """The worker died, was killed, refused, or did not answer in time: the task is
    not to blame, and another worker may well succeed."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how soon."""

    max_attempts: int = 5
    """Lost attempts are repeated on another worker up to this many in all."""
    retry_failed: int = 0
    """How often a task whose command failed is tried again."""
    first_pause_s: float = 0.2
    """Before the second attempt; doubled for each further one."""
    longest_pause_s: float = 10.0
    first_rest_s: float = 1.0
    """How long a worker that lost a task gets no other; doubled for each further."""
    longest_rest_s: float = 60.0

    def allows_another(self, end: AttemptEnd, *, attempts: int, failed: int) -> bool:
        """Return whether a task may be tried again.

        Args:
            end: How the last attempt ended.
            attempts: Attempts made so far.
            failed: How many of them ended as FAILED.
        """
        if end is AttemptEnd.SUCCEEDED or attempts >= self.max_attempts:
            return False
        return end is AttemptEnd.LOST or failed <= self.retry_failed

    def pause_s(self, attempts: int, rng: random.Random) -> float:
        """Return the pause after so many attempts, with jitter of up to a half."""
        return _grown(self.first_pause_s, self.longest_pause_s, attempts, rng)

    def rest_s(self, losses: int, rng: random.Random) -> float:
        """Return how long a worker rests after so many losses in a row."""
        return _grown(self.first_rest_s, self.longest_rest_s, losses, rng)


def _grown(first: float, longest: float, count: int, rng: random.Random) -> float:
    grown = first * 2.0 ** min(max(count - 1, 0), 30)
    return float(min(grown, longest) * rng.uniform(0.5, 1.0))
