"""A source with a real view that real events have filled."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pilotfleet.errors import NotFound
from pilotfleet.fleet.monitor.samples import DirectoryAgent
from pilotfleet.fleet.monitor.view.fleetview import FleetView

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

__all__ = ["START", "ViewSource", "filled_source", "publish"]

START = 1_700_000_000.0
FLEET = "words"


class ViewSource:
    """A MonitorSource of one view, without history."""

    def __init__(self, view: FleetView) -> None:
        self.view = view
        self.rows: list[AlertRow] = []

    def fleets(self) -> Sequence[str]:
        return [self.view.fleet]

    def figures(self, fleet: str) -> Figures:
        return self._view(fleet).figures()

    def tags(self, fleet: str) -> Sequence[TagFigures]:
        return self._view(fleet).tags()

    def task_times(self, fleet: str) -> TimeHistogram:
        return self._view(fleet).task_times()

    def agents(self, fleet: str, query: AgentQuery) -> AgentPage:
        return self._view(fleet).agents(query)

    def agent(self, fleet: str, name: str) -> AgentDetail:
        return self._view(fleet).agent(name)

    def trust_graph(self, fleet: str, *, limit: int = 500) -> TrustGraph:
        return self._view(fleet).trust_graph(limit=limit)

    def trust_changes(self, fleet: str, *, limit: int = 200) -> Sequence[TrustChange]:
        return self._view(fleet).trust_changes(limit=limit)

    def recent_events(self, fleet: str, *, limit: int = 100) -> Sequence[RecentEvent]:
        return self._view(fleet).recent_events(limit=limit)

    def alerts(self) -> Sequence[AlertRow]:
        return self.rows

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
        raise NotImplementedError("no exporter asks for history")

    def _view(self, fleet: str) -> FleetView:
        if fleet != self.view.fleet:
            raise NotFound(f"no fleet is called {fleet!r}")
        return self.view


def publish(view: FleetView, topic: str, *, at: float = START, **data: Any) -> None:
    """Give the view an event."""
    view.take(topic, json.dumps(data).encode(), at=at)


def filled_source(
    agents: int = 3,
    *,
    completed: int = 0,
    failed: int = 0,
    tags: Sequence[str] = ("text",),
) -> ViewSource:
    """Return a fleet whose agents are alive and have done tasks of 1, 2, … ms."""
    view = FleetView(FLEET)
    view.is_following = True
    names = [f"worker-{number}" for number in range(1, agents + 1)]
    for name in names:
        publish(view, "fleet.health", agent=name, status="idle", interval_s=10)
    rows = [
        DirectoryAgent(
            node_id=number,
            address=f"0:0000.0000.{number:04X}",
            name=name,
            tags=tuple(tags),
            polo=number,
        )
        for number, name in enumerate(names, start=1)
    ]
    view.take_agents(rows, at=START)
    view.take_links({(1, 2)}, at=START)
    for number in range(completed + failed):
        row = {
            "agent": names[number % agents],
            "task_id": f"t-{number}",
            "status": "SUCCEEDED" if number < completed else "FAILED",
            "ms": number + 1,
            "at": START,
        }
        publish(view, "fleet.task", tasks=[row])
    publish(
        view,
        "fleet.node",
        host="host-1",
        version="1.2.3",
        interval_s=10,
        agents=[],
        totals={
            "agents": agents,
            "tunnels": 4,
            "bytes_sent": 1_000,
            "bytes_received": 500,
        },
    )
    publish(view, "fleet.broker", broker="words-hub", published=7, subscribers=2)
    view.advance(START + 1)
    return ViewSource(view)
