"""When a task is tried again, after what pause, and when a worker has to rest.

A worker that fails repeatedly rests. But a task can be at fault as well, and one that
kills whatever runs it must not put the whole fleet to rest. So each bad end is weighed:

* A worker that did not answer for a task (LOST) rests at once, unless another worker
  lost the same task before: then the task is the suspect.
* Everything else that went wrong on a worker that is plainly alive (FAILED, KILLED,
  and the LOST of a suspect) only counts. The worker rests when it went wrong so often
  in a row that bad luck is no explanation, given how the other workers fare. Where
  most tasks fail everywhere, no worker is to blame.
* A success wipes the slate.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    import random

__all__ = ["AttemptEnd", "Conduct", "Judge", "RetryPolicy"]

REMEMBERED: Final = 1_000
"""Ends after which the older ones count half: the judge follows the present."""
EXPECTED_BAD: Final = 0.1
"""The share of bad ends that is assumed while nothing is known."""
EXPECTED_WEIGHT: Final = 2.0
"""How many ends that assumption is worth."""
BAD_LUCK: Final = 1 / 500
"""A row of bad ends less likely than this is no bad luck."""


class AttemptEnd(Enum):
    """How one attempt at a task ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The worker ran the command, and the command said no."""
    KILLED = "killed"
    """The worker says that the command did not come to its own end: a signal, the time
    limit, it could not be started. Another worker may well succeed."""
    LOST = "lost"
    """The worker died, refused, or did not answer in time: the task is not to blame,
    and another worker may well succeed."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how soon."""

    max_attempts: int = 5
    """Lost attempts are repeated on another worker up to this many in all."""
    max_excused: int = 20
    """Attempts of a task at workers out of reach that do not count: discovery still
    shows a lost machine's workers for three minutes."""
    retry_failed: int = 0
    """How often a task whose command failed is tried again."""
    first_pause_s: float = 0.2
    """Before the second attempt; doubled for each further one."""
    longest_pause_s: float = 10.0
    first_rest_s: float = 1.0
    """How long a worker gets no task when it rests; doubled for each further rest."""
    longest_rest_s: float = 60.0
    suspect_after: int = 2
    """A task that ended badly on so many different workers is at fault itself."""
    rest_after: int = 3
    """Bad ends in a row before a worker that is alive rests."""

    def allows_another(
        self, end: AttemptEnd, *, attempts: int, failed: int, unreached: int = 0
    ) -> bool:
        """Return whether a task may be tried again.

        Args:
            end: How the last attempt ended.
            attempts: Attempts made so far.
            failed: How many of them ended as FAILED.
            unreached: How many found their worker out of reach.
        """
        counted = attempts - min(unreached, self.max_excused)
        if end is AttemptEnd.SUCCEEDED or counted >= self.max_attempts:
            return False
        return end is not AttemptEnd.FAILED or failed <= self.retry_failed

    def pause_s(self, attempts: int, rng: random.Random) -> float:
        """Return the pause after so many attempts, with jitter of up to a half."""
        return backoff_s(
            attempts,
            first_s=self.first_pause_s,
            longest_s=self.longest_pause_s,
            rng=rng,
        )

    def rest_s(self, rests: int, rng: random.Random) -> float:
        """Return how long a worker rests, for the so-manyth time in a row."""
        return backoff_s(
            rests, first_s=self.first_rest_s, longest_s=self.longest_rest_s, rng=rng
        )


class Conduct:
    """How a worker has behaved since its last success."""

    __slots__ = ("rests", "row")

    def __init__(self) -> None:
        self.row = 0
        """Bad ends that only count."""
        self.rests = 0
        """How often it had to rest."""


class Judge:
    """Tells workers that fail from tasks that fail."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._ended = 0.0
        self._bad = 0.0

    def must_rest(
        self, conduct: Conduct, end: AttemptEnd, *, blamed: int, workers: int
    ) -> bool:
        """Note an end on a worker and return whether that worker rests now.

        Args:
            conduct: The worker's.
            end: How the attempt ended.
            blamed: Different workers on which the task ended badly, this one included.
            workers: Workers there are. A only one is better than none.
        """
        self._count(end)
        if end is AttemptEnd.SUCCEEDED:
            conduct.row = conduct.rests = 0
            return False
        if end is AttemptEnd.LOST and blamed < self._policy.suspect_after:
            rests = True
        else:
            conduct.row += 1
            rests = workers > 1 and self._is_no_bad_luck(conduct.row)
        conduct.rests += rests
        return rests

    def _count(self, end: AttemptEnd) -> None:
        if self._ended >= REMEMBERED:
            self._ended /= 2
            self._bad /= 2
        self._ended += 1
        self._bad += end is not AttemptEnd.SUCCEEDED

    def _is_no_bad_luck(self, row: int) -> bool:
        """Return whether a row is too long for how tasks end on other workers."""
        others_bad = max(self._bad - row, 0.0) + EXPECTED_BAD * EXPECTED_WEIGHT
        others = max(self._ended - row, 0.0) + EXPECTED_WEIGHT
        share = max(others_bad / others, EXPECTED_BAD)
        return row >= self._policy.rest_after and share**row <= BAD_LUCK
