"""What the pages and exporters need of a monitor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.fleet.monitor.figures import (
        AgentDetail,
        AgentPage,
        AgentQuery,
        AlertRow,
        Figures,
        RecentEvent,
        Series,
        TagFigures,
        TrustChange,
        TrustGraph,
    )
    from pilotfleet.fleet.monitor.times import TimeHistogram

__all__ = ["MAX_ROWS", "SERIES", "SORTS", "MonitorSource"]

SERIES: Final = (
    "agents_alive",
    "agents_late",
    "agents_lost",
    "completed_per_minute",
    "failed_per_minute",
    "error_rate",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "trust_links",
    "trust_linked",
    "trust_revoked",
    "polo_p50",
    "polo_p90",
    "tunnels",
    "sent_per_s",
    "received_per_s",
)
"""The metrics that history has. Of a tag: the agents, tasks and times only."""

SORTS: Final = (
    *("name", "state", "status", "polo", "completed", "failed", "tunnels"),
    "last_seen",
)
"""By what the rows of the table can be ordered."""
MAX_ROWS: Final = 1_000
"""Of the table, that are given at once."""


class MonitorSource(Protocol):
    """One or more fleets that are watched."""

    def fleets(self) -> Sequence[str]:
        """Return the names of the fleets."""

    def figures(self, fleet: str) -> Figures:
        """Return the figures of now. Raises NotFound: there is no such fleet."""

    def tags(self, fleet: str) -> Sequence[TagFigures]:
        """Return the figures of the tags that most agents have, at most 100."""

    def task_times(self, fleet: str) -> TimeHistogram:
        """Return the times of all tasks since the monitor knows the fleet."""

    def agents(self, fleet: str, query: AgentQuery) -> AgentPage:
        """Return rows of the table."""

    def agent(self, fleet: str, name: str) -> AgentDetail:
        """Return the page of an agent. Raises NotFound: there is none of the name."""

    def trust_graph(self, fleet: str, *, limit: int = 500) -> TrustGraph:
        """Return what can be drawn; the agents with the most links first."""

    def trust_changes(self, fleet: str, *, limit: int = 200) -> Sequence[TrustChange]:
        """Return the last changes, newest first."""

    def recent_events(self, fleet: str, *, limit: int = 100) -> Sequence[RecentEvent]:
        """Return the last events, newest first."""

    def alerts(self) -> Sequence[AlertRow]:
        """Return what fires, then what was resolved lately."""

    async def series(
        self,
        fleet: str,
        metrics: Sequence[str],
        *,
        start: float,
        end: float,
        tag: str | None = None,
        points: int = 600,
    ) -> Series:
        """Return values over time, in the finest resolution that fits the points.

        Raises:
            InvalidArgument: There is no such metric, or the end is not after the start.
            NotFound: There is no such fleet.
        """
