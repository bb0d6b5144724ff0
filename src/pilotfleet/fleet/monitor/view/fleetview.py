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
    AgentRow,
    AgentState,
    Figures,
    PoloFigures,
    RecentEvent,
    RecentTask,
)
from pilotfleet.fleet.monitor.samples import Sample
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
from pilotfleet.fleet.monitor.view.state import (
    VERSION,
    SavedView,
    decode_state,
    encode_state,
)
from pilotfleet.fleet.monitor.view.table import agent_row, find_agents
from pilotfleet.fleet.monitor.view.tagbook import TagBook
from pilotfleet.fleet.monitor.view.tasks import Second, SeenTasks, TaskWindow
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
        AgentCounts,
        AgentPage,
        AgentQuery,
        TagFigures,
        TrustChange,
        TrustGraph,
    )
    from pilotfleet.fleet.monitor.samples import DirectoryAgent
    from pilotfleet.fleet.monitor.view.agents import AgentEntry
    from pilotfleet.fleet.monitor.view.intake import TaskRow

__all__ = ["FleetView", "ViewConfig"]

MAX_EVENT_TEXT: Final = 300
"""Characters of an event, and four bytes each, that are kept."""
MAX_TASK_TEXT: Final = 200
MAX_TOPIC: Final = 128
MAX_RECENT_EVENTS: Final = 200
MAX_BROKERS: Final = 64
MAX_TRUSTED: Final = 200
"""Peers on the page of an agent."""
FILL_S: Final = 15
"""A gap of so many seconds is one in which nothing happened; in a longer one the
view was not there, and history has a gap as well."""
MAX_WAITING_S: Final = 300
"""Seconds of samples that wait for ``collect``."""

_WORDS: Final = {
    word: word
    for word in (
        BROKER_TOPIC,
        HEALTH_TOPIC,
        NODE_TOPIC,
        TASK_TOPIC,
        "SUCCEEDED",
        "FAILED",
    )
}
"""Texts that come again and again are kept once."""


@dataclass(frozen=True, slots=True)
class ViewConfig:
    """Limits of a view."""

    interval_s: float = 10.0
    """Between two health events of an agent that does not say it."""
    max_agents: int = 100_000
    """Beyond these, who was lost for longest gives way."""
    keeps_samples: bool = True
    """Whether somebody calls ``collect``."""


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
        self._recent: deque[tuple[float, str, bytes]] = deque(maxlen=MAX_RECENT_EVENTS)
        self._topics = TopicClock()
        self._samples: deque[list[Sample]] = deque(maxlen=MAX_WAITING_S)
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
        self._recent.append((at, topic[:MAX_TOPIC], payload[: 4 * MAX_EVENT_TEXT]))

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
            tasks=tuple(_recent_task(agent, row) for row in reversed(agent.tasks)),
            events=tuple(_recent_event(row) for row in reversed(agent.events)),
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
        rows = list(self._recent)[::-1][: max(0, limit)]
        return [_recent_event(row) for row in rows]

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
        samples = [sample for second in self._samples for sample in second]
        self._samples.clear()
        return samples

    def save(self) -> bytes:
        """Return all that must outlive a restart, to be kept with what was collected.

        Left out are the recent tasks and events, and the peers of tunnels, which
        daemons tell again within minutes.
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
            linked, revoked = self._trust.close(second)
            if tasks.times is not None:
                self._times.merge(tasks.times)
            if self.config.keeps_samples:
                sample = self._fleet_sample(second, tasks, linked, revoked)
                self._samples.append([sample, *self._tag_samples(second, tags)])
        self._agents.advance(float(until))
        self._traffic.advance(float(until))

    def _fleet_sample(
        self, second: int, tasks: Second, linked: int, revoked: int
    ) -> Sample:
        traffic = self._traffic.figures()
        gauges = _agent_gauges(self._agents.counts)
        gauges["trust_links"] = float(self._trust.links)
        if self._polo.agents:
            gauges["polo_p50"] = float(self._polo.p50)
            gauges["polo_p90"] = float(self._polo.p90)
        gauges["tunnels"] = float(traffic.tunnels)
        gauges["sent_per_s"] = traffic.sent_per_s
        gauges["received_per_s"] = traffic.received_per_s
        return Sample(
            second=second,
            tag="",
            completed=tasks.completed,
            failed=tasks.failed,
            times=tasks.times,
            gauges=gauges,
            trust_linked=linked,
            trust_revoked=revoked,
        )

    def _tag_samples(self, second: int, ended: dict[str, Second]) -> list[Sample]:
        nothing = Second(0, 0, None)
        return [
            Sample(
                second=second,
                tag=tag,
                completed=tasks.completed,
                failed=tasks.failed,
                times=tasks.times,
                gauges=_agent_gauges(counts),
            )
            for tag, counts in self._tags.counts().items()
            for tasks in (ended.get(tag, nothing),)
        ]

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
            ended = at if row.at is None else row.at
            text = clean(row.text.strip(), MAX_TASK_TEXT)
            status = _WORDS.get(row.status) or clean(row.status, MAX_TASK_TEXT)
            agent.tasks.append((ended, row.task_id, status, row.ms, text))
            del agent.tasks[: -self._agents.recent]

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
        shown = payload[: 4 * MAX_EVENT_TEXT]
        agent.events.append((at, _WORDS.get(topic, topic)[:MAX_TOPIC], shown))
        del agent.events[: -self._agents.recent]

    def _on_change(
        self, agent: AgentEntry, before: AgentState | None, after: AgentState | None
    ) -> None:
        self._tags.change(agent.tags, before, after)

    # Words

    def _names(self, nodes: Sequence[int]) -> tuple[str, ...]:
        return tuple(sorted(map(self._directory.name_of, nodes))[:MAX_TRUSTED])

    def _node_row(self, node: int, agent: AgentEntry | None) -> AgentRow:
        if agent is not None:
            return agent_row(agent, self._traffic)
        info = self._directory.node(node)
        # It publishes no health, as a hub: the registry says whether it is there.
        is_here = info is not None and info.is_online
        return AgentRow(
            name=self._directory.name_of(node),
            state=AgentState.ALIVE if is_here else AgentState.LEFT,
            tags=info.tags if info is not None else (),
            polo=info.polo if info is not None else None,
            node_id=node,
        )


def _agent_gauges(counts: AgentCounts) -> dict[str, float]:
    return {
        "agents_alive": float(counts.alive),
        "agents_late": float(counts.late),
        "agents_lost": float(counts.lost),
    }


def _recent_task(
    agent: AgentEntry, row: tuple[float, str, str, float, str]
) -> RecentTask:
    at, task_id, status, ms, text = row
    return RecentTask(
        at=at, agent=agent.name, task_id=task_id, status=status, ms=ms, text=text
    )


def _recent_event(row: tuple[float, str, bytes]) -> RecentEvent:
    at, topic, data = row
    text = data.decode(errors="replace")
    return RecentEvent(
        at=at, topic=clean(topic, MAX_TOPIC), data=clean(text, MAX_EVENT_TEXT)
    )
