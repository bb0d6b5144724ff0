"""The values that alert rules are held against, out of a monitor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from pilotfleet.fleet.monitor.alerts.rules import FOLLOWING
from pilotfleet.fleet.monitor.figures import AgentQuery, AgentState
from pilotfleet.fleet.monitor.source import MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pilotfleet.fleet.monitor.figures import AgentRow, Figures, TagFigures
    from pilotfleet.fleet.monitor.source import MonitorSource

__all__ = ["SourceValues", "TopicTimes"]

CURRENT_S: Final = 10.0
"""A view that is further behind is catching up with the log of a broker, unless it
stays so: then the broker's clock is behind."""
STEADY_S: Final = 30.0
UNSTEADY_S: Final = 2.0
"""By which the distance must change to be another one."""
AGENTS_EVERY_S: Final = 5.0
"""Between two looks at all agents of a fleet, which may be thousands."""

_STATES: Final = {AgentState.ALIVE: 0.0, AgentState.LATE: 1.0, AgentState.LOST: 2.0}


class TopicTimes(Protocol):
    """What a view knows of topics."""

    def last_event_at(self, pattern: str) -> float | None:
        """Return when the last event of a topic that matches came."""


class SourceValues:
    """Reads a monitor; what several rules need is read once for all of them."""

    def __init__(
        self, source: MonitorSource, topics: Callable[[str], TopicTimes]
    ) -> None:
        """Make values of a monitor.

        Args:
            source: The monitor.
            topics: Gives what the view of a fleet knows of topics.
        """
        self._source = source
        self._topics = topics
        self._fleets: dict[str, Figures] = {}
        self._tags: dict[str, dict[str, TagFigures]] = {}
        # How far each fleet is behind, and since when it is about so far.
        self._behind: dict[str, tuple[float, float]] = {}
        self._agents: dict[str, tuple[float, list[AgentRow]]] = {}

    def read(self, at: float) -> None:
        """Take the values of now, for all calls up to the next of this one."""
        source = self._source
        self._fleets = {fleet: source.figures(fleet) for fleet in source.fleets()}
        self._tags.clear()
        for fleet, figures in self._fleets.items():
            behind_s = at - figures.at
            known = self._behind.get(fleet)
            if known is None or abs(behind_s - known[0]) > UNSTEADY_S:
                self._behind[fleet] = (behind_s, at)

    def fleets(self) -> Sequence[str]:
        """Return the fleets that are watched."""
        return tuple(self._fleets)

    def is_current(self, fleet: str, at: float) -> bool:
        """Tell whether the fleet is heard and its events are counted up to now."""
        behind_s, since = self._behind[fleet]
        is_near = behind_s <= CURRENT_S or at - since >= STEADY_S
        return self._fleets[fleet].following and is_near

    def behind_s(self, fleet: str) -> float:
        """Return by how much the times of a fleet are behind ours."""
        return self._behind[fleet][0]

    def fleet_value(self, fleet: str, metric: str) -> float | None:
        """Return a metric of a fleet."""
        figures = self._fleets[fleet]
        agents, tasks = figures.agents, figures.tasks
        polo, traffic = figures.polo, figures.traffic
        if metric.startswith("polo_") and not polo.agents:
            return None
        if metric == FOLLOWING:
            return float(figures.following)
        if metric.startswith("agents_"):
            return float(getattr(agents, metric.removeprefix("agents_")))
        if metric.startswith("polo_"):
            return float(getattr(polo, metric.removeprefix("polo_")))
        for part in (tasks, traffic, figures):
            value = getattr(part, metric, None)
            if value is not None:
                return float(value)
        return None

    def tag_value(self, fleet: str, tag: str, metric: str) -> float | None:
        """Return a metric of a tag; None unless many agents have it."""
        tags = self._tags.get(fleet)
        if tags is None:
            tags = {each.tag: each for each in self._source.tags(fleet)}
            self._tags[fleet] = tags
        figures = tags.get(tag)
        if figures is None:
            return None
        name = metric.removeprefix("agents_")
        value = getattr(figures.agents if name != metric else figures.tasks, name)
        return None if value is None else float(value)

    def agent_values(
        self, fleet: str, metric: str | None
    ) -> Iterator[tuple[AgentRow, float | None]]:
        """Yield the agents that did not leave, with a metric of each."""
        for row in self._rows(fleet):
            value: float | None = None
            if metric == "state":
                value = _STATES[row.state]
            elif metric is not None:
                value = getattr(row, metric)
            yield row, value

    def last_event_at(self, fleet: str, pattern: str) -> float | None:
        """Return when the last event of such a topic came."""
        return self._topics(fleet).last_event_at(pattern)

    def last_health_at(self, fleet: str, tag: str) -> float | None:
        """Return when the last health event of an agent with the tag came."""
        query = AgentQuery(tags=(tag,), sort="-last_seen", limit=1)
        rows = self._source.agents(fleet, query).rows
        return (rows[0].last_seen or None) if rows else None

    def _rows(self, fleet: str) -> list[AgentRow]:
        now = self._fleets[fleet].at
        read_at, rows = self._agents.get(fleet, (0.0, []))
        if 0 <= now - read_at < AGENTS_EVERY_S:
            return rows
        rows = []
        while True:
            query = AgentQuery(states=tuple(_STATES), offset=len(rows), limit=MAX_ROWS)
            page = self._source.agents(fleet, query)
            rows.extend(page.rows)
            if len(rows) >= page.total or not page.rows:
                break
        self._agents[fleet] = (now, rows)
        return rows
