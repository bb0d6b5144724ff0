"""A made-up fleet behind the interface that the pages read.

What it shows moves with the time that a test gives it, so that a page can be looked
at without programs. Its strings are such as an enemy would choose.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import InvalidArgument, NotFound
from pilotfleet.fleet.monitor.figures import (
    AgentCounts,
    AgentDetail,
    AgentPage,
    AgentQuery,
    AgentRow,
    AgentState,
    AlertRow,
    AlertState,
    Figures,
    Link,
    PoloFigures,
    RecentEvent,
    RecentTask,
    Series,
    TagFigures,
    TaskFigures,
    Traffic,
    TrustChange,
    TrustGraph,
)
from pilotfleet.fleet.monitor.source import SERIES
from pilotfleet.fleet.monitor.times import TimeHistogram

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOSTILE: Final = "<script>alert(1)</script>"
HOSTILE_NAMES: Final = (HOSTILE, '"><img src=x onerror=alert(2)>', "a/../b?c#d e%20f")
TAGS: Final = ("worker", "text", "gpu", "eu", "us", "batch", '<b onclick="x()">tag</b>')
STATES: Final = (AgentState.ALIVE, AgentState.LATE, AgentState.LOST)


class MadeFleet:
    """Satisfies ``MonitorSource``."""

    def __init__(
        self,
        *,
        agents: int,
        wall: Callable[[], float],
        names: Sequence[str] = ("batch",),
        links: int = 600,
    ) -> None:
        self._wall = wall
        self._names = names
        self._random = random.Random(5)
        self._started = wall()
        self.rows = [self._row(number) for number in range(agents)]
        self.links = self._links(min(agents, 500), links)
        self.firing = True

    def fleets(self) -> Sequence[str]:
        return self._names

    def figures(self, fleet: str) -> Figures:
        self._check(fleet)
        at = self._wall()
        wave = math.sin(at / 30)
        rate = 0.07 + 0.02 * wave
        polo = sorted(row.polo or 0 for row in self.rows)
        return Figures(
            fleet=fleet,
            at=at,
            agents=self._counts(self.rows),
            tasks=TaskFigures(
                completed_per_minute=1_520 + 80 * wave,
                failed_per_minute=(1_520 + 80 * wave) * rate,
                error_rate=rate,
                completed=int(184_000 + (at - self._started) * 25),
                failed=int(12_900 + (at - self._started) * 2),
                p50_ms=412 + 20 * wave,
                p95_ms=1_830 + 90 * wave,
                p99_ms=4_210 + 300 * wave,
            ),
            polo=_polo(polo),
            traffic=Traffic(
                tunnels=len(self.links),
                bytes_sent=int(8e9 + (at - self._started) * 4e5),
                bytes_received=int(7.4e9 + (at - self._started) * 3e5),
                sent_per_s=412_000 + 30_000 * wave,
                received_per_s=390_000 + 20_000 * wave,
            ),
            trust_links=len(self.links),
            trust_linked=14,
            trust_revoked=3,
            versions={"0.1.0": len(self.rows) - 3, HOSTILE: 3},
            events=int(91_000 + (at - self._started) * 40),
            brokers={"batch-hub": {"subscribers": 3, "published": 91_000}},
            following=True,
        )

    def tags(self, fleet: str) -> Sequence[TagFigures]:
        self._check(fleet)
        return [
            TagFigures(tag, self._counts(rows), TaskFigures(completed_per_minute=10))
            for tag in TAGS
            if (rows := [row for row in self.rows if tag in row.tags])
        ]

    def task_times(self, fleet: str) -> TimeHistogram:
        self._check(fleet)
        return TimeHistogram()

    def agents(self, fleet: str, query: AgentQuery) -> AgentPage:
        self._check(fleet)
        states = query.states or STATES
        rows = [
            row
            for row in self.rows
            if query.search.lower() in row.name.lower()
            and set(query.tags) <= set(row.tags)
            and row.state in states
        ]
        key = query.sort.removeprefix("-")
        if query.sort != "name":
            rows.sort(key=lambda row: getattr(row, key) or 0, reverse=query.sort != key)
        shown = rows[query.offset : query.offset + query.limit]
        return AgentPage(len(rows), query.offset, tuple(shown))

    def agent(self, fleet: str, name: str) -> AgentDetail:
        self._check(fleet)
        row = next((row for row in self.rows if row.name == name), None)
        if row is None:
            raise NotFound(f"the monitor knows no agent {name} in fleet {fleet}")
        at = self._wall()
        tasks = tuple(
            RecentTask(
                at=at - number * 7,
                agent=name,
                task_id=f"task-{int(at) - number}",
                status="FAILED" if number % 9 == 4 else "SUCCEEDED",
                ms=200 + 37.5 * number,
                text=HOSTILE if number == 1 else f"counted {number * 17} words",
            )
            for number in range(25)
        )
        return AgentDetail(
            row,
            uptime_s=93_784,
            address="0:0000.0001.002A",
            bytes_sent=81_245_110,
            bytes_received=64_110_093,
            peers=("batch-hub", HOSTILE, "0:0000.0000.0007"),
            trusted=tuple(_other(link, name) for link in self.links if _in(link, name)),
            tasks=tasks,
            events=tuple(self.recent_events(fleet, limit=20)),
        )

    def trust_graph(self, fleet: str, *, limit: int = 500) -> TrustGraph:
        self._check(fleet)
        shown = self.rows[:limit]
        names = {row.name for row in shown}
        links = tuple(
            link for link in self.links if link.one in names and link.other in names
        )
        hidden = len(self.links) - len(links)
        return TrustGraph(tuple(shown), links, len(self.rows) - len(shown), hidden)

    def trust_changes(self, fleet: str, *, limit: int = 200) -> Sequence[TrustChange]:
        self._check(fleet)
        at = self._wall()
        return [
            TrustChange(
                at - 60 * number,
                "revoked" if number % 5 == 2 else "linked",
                link.one,
                link.other,
            )
            for number, link in enumerate(self.links[: min(limit, 60)])
        ]

    def recent_events(self, fleet: str, *, limit: int = 100) -> Sequence[RecentEvent]:
        self._check(fleet)
        at = self._wall()
        texts = (
            '{"agent": "worker-7", "status": "idle", "tasks_completed": 311}',
            f'{{"agent": "{HOSTILE}", "status": "busy"}}',
            '{"tasks": [{"agent": "worker-9", "status": "SUCCEEDED", "ms": 412.5}]}',
        )
        topics = ("fleet.health", f"fleet.{HOSTILE}", "fleet.task")
        return [
            RecentEvent(at - number, topics[number % 3], texts[number % 3])
            for number in range(min(limit, 200))
        ]

    def alerts(self) -> Sequence[AlertRow]:
        at = self._wall()
        old = AlertRow(
            "queue-stuck",
            "info",
            self._names[0],
            "agent:worker-7",
            AlertState.RESOLVED,
            since=at - 7_200,
            summary="worker-7 said nothing for 3 minutes",
            resolved_at=at - 6_000,
        )
        if not self.firing:
            return [old]
        new = AlertRow(
            "errors",
            "critical",
            self._names[0],
            "",
            AlertState.FIRING,
            since=at - 95,
            value=0.0712,
            summary=f"7.1 % of the tasks fail {HOSTILE}",
        )
        wait = AlertRow(
            "late",
            "warning",
            self._names[0],
            "tag:gpu",
            AlertState.PENDING,
            at - 20,
            12,
        )
        return [new, wait, old]

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
        self._check(fleet)
        if unknown := set(metrics) - set(SERIES):
            raise InvalidArgument(f"there is no metric {sorted(unknown)[0]}")
        span = end - start
        step = next((s for s in (1, 10, 60, 600, 3_600) if span / s <= points), 86_400)
        times = tuple(float(t) for t in range(int(start), int(end), step))
        values = {
            metric: tuple(self._value(metric, number, t) for t in times)
            for number, metric in enumerate(metrics)
        }
        return Series(step, times, values)

    def _value(self, metric: str, number: int, at: float) -> float | None:
        # A hole, such as a monitor that was off leaves.
        if at % 5_000 < 120:
            return None
        base = _BASES.get(metric, 100.0)
        noise = math.sin(at * 12.9898 + number * 78.233) * 0.05
        return base * (1 + 0.2 * math.sin(at / 170 + number) + noise)

    def _check(self, fleet: str) -> None:
        if fleet not in self._names:
            raise NotFound(f"the monitor watches no fleet {fleet}")

    def _row(self, number: int) -> AgentRow:
        draw = self._random
        hostile = number < len(HOSTILE_NAMES)
        name = HOSTILE_NAMES[number] if hostile else f"worker-{number}"
        state = draw.choices(STATES, (95, 3, 2))[0]
        return AgentRow(
            name,
            state,
            status=HOSTILE if hostile else draw.choice(("idle", "busy")),
            tags=(TAGS[0], TAGS[1 + number % 6]),
            polo=int(draw.expovariate(0.02)),
            completed=draw.randrange(4_000),
            failed=draw.randrange(200),
            tunnels=draw.randrange(12),
            last_seen=self._wall() - draw.random() * 20,
            version="0.1.0",
            node_id=number + 1,
        )

    def _links(self, agents: int, count: int) -> list[Link]:
        names = [row.name for row in self.rows[:agents]]
        spokes = [Link(names[0], name, "trust") for name in names[1:]]
        others = [
            Link(one, other, self._random.choice(("trust", "tunnel")))
            for one, other in (self._random.sample(names, 2) for _ in range(count))
        ]
        return spokes + others

    @staticmethod
    def _counts(rows: Sequence[AgentRow]) -> AgentCounts:
        return AgentCounts(
            *(sum(row.state is state for row in rows) for state in STATES)
        )


_BASES: Final = {
    "agents_alive": 190.0,
    "agents_late": 6.0,
    "agents_lost": 4.0,
    "completed_per_minute": 1_520.0,
    "failed_per_minute": 106.0,
    "error_rate": 0.07,
    "p50_ms": 412.0,
    "p95_ms": 1_830.0,
    "p99_ms": 4_210.0,
    "trust_links": 199.0,
    "tunnels": 600.0,
    "sent_per_s": 412_000.0,
    "received_per_s": 390_000.0,
}


def _polo(scores: Sequence[int]) -> PoloFigures:
    def share(part: float) -> int:
        return scores[min(len(scores) - 1, int(part * len(scores)))]

    width = scores[-1] // 20 + 1
    bins = tuple(
        (low, low + width - 1, sum(low <= score < low + width for score in scores))
        for low in range(0, scores[-1] + 1, width)
    )
    return PoloFigures(
        agents=len(scores),
        total=sum(scores),
        lowest=scores[0],
        p10=share(0.1),
        p50=share(0.5),
        p90=share(0.9),
        p99=share(0.99),
        highest=scores[-1],
        histogram=bins[:20],
    )


def _in(link: Link, name: str) -> bool:
    return name in (link.one, link.other)


def _other(link: Link, name: str) -> str:
    return link.other if link.one == name else link.one
