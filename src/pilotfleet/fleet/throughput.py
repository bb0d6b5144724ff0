"""How fast a fleet works at this moment."""

from __future__ import annotations

import heapq
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.fleet.schedule import TaskResult

__all__ = ["Throughput"]

WINDOW_S: Final = 60
RECENT: Final = 1_000
"""Results among which the slowest are looked for."""
SLOWEST: Final = 5


class Throughput:
    """Counts results per second over the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque(maxlen=WINDOW_S)
        """Second, results, failures; only seconds in which there was one."""
        self._recent: deque[tuple[float, str, str]] = deque(maxlen=RECENT)

    def add(self, result: TaskResult) -> None:
        """Count a result."""
        now = int(self._clock())
        if not self._seconds or self._seconds[-1][0] != now:
            self._seconds.append([now, 0, 0])
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += result.status != "SUCCEEDED"
        self._recent.append((result.wall_ms, result.id, result.agent))

    def status(self) -> dict[str, Any]:
        """Return results per second, the share that failed, and the slowest tasks."""
        now = self._clock()
        window = [entry for entry in self._seconds if entry[0] > now - WINDOW_S]
        done = sum(entry[1] for entry in window)
        # A minute is not over for a fleet that began ten seconds ago.
        span = min(WINDOW_S, max(1.0, now - (window[0][0] if window else now)))
        failed = sum(entry[2] for entry in window)
        return {
            "tasks_per_second": round(done / span, 1),
            "error_rate": round(failed / done, 4) if done else 0.0,
            "slowest": [
                {"id": task, "agent": agent, "ms": round(ms, 1)}
                for ms, task, agent in heapq.nlargest(SLOWEST, self._recent)
            ],
        }
