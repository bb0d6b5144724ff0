"""What is known about one fleet: takes events, gives figures. Performs no I/O.

Time goes forward only: to the latest that a view was told. Reading does not move it,
so that a view that catches up with a broker's log is not disturbed by those who look
at it meanwhile. Whatever comes with an earlier time counts in the open second, but
for the health of an agent, which was as it was.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from pilotfleet.errors import NotFound
from pilotfleet.fleet.monitor.figures import (
    AgentDetail,
    AgentState,
    Figures,
    PoloFigures,
)
from pilotfleet.fleet.monitor.samples import Recent
from pilotfleet.fleet.monitor.times import TimeHistogram
from pilotfleet.fleet.monitor.view.agents import AgentBook
from pilotfleet.fleet.monitor.view.directorybook import DirectoryBook
from pilotfleet.fleet.monitor.view.graph import draw
from pilotfleet.fleet.monitor.view.intake import (
    clean,
    named_agent,
    read_broker,
    read_health,
    read_node,
    read_tasks,
)
from pilotfleet.fleet.monitor.view.polo import distribution
from pilotfleet.fleet.monitor.view.recent import (
    MAX_TOPIC,
    event_record,
    shown_event,
    shown_task,
    task_record,
)
from pilotfleet.fleet.monitor.view.samplebook import SampleBook, fleet_gauges
from pilotfleet.fleet.monitor.view.state import (
    VERSION,
    SavedView,
    decode_state,
    encode_state,
)
from pilotfleet.fleet.monitor.view.table import agent_row, find_agents, silent_row
from pilotfleet.fleet.monitor.view.tagbook import TagBook
from pilotfleet.fleet.monitor.view.tasks import SeenTasks, TaskWindow
from pilotfleet.fleet.monitor.view.topicclock import TopicClock
from pilotfleet.fleet.monitor.view.traffic import TrafficBook
from pilotfleet.fleet.monitor.view.trust import TrustBook
from pilotfleet.protocol.services.fleetevents import (
    BROKER_TOPIC,
    HEALTH_TOPIC,
    NODE_TOPIC,
    TASK_TOPIC,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pilotfleet.fleet.monitor.figures import (
        AgentPage,
        AgentQuery,
        AgentRow,
        RecentEvent,
        TagFigures,
        TrustChange,
        TrustGraph,
    )
    from pilotfleet.fleet.monitor.samples import DirectoryAgent, EventRecord, Sample
    from pilotfleet.fleet.monitor.view.agents import AgentEntry
    from pilotfleet.fleet.monitor.view.intake import TaskRow

__all__ = ["FleetView", "ViewConfig"]

MAX_RECENT_EVENTS: Final = 200
MAX_BROKERS: Final = 64
MAX_TRUSTED: Final = 200
"""Peers on the page of an agent."""
FILL_S: Final = 15
"""A gap of so many seconds is one in which nothing happened; in a longer one the
view was not there, and history has a gap as well."""


@dataclass(frozen=True, slots=True)
class ViewConfig:
    """Limits of a view."""

    interval_s: float = 10.0
    """Between two health events of an agent that does not say it."""
    max_agents: int = 100_000
    """Beyond these, who was lost for longest gives way."""
    forget_s: float = 86_400.0
    """An agent that is lost for so long is forgotten."""
    keeps_samples: bool = True
    """Whether somebody calls ``collect`` and ``new_recent``."""


class FleetView:
    """One fleet."""

    def __init__(self, fleet: str, *, config: ViewConfig | None = None) -> None:
        """Begin with a fleet of which nothing is known."""
        config = config or ViewConfig()
        self.fleet = fleet
        self.now = 0.0
        self.is_following = False
        """Whether a broker is being heard; for whoever feeds the view to set."""
        self.config = config
        self._second = 0
        """The open one; 0 before time began."""
        self._tags = TagBook()
        self._agents = AgentBook(
            interval_s=config.interval_s,
            max_agents=config.max_agents,
            forget_s=config.forget_s,
            on_change=self._on_change,
        )
        self._directory = DirectoryBook(max_agents=config.max_agents)
        self._tasks = TaskWindow()
        self._times = TimeHistogram()
        self._seen = SeenTasks()
        self._trust = TrustBook()
        self._traffic = TrafficBook()
        self._polo = PoloFigures()
        self._brokers: dict[str, dict[str, int]] = {}
        self._events = self._events_lost = self._events_refused = 0
        self._recent: deque[EventRecord] = deque(maxlen=MAX_RECENT_EVENTS)
        self._noted: dict[str, AgentEntry] = {}
        """Who has tasks or events that were not handed on yet."""
        self._topics = TopicClock()
        self._samples = SampleBook()
        self._takers = {
            HEALTH_TOPIC: self._take_health,
            TASK_TOPIC: self._take_tasks,
            NODE_TOPIC: self._take_node,
            BROKER_TOPIC: self._take_broker,
        }

    # Taking

    def take(self, topic: str, payload: bytes, *, at: float) -> None:
        """Take an event that was published ``at``."""
        self._move(at)
        self._events += 1
        taker = self._takers.get(topic, self._take_other)
        if not taker(topic, payload, at):
            self._events_refused += 1
        self._topics.take(topic[:MAX_TOPIC], at)
        self._recent.append(event_record(topic, payload, at))

    def take_agents(self, rows: Sequence[DirectoryAgent], *, at: float) -> None:
        """Take a complete pass over the directory."""
        self._move(at)
        self._directory.take(rows)
        agents = self._agents.by_name()
        for agent in agents:
            # Of who is in the directory no more, the last word counts.
            agent.info = self._directory.get(agent.name) or agent.info
        self._tags.recount(agents)
        self._polo = distribution(
            agent.info.polo
            for agent in agents
            if agent.info is not None
            and agent.info.polo is not None
            and agent.state is not AgentState.LEFT
        )

    def take_links(self, links: Collection[tuple[int, int]], *, at: float) -> None:
        """Take all pairs of node numbers that trust each other now."""
        self._move(at)
        self._trust.take(links, self._directory.name_of, at=at)

    def count_lost(self, events: int) -> None:
        """Count events that nobody will tell any more."""
        self._events_lost += events

    def listen_from(self, at: float) -> None:
        """Take note that events can be heard again, after a time of deafness.

        Silence of agents counts from then on.
        """
        # Up to now somebody listened: who was late then is, whether asked for or not.
        self._agents.advance(self.now)
        self._agents.heard_since = max(self._agents.heard_since, at)
        # What is saved from here on knows of no time that is yet to come.
        self._move(at)

    def advance(self, at: float) -> None:
        """Let time go on; to be called at least every second."""
        self._move(at)
        self._agents.advance(self.now)

    # Reading

    def figures(self) -> Figures:
        """Return the figures of ``now``."""
        self._agents.advance(self.now)
        linked, revoked = self._trust.last_hour(self._second)
        return Figures(
            fleet=self.fleet,
            at=self.now,
            agents=self._agents.counts,
            tasks=self._tasks.figures(self._second),
            polo=self._polo,
            traffic=self._traffic.figures(),
            trust_links=self._trust.links,
            trust_linked=linked,
            trust_revoked=revoked,
            trust_linked_total=self._trust.linked,
            trust_revoked_total=self._trust.revoked,
            versions=self._traffic.versions(),
            events=self._events,
            events_lost=self._events_lost,
            events_refused=self._events_refused,
            brokers={name: dict(counts) for name, counts in self._brokers.items()},
            following=self.is_following,
        )

    def tags(self) -> list[TagFigures]:
        """Return the figures of the tags that most agents have, at most 100."""
        self._agents.advance(self.now)
        return self._tags.figures(self._second)

    def agents(self, query: AgentQuery) -> AgentPage:
        """Return rows of the table.

        Raises:
            InvalidArgument: There is no such order.
        """
        self._agents.advance(self.now)
        return find_agents(self._agents.by_name(), self._traffic, query)

    def statuses(self, limit: int) -> dict[str, int]:
        """Return how many living agents say what of themselves, most first."""
        self._agents.advance(self.now)
        found = Counter(
            agent.status
            for agent in self._agents.by_name()
            if agent.state is AgentState.ALIVE
        )
        return dict(found.most_common(limit))

    def agent(self, name: str) -> AgentDetail:
        """Return the page of an agent.

        Raises:
            NotFound: Nobody of that name was heard.
        """
        self._agents.advance(self.now)
        agent = self._agents.get(name)
        if agent is None:
            raise NotFound(
                f"fleet {self.fleet} has no agent {clean(name, 64)!r}",
                hint="agents are known from their first health event on",
            )
        row, node = agent_row(agent, self._traffic), self._traffic.node(name)
        trusted = self._trust.adjacent().get(row.node_id or 0, ())
        return AgentDetail(
            row=row,
            uptime_s=agent.uptime_s,
            address=agent.info.address if agent.info is not None else "",
            bytes_sent=node.sent if node is not None else 0,
            bytes_received=node.received if node is not None else 0,
            peers=self._names(node.peers if node is not None else ()),
            trusted=self._names(trusted),
            tasks=tuple(shown_task(name, task) for task in reversed(agent.tasks)),
            events=tuple(shown_event(event) for event in reversed(agent.events)),
        )

    def trust_graph(self, *, limit: int = 500) -> TrustGraph:
        """Return what can be drawn; the agents with the most links first."""
        self._agents.advance(self.now)
        ids = {
            agent.info.node_id: agent
            for agent in self._agents.by_name()
            if agent.info is not None and agent.state is not AgentState.LEFT
        }
        tunnels = [
            (node.node_id, node.peers)
            for _, node in self._traffic.nodes()
            if node.node_id
        ]
        return draw(
            ids,
            trust=self._trust.adjacent(),
            tunnels=tunnels,
            row_of=lambda node: self._node_row(node, ids.get(node)),
            limit=limit,
        )

    def trust_changes(self, *, limit: int = 200) -> list[TrustChange]:
        """Return the last changes, newest first."""
        return self._trust.changes(limit)

    def recent_events(self, *, limit: int = 100) -> list[RecentEvent]:
        """Return the last events, newest first."""
        records = list(self._recent)[::-1][: max(0, limit)]
        return [shown_event(record) for record in records]

    def last_event_at(self, pattern: str) -> float | None:
        """Return when the last event of a topic that matches came; None: not yet."""
        return self._topics.last_event_at(pattern)

    def task_times(self) -> TimeHistogram:
        """Return the times of all tasks since the fleet is known."""
        times = TimeHistogram()
        times.merge(self._times)
        times.merge(self._tasks.open_times)
        return times

    # Keeping

    def collect(self) -> list[Sample]:
        """Return the seconds that ended since the last call, oldest first.

        Of the fleet and of the tags that are shown; at most 300 seconds wait.
        """
        return self._samples.collect()

    def new_recent(self) -> Recent:
        """Return the tasks and events for pages that came since the last call."""
        recent = Recent([], [], self._agents.recent)
        for name, agent in self._noted.items():
            tasks = agent.tasks[len(agent.tasks) - agent.new_tasks :]
            events = agent.events[len(agent.events) - agent.new_events :]
            recent.tasks.extend((name, task) for task in tasks)
            recent.events.extend((name, event) for event in events)
            agent.new_tasks = agent.new_events = 0
        self._noted.clear()
        return recent

    def take_back(self, recent: Recent) -> None:
        """Give the agents that are known what they had on their pages."""
        for name, task in recent.tasks:
            agent = self._agents.get(name)
            if agent is not None:
                agent.tasks.append(task)
                del agent.tasks[: -self._agents.recent]
        for name, event in recent.events:
            agent = self._agents.get(name)
            if agent is not None:
                agent.events.append(event)
                del agent.events[: -self._agents.recent]

    def save(self) -> bytes:
        """Return all that must outlive a restart, to be kept with what was collected.

        Left out are the recent tasks and events, which :meth:`new_recent` hands on, and
        the peers of tunnels, which daemons tell again within minutes.
        """
        self._agents.advance(self.now)
        return encode_state(
            SavedView(
                version=VERSION,
                fleet=self.fleet,
                now=self.now,
                heard_since=self._agents.heard_since,
                events=self._events,
                events_lost=self._events_lost,
                events_refused=self._events_refused,
                agents=self._agents.save(self._directory),
                directory=self._directory.save(),
                tasks=self._tasks.save(),
                times=self._times.encode(),
                tags=self._tags.save(),
                seen=self._seen.save(),
                trust=self._trust.save(),
                traffic=self._traffic.save(),
                polo=self._polo,
                brokers=self._brokers,
            )
        )

    @classmethod
    def load(cls, data: bytes, *, at: float, config: ViewConfig | None = None) -> Self:
        """Return the fleet that was saved.

        Args:
            data: What :meth:`save` gave.
            at: Now. What was saved later, by a clock that was wrong, counts as now.
            config: As for a new one.

        Raises:
            DecodeError: It is damaged, or of another version.
        """
        state = decode_state(data)
        view = cls(state.fleet, config=config)
        view.now = min(state.now, at)
        view._second = latest = int(view.now)
        view._events, view._events_lost = state.events, state.events_lost
        view._events_refused = state.events_refused
        view._directory.take(state.directory)
        view._tasks = TaskWindow.load(state.tasks, latest=latest)
        view._times = TimeHistogram.decode(state.times)
        view._seen = SeenTasks.load(state.seen, latest=view.now)
        view._trust = TrustBook.load(state.trust, latest=latest)
        view._traffic = TrafficBook.load(state.traffic, at=view.now)
        for name, node in view._traffic.nodes():
            view._directory.heard(node.node_id, name)
        view._polo = state.polo
        view._brokers = dict(list(state.brokers.items())[:MAX_BROKERS])
        view._agents.heard_since = min(state.heard_since, view.now)
        for saved in state.agents:
            info = view._directory.get(saved.name)
            view._agents.restore(saved, info, view.now)
        view._tags = TagBook()
        view._tags.load(state.tags, view._agents.by_name(), latest=latest)
        return view

    # Time

    def _move(self, at: float) -> None:
        if at <= self.now:
            return
        self.now = at
        second = int(at)
        if second == self._second:
            return
        if self._second:
            self._end_seconds(second)
        self._second = second

    def _end_seconds(self, until: int) -> None:
        gap_s = until - self._second
        last = until if gap_s <= FILL_S else self._second + 1
        for second in range(self._second, last):
            self._agents.advance(second + 1.0)
            self._traffic.advance(second + 1.0)
            tasks, tags = self._tasks.close(second), self._tags.close(second)
            trust = self._trust.close(second)
            if tasks.times is not None:
                self._times.merge(tasks.times)
            if self.config.keeps_samples:
                gauges = fleet_gauges(
                    self._agents.counts,
                    trust_links=self._trust.links,
                    polo=self._polo,
                    traffic=self._traffic.figures(),
                )
                self._samples.add_fleet(second, tasks, trust=trust, gauges=gauges)
                self._samples.add_tags(second, tags, self._tags.counts())
        self._agents.advance(float(until))
        self._traffic.advance(float(until))

    # Events

    def _take_health(self, topic: str, payload: bytes, at: float) -> bool:
        health = read_health(payload)
        if health is None:
            return False
        info = self._directory.get(health.agent)
        agent, is_news = self._agents.take(health, info, at=at, now=self.now)
        if agent is not None and is_news:
            # One that says the same again and again would fill the page.
            self._note(agent, topic, payload, at)
        return agent is not None

    def _take_tasks(self, topic: str, payload: bytes, at: float) -> bool:
        rows = read_tasks(payload)
        for row in rows or ():
            self._take_task(row, at)
        return rows is not None

    def _take_task(self, row: TaskRow, at: float) -> None:
        if row.at is not None and not self._seen.take(
            row.agent, row.task_id, row.at, now=self.now
        ):
            return
        self._tasks.add(row.ms, ok=row.is_success)
        agent = self._agents.get(row.agent)
        info = agent.info if agent is not None else self._directory.get(row.agent)
        if info is not None:
            self._tags.add(info.tags, row.ms, ok=row.is_success)
        if agent is not None:
            agent.tasks.append(task_record(row, at))
            del agent.tasks[: -self._agents.recent]
            if self.config.keeps_samples:
                agent.new_tasks = min(agent.new_tasks + 1, len(agent.tasks))
                self._noted[agent.name] = agent

    def _take_node(self, topic: str, payload: bytes, at: float) -> bool:
        report = read_node(payload)
        if report is None or not self._traffic.take(report, at=at):
            return False
        for row in report.agents:
            self._directory.heard(row.node_id, row.agent)
        return True

    def _take_broker(self, topic: str, payload: bytes, at: float) -> bool:
        report = read_broker(payload)
        if report is None:
            return False
        self._brokers.pop(report.broker, None)
        self._brokers[report.broker] = report.counters
        if len(self._brokers) > MAX_BROKERS:
            del self._brokers[next(iter(self._brokers))]
        return True

    def _take_other(self, topic: str, payload: bytes, at: float) -> bool:
        name = named_agent(payload)
        agent = self._agents.get(name) if name is not None else None
        if agent is not None:
            self._note(agent, topic, payload, at)
        return True

    def _note(self, agent: AgentEntry, topic: str, payload: bytes, at: float) -> None:
        agent.events.append(event_record(topic, payload, at))
        del agent.events[: -self._agents.recent]
        if self.config.keeps_samples:
            agent.new_events = min(agent.new_events + 1, len(agent.events))
            self._noted[agent.name] = agent

    def _on_change(
        self, agent: AgentEntry, before: AgentState | None, after: AgentState | None
    ) -> None:
        self._tags.change(agent.tags, before, after)
        if after is None:
            self._noted.pop(agent.name, None)

    # Words

    def _names(self, nodes: Sequence[int]) -> tuple[str, ...]:
        return tuple(sorted(map(self._directory.name_of, nodes))[:MAX_TRUSTED])

    def _node_row(self, node: int, agent: AgentEntry | None) -> AgentRow:
        if agent is not None:
            return agent_row(agent, self._traffic)
        name, info = self._directory.name_of(node), self._directory.node(node)
        return silent_row(node, name, info)
