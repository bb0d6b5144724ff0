"""What a slow process of ours does to time limits: nothing.

A limit on how long a peer may take counts while the peer had its chance. A task that
waits in our own queues has not been sent, and a process that had no turn has not
looked at what came in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.services.tasks.record import Pending

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.services.tasks.record import TaskKey, TaskRecord

__all__ = ["Turns", "WorkingClock"]

LONGEST_TURN_S: Final = 1.0
"""What a turn of the loop takes beyond this did not pass for us."""


class WorkingClock:
    """Counts the seconds in which the event loop came round.

    Somebody has to call :meth:`tick` from a timer, several times a second. When the
    ticks come late, other programs had the processor or the loop had more to do than
    it could: what peers have sent meanwhile lies in the socket, unread.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ticked = clock()
        self.lost_s = 0.0
        """How far it is behind the clock that it is made of."""

    def __call__(self) -> float:
        """Return the time by this clock; it stops when ticks are late."""
        since = self._clock() - self._ticked
        return self._ticked - self.lost_s + min(since, LONGEST_TURN_S)

    def tick(self) -> float:
        """Say that the loop came round; return how many seconds were lost."""
        now = self._clock()
        lost_s = max(0.0, now - self._ticked - LONGEST_TURN_S)
        self.lost_s += lost_s
        self._ticked = now
        return lost_s


class Turns:
    """Submissions that wait for their turn to be sent, and since when.

    The time of a delivery begins with its turn.
    """

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: dict[TaskKey, float] = {}

    def __contains__(self, record: TaskRecord) -> bool:
        return record.key in self._since

    def wait(self, record: TaskRecord, now: float) -> None:
        """Note that a submission waits, if it is one."""
        if record.pending is Pending.SUBMIT:
            self._since.setdefault(record.key, now)

    def come(self, record: TaskRecord, now: float) -> None:
        """Note that its turn has come: it has all the time that it had before."""
        since = self._since.pop(record.key, None)
        if since is not None:
            record.deliver_by += now - since

    def drop(self, record: TaskRecord) -> None:
        """Forget a submission that is not wanted any more."""
        self._since.pop(record.key, None)
