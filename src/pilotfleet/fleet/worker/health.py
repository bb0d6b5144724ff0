"""What each worker identity has done, as its health events tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HEALTH_TOPIC", "TASK_TOPIC", "HealthBook"]

HEALTH_TOPIC: Final = "fleet.health"
TASK_TOPIC: Final = "fleet.task"


class _Count:
    __slots__ = ("completed", "failed", "running")

    def __init__(self) -> None:
        self.completed = self.failed = self.running = 0


class HealthBook:
    """Counts tasks by agent and words the health events. Performs no I/O."""

    def __init__(self, agents: Iterable[str], *, now: float) -> None:
        self._counts = {agent: _Count() for agent in agents}
        self._started = now
        self.is_draining = False

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
        status = "busy" if count.running else "idle"
        return {
            "agent": agent,
            "status": "draining" if self.is_draining else status,
            "tasks_completed": count.completed,
            "tasks_failed": count.failed,
            "uptime_hours": round((now - self._started) / 3600, 4),
        }
