"""The figures of the agents that have a tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.fleet.monitor.figures import AgentCounts, AgentState, TagFigures
from pilotfleet.fleet.monitor.view.tasks import TaskWindow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pilotfleet.fleet.monitor.view.agents import AgentEntry
    from pilotfleet.fleet.monitor.view.tasks import SavedWindow, Second

__all__ = ["TagBook"]

MAX_TAGS: Final = 1_000
"""Tags whose agents are counted."""
MAX_REPORTED: Final = 100
"""Tags that are shown, and whose tasks are counted: those that most agents have."""
STEP_S: Final = 30
"""A hundred windows of five minutes, to half a minute each."""


class TagBook:
    """Counts agents and tasks by tag."""

    def __init__(self) -> None:
        self._agents: dict[str, dict[AgentState, int]] = {}
        self._tasks: dict[str, TaskWindow] = {}
        self._open: set[str] = set()
        """Tags of which a task ended in the open second."""

    def recount(self, agents: Iterable[AgentEntry]) -> None:
        """Count again by what the directory says now, and choose who is shown."""
        counts: dict[str, dict[AgentState, int]] = {}
        for agent in agents:
            for tag in agent.tags:
                if tag not in counts:
                    counts[tag] = dict.fromkeys(AgentState, 0)
                counts[tag][agent.state] += 1
        ranked = sorted(counts, key=lambda tag: (-_expected(counts[tag]), tag))
        self._agents = {tag: counts[tag] for tag in ranked[:MAX_TAGS]}
        shown = ranked[:MAX_REPORTED]
        # What a tag has counted stays as long as there is room.
        kept = [tag for tag in self._tasks if tag not in counts]
        names = [*shown, *kept[: MAX_REPORTED - len(shown)]]
        self._tasks = {
            tag: self._tasks.get(tag) or TaskWindow(step_s=STEP_S) for tag in names
        }
        self._open.intersection_update(names)

    def change(
        self,
        tags: Iterable[str],
        before: AgentState | None,
        after: AgentState | None,
    ) -> None:
        """Count a change of the state of an agent with these tags."""
        for tag in tags:
            counts = self._agents.get(tag)
            if counts is None:
                if before is not None or len(self._agents) >= MAX_TAGS:
                    continue
                counts = self._agents[tag] = dict.fromkeys(AgentState, 0)
            if before is not None:
                counts[before] -= 1
            if after is not None:
                counts[after] += 1
            if tag not in self._tasks and len(self._tasks) < MAX_REPORTED:
                self._tasks[tag] = TaskWindow(step_s=STEP_S)

    def add(self, tags: Iterable[str], ms: float, *, ok: bool) -> None:
        """Count the end of a task of an agent with these tags."""
        for tag in tags:
            window = self._tasks.get(tag)
            if window is not None:
                window.add(ms, ok=ok)
                self._open.add(tag)

    def close(self, second: int) -> dict[str, Second]:
        """End the open second; return what was in it, by tag."""
        ended = {tag: self._tasks[tag].close(second) for tag in sorted(self._open)}
        self._open.clear()
        return ended

    def counts(self) -> dict[str, AgentCounts]:
        """Return the agents of the tags that are shown, most first."""
        shown = {
            tag: counts
            for tag in self._tasks
            if (counts := self._agents.get(tag)) is not None and any(counts.values())
        }
        ranked = sorted(shown, key=lambda tag: (-_expected(shown[tag]), tag))
        return {
            tag: AgentCounts(
                alive=shown[tag][AgentState.ALIVE],
                late=shown[tag][AgentState.LATE],
                lost=shown[tag][AgentState.LOST],
                left=shown[tag][AgentState.LEFT],
            )
            for tag in ranked
        }

    def figures(self, second: int) -> list[TagFigures]:
        """Return the figures of the tags that are shown, most agents first."""
        return [
            TagFigures(tag=tag, agents=counts, tasks=self._tasks[tag].figures(second))
            for tag, counts in self.counts().items()
        ]

    def save(self) -> dict[str, SavedWindow]:
        """Return the tasks of the tags as they are kept over a restart."""
        return {tag: window.save() for tag, window in self._tasks.items()}

    def load(
        self,
        saved: Mapping[str, SavedWindow],
        agents: Iterable[AgentEntry],
        *,
        latest: int,
    ) -> None:
        """Take back what was saved.

        Raises:
            DecodeError: It is damaged.
        """
        for tag, window in list(saved.items())[:MAX_REPORTED]:
            self._tasks[tag] = TaskWindow.load(window, latest=latest, step_s=STEP_S)
            if self._tasks[tag].open_times.count:
                self._open.add(tag)
        for agent in agents:
            self.change(agent.tags, None, agent.state)


def _expected(counts: Mapping[AgentState, int]) -> int:
    return sum(counts.values()) - counts[AgentState.LEFT]
