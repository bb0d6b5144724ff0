"""What each worker identity has done, as its health events tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotfleet.protocol.services.fleetevents import STOPPED

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HealthBook"]


class _Count:
    __slots__ = ("completed", "failed", "running")

    def __init__(self) -> None:
        self.completed = self.failed = self.running = 0


class HealthBook:
    """Counts tasks by agent and words the health events. Performs no I/O.

    Args:
        agents: Their names.
        now: The monotonic time.
        interval_s: Between two events of one agent.
    """

    def __init__(self, agents: Iterable[str], *, now: float, interval_s: float) -> None:
        self._counts = {agent: _Count() for agent in agents}
        self._started = now
        self._interval_s = interval_s
        self.is_draining = False
        self.is_stopped = False
        """The agents are served no more: the last events."""

    def started(self, agent: str) -> None:
        """Count a task that begins."""
        self._counts[agent].running += 1

    def ended(self, agent: str, *, ok: bool | None) -> None:
        """Count a task that ended; none means that it was given back."""
        count = self._counts[agent]
        count.running -= 1
        count.completed += ok is True
        count.failed += ok is False

    def report(self, agent: str, *, now: float) -> dict[str, Any]:
        """Return the health event of one agent."""
        count = self._counts[agent]
        return {
            "agent": agent,
            "status": self._status(count),
            "tasks_completed": count.completed,
            "tasks_failed": count.failed,
            "uptime_hours": round((now - self._started) / 3600, 4),
            "interval_s": self._interval_s,
        }

    def _status(self, count: _Count) -> str:
        if self.is_stopped:
            return STOPPED
        if self.is_draining:
            return "draining"
        return "busy" if count.running else "idle"
