"""Bound the number of tags that metrics name, without a counter that goes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.fleet.monitor.figures import TagFigures

__all__ = ["MAX_TAGS", "OTHER", "TagTotals"]

MAX_TAGS: Final = 50
OTHER: Final = "other"
"""Where all that is beyond the bound is counted."""
MAX_SEEN: Final = 1_000
STATES: Final = ("alive", "late", "lost")


class TagTotals:
    """Figures of the first 50 tags and of all others together.

    A tag that has a name of its own keeps it: were the 50 largest named at each
    moment, the counters of ``other`` would fall whenever a tag rises. For the same
    reason ``other`` adds up what each tag gained.
    """

    def __init__(self) -> None:
        self.agents: dict[str, dict[str, int]] = {}
        """By tag, agents by state."""
        self.tasks: dict[str, tuple[int, int]] = {}
        """By tag, tasks that completed and failed."""
        self._named: set[str] = set()
        self._seen: dict[str, tuple[int, int]] = {}
        """Of tags without a name of their own: what was counted already."""

    def take(self, rows: Sequence[TagFigures]) -> None:
        """Take the figures of now, the largest tags first."""
        for row in rows:
            if len(self._named) < MAX_TAGS and row.tag != OTHER:
                self._named.add(row.tag)
        named = [row for row in rows if row.tag in self._named]
        others = [row for row in rows if row.tag not in self._named]
        self.agents = {row.tag: _states([row]) for row in named}
        for row in named:
            self.tasks[row.tag] = (row.tasks.completed, row.tasks.failed)
        if others:
            self.agents[OTHER] = _states(others)
            self._add_others(others)

    def _add_others(self, rows: Sequence[TagFigures]) -> None:
        completed, failed = self.tasks.get(OTHER, (0, 0))
        for row in rows:
            before = self._seen.pop(row.tag, (0, 0))
            completed += max(0, row.tasks.completed - before[0])
            failed += max(0, row.tasks.failed - before[1])
            self._seen[row.tag] = (row.tasks.completed, row.tasks.failed)
        while len(self._seen) > MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        self.tasks[OTHER] = (completed, failed)


def _states(rows: Sequence[TagFigures]) -> dict[str, int]:
    """Add up agents by state."""
    return {state: sum(getattr(row.agents, state) for row in rows) for state in STATES}
