"""What is known about a fleet at one moment, as values.

Everything that shows a fleet (pages, ``fleet top``, ``/metrics``, NDJSON, OTLP) reads
these, so that all of them say the same. Times are wall-clock seconds since 1970.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = [
    "AgentCounts",
    "AgentDetail",
    "AgentPage",
    "AgentQuery",
    "AgentRow",
    "AgentState",
    "AlertRow",
    "AlertState",
    "Figures",
    "Link",
    "PoloFigures",
    "RecentEvent",
    "RecentTask",
    "Series",
    "TagFigures",
    "TaskFigures",
    "Traffic",
    "TrustChange",
    "TrustGraph",
]


class AgentState(StrEnum):
    """How an agent is, by its health events."""

    ALIVE = "alive"
    LATE = "late"
    """Two health events in a row did not come."""
    LOST = "lost"
    """Five did not come."""
    LEFT = "left"
    """It said goodbye; no longer counted."""


class AgentCounts(msgspec.Struct, frozen=True):
    """Agents by state. The first of the five figures."""

    alive: int = 0
    late: int = 0
    lost: int = 0
    left: int = 0

    @property
    def total(self) -> int:
        """All that should be there."""
        return self.alive + self.late + self.lost


class TaskFigures(msgspec.Struct, frozen=True):
    """Ends of tasks. The second and third of the five figures."""

    completed_per_minute: float = 0.0
    """Ended well in the last 60 s."""
    failed_per_minute: float = 0.0
    error_rate: float = 0.0
    """Share of the tasks of the last five minutes that failed, 0 to 1."""
    completed: int = 0
    """Since the monitor knows the fleet; restarts do not set it back."""
    failed: int = 0
    p50_ms: float | None = None
    """Task times of the last five minutes, within 1 %; None without any."""
    p95_ms: float | None = None
    p99_ms: float | None = None


class PoloFigures(msgspec.Struct, frozen=True):
    """How polo is distributed over the agents. The fifth of the five figures."""

    agents: int = 0
    """Agents whose score the registry told."""
    total: int = 0
    lowest: int = 0
    p10: int = 0
    p50: int = 0
    p90: int = 0
    p99: int = 0
    highest: int = 0
    histogram: tuple[tuple[int, int, int], ...] = ()
    """From, to (inclusive) and how many agents; at most 20 bins."""


class Traffic(msgspec.Struct, frozen=True):
    """What the daemons of a fleet carry."""

    tunnels: int = 0
    """Open tunnels, counted at each end that belongs to the fleet."""
    bytes_sent: int = 0
    bytes_received: int = 0
    sent_per_s: float = 0.0
    """Bytes a second, over the last reports."""
    received_per_s: float = 0.0


class Figures(msgspec.Struct, frozen=True):
    """All figures of a fleet at one moment."""

    fleet: str
    at: float
    agents: AgentCounts
    tasks: TaskFigures
    polo: PoloFigures
    traffic: Traffic
    trust_links: int = 0
    """Pairs of agents of the fleet that trust each other, by the registry."""
    trust_linked: int = 0
    """New links in the last hour. With the next, the fourth of the five figures."""
    trust_revoked: int = 0
    """Revocations in the last hour."""
    trust_linked_total: int = 0
    """New links since the monitor knows the fleet; restarts do not set it back."""
    trust_revoked_total: int = 0
    versions: dict[str, int] = {}
    """Agents by the version of their daemon."""
    events: int = 0
    """Events taken."""
    events_lost: int = 0
    """Events that the broker dropped before this monitor, and no log had."""
    events_refused: int = 0
    """Events of a known topic that were of another form than they should be."""
    brokers: dict[str, dict[str, int]] = {}
    """By broker, what its last ``fleet.broker`` event counted."""
    following: bool = False
    """Whether a broker of the fleet is being heard now."""


class TagFigures(msgspec.Struct, frozen=True):
    """Figures of the agents that have a tag."""

    tag: str
    agents: AgentCounts
    tasks: TaskFigures


class AgentRow(msgspec.Struct, frozen=True):
    """An agent in the table."""

    name: str
    state: AgentState
    status: str = ""
    """``idle``, ``busy``, ``draining`` and so on, as it says itself."""
    tags: tuple[str, ...] = ()
    polo: int | None = None
    completed: int = 0
    """As the agent counts since its start."""
    failed: int = 0
    tunnels: int = 0
    last_seen: float = 0.0
    """When its last health event came."""
    version: str = ""
    node_id: int | None = None


class RecentTask(msgspec.Struct, frozen=True):
    """A task that ended."""

    at: float
    agent: str
    task_id: str
    status: str
    ms: float
    text: str = ""
    """The beginning of what it said, if the event has it."""


class RecentEvent(msgspec.Struct, frozen=True):
    """An event as it came, shortened."""

    at: float
    topic: str
    data: str


class AgentDetail(msgspec.Struct, frozen=True):
    """The page of an agent."""

    row: AgentRow
    uptime_s: float = 0.0
    address: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    peers: tuple[str, ...] = ()
    """Names or addresses of the peers that it has tunnels to."""
    trusted: tuple[str, ...] = ()
    """Names or addresses of the peers that it trusts and that trust it."""
    tasks: tuple[RecentTask, ...] = ()
    """The last ones, newest first."""
    events: tuple[RecentEvent, ...] = ()


class AgentQuery(msgspec.Struct, frozen=True):
    """Which rows of the table."""

    search: str = ""
    """Part of the name, case ignored."""
    tags: tuple[str, ...] = ()
    """All of them."""
    states: tuple[AgentState, ...] = ()
    """Any of them; empty for all but those that left."""
    sort: str = "name"
    """One of ``source.SORTS``; with ``-`` before it the other way round."""
    offset: int = 0
    limit: int = 100
    """At most ``source.MAX_ROWS``."""


class AgentPage(msgspec.Struct, frozen=True):
    """Some rows of the table."""

    total: int
    """Rows that the query fits."""
    offset: int
    rows: tuple[AgentRow, ...]


class TrustChange(msgspec.Struct, frozen=True):
    """A new link, or one that was revoked."""

    at: float
    change: str
    """``linked`` or ``revoked``."""
    one: str
    """Name of an agent, or its address where it has none."""
    other: str


class Link(msgspec.Struct, frozen=True):
    """An edge of the drawn graph."""

    one: str
    other: str
    kind: str
    """``trust`` or ``tunnel``."""


class TrustGraph(msgspec.Struct, frozen=True):
    """Who trusts whom, and who has tunnels to whom, as far as it can be drawn."""

    nodes: tuple[AgentRow, ...]
    links: tuple[Link, ...]
    hidden_nodes: int = 0
    """Left out to stay drawable; those with the most links are shown."""
    hidden_links: int = 0


class AlertState(StrEnum):
    """How an alert is."""

    PENDING = "pending"
    """Its condition is met, but not yet for as long as the rule says."""
    FIRING = "firing"
    RESOLVED = "resolved"


class AlertRow(msgspec.Struct, frozen=True):
    """An alert that fires, or did."""

    rule: str
    severity: str
    fleet: str
    subject: str
    """What it is about: empty for the fleet, or ``tag:text``, ``agent:worker-7``."""
    state: AlertState
    since: float
    value: float | None = None
    summary: str = ""
    resolved_at: float | None = None


class Series(msgspec.Struct, frozen=True):
    """Values over time; all lists are of one length."""

    resolution_s: int
    times: tuple[float, ...]
    values: dict[str, tuple[float | None, ...]]
    """By metric; None where nothing is known."""
