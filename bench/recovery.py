"""Time to recover when a part of a working fleet is killed.

A sub-orchestrator, or a group of workers, is its daemon and its program; both get
SIGKILL in the middle of a batch. The launcher starts them again, and until then others
do the work. Everything is read off the stream of results, at the client.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import sys
import time
from bisect import bisect_left
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from bench.fleets import check, running, spec_of
from bench.report import Table
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.patterns.tree import TREE_TOPIC
from pilotfleet.fleet.taskfile import TaskLine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.fleets import BenchFleet, Tables
    from bench.options import Options
    from bench.report import Cell
    from pilotfleet.fleet.control import BatchResult

CLUSTERS = 4
CLUSTER_WORKERS = 50
REPEATS = 4
"""A fifth end so soon after a start would count as a crash loop."""
TASK_S = 0.1
"""On average. It keeps no processor busy, or the dead would not be missed."""
OPEN = 1_500
"""Tasks that always wait, so that the fleet never lacks any."""
WARM_UP_S = 8.0
SETTLE_S = 8.0
"""Between two kills, and the time that each is compared with."""
HEAL_S = 60.0
WINDOW_S = 2.0
STEP_S = 0.05
ENOUGH = 0.9
POLL_S = 0.05
SLACK = 20
"""Tasks that are given out while the status is on its way."""
VICTIM = 2
"""Number of the cluster or group that is killed."""

Times = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A result at the client."""

    at: float
    agent: str
    attempts: int
    number: int
    """Of the task: they are given out in this order."""


@dataclass(frozen=True, slots=True)
class _Kill:
    """Programs that were killed together."""

    at: float
    healed: float
    """When all of them were up again."""
    first_new: int
    """Number of the first task that had not been given out by then."""


@dataclass
class _Load:
    """A batch that never ends before it is told to."""

    fleet: BenchFleet
    arrivals: list[_Arrival] = field(default_factory=list)
    parents: list[tuple[float, str]] = field(default_factory=list)
    """Whose the cluster of the victim was, and from when on."""
    lines: list[TaskLine] = field(default_factory=list)
    rows: list[BatchResult] = field(default_factory=list)
    is_over: bool = False
    rng: random.Random = field(default_factory=lambda: random.Random(4))

    async def add(self) -> None:
        """Give the fleet some tasks more."""
        numbers = range(len(self.lines), len(self.lines) + OPEN)
        # Of different lengths, or all would end at the same time.
        new = [
            TaskLine(str(n), f"{TASK_S * self.rng.uniform(0.5, 1.5):.3f} {n}")
            for n in numbers
        ]
        await self.fleet.control.submit("load", new)
        self.lines += new

    async def feed(self) -> None:
        """Have tasks wait at all times."""
        while not self.is_over:
            if len(self.lines) - len(self.rows) < OPEN:
                await self.add()
            await asyncio.sleep(POLL_S)

    async def collect(self) -> None:
        """Note what comes, until all of it is there."""
        async for row in self.fleet.control.results("load"):
            result = row.result
            self.rows.append(row)
            self.arrivals.append(
                _Arrival(time.time(), result.agent, result.attempts, int(result.id))
            )

    async def watch_tree(self, tag: str) -> None:
        """Note who has the cluster of this tag."""
        async with await Agent.connect(self.fleet.home / "run" / "hub.sock") as hub:
            events = await hub.subscribe(TREE_TOPIC, broker=hub.address)
            async with events:
                async for event in events:
                    tree = msgspec.json.decode(event.payload, type=dict[str, Any])
                    parent = tree["parents"][tag]
                    if not self.parents or self.parents[-1][1] != parent:
                        self.parents.append((time.time(), parent))


def measure(options: Options) -> list[Table]:
    """Kill a sub-orchestrator several times, then a group of workers."""
    size = CLUSTER_WORKERS // 10 if options.quick else CLUSTER_WORKERS
    repeats = 2 if options.quick else REPEATS
    work = {"call": "bench.work:rest"}
    tree = spec_of("hierarchical", CLUSTERS * size, work=work)
    tree["hierarchy"] = {"cluster_size": size}
    flat = spec_of("hub-and-spoke", CLUSTERS * size, work=work)
    flat["workers"]["per_process"] = size
    sub = ("sub-orchestrator", ("sub", "subrunner"), tree)
    group = ("group of workers", ("group", "runner"), flat)
    return [
        _table(title, uvloop.run(_measure(spec, roles, repeats, size)), size=size)
        for title, roles, spec in (sub, group)
    ]


async def _measure(
    spec: Tables, roles: tuple[str, ...], repeats: int, size: int
) -> list[Times]:
    first = (VICTIM - 1) * size + 1
    workers = {f"worker-{number}" for number in range(first, first + size)}
    victims = [f"{role}-{VICTIM}" for role in roles]
    kills: list[_Kill] = []
    async with running(spec) as fleet:
        load = _Load(fleet)
        async with _working(load, is_tree="hierarchy" in spec):
            await asyncio.sleep(WARM_UP_S)
            for number in range(repeats):
                print(f"  kill {number + 1}: {victims}", file=sys.stderr, flush=True)
                kills.append(await _kill(fleet, victims))
                await asyncio.sleep(SETTLE_S)
    return [_times(load, workers, kill) for kill in kills]


@asynccontextmanager
async def _working(load: _Load, *, is_tree: bool) -> AsyncIterator[None]:
    """Keep the fleet busy; at the end, have it finish, and check all results."""
    async with asyncio.TaskGroup() as group:
        await load.add()
        feeding = group.create_task(load.feed())
        collecting = group.create_task(load.collect())
        watching = is_tree and group.create_task(load.watch_tree(f"c{VICTIM}"))
        yield
        load.is_over = True
        await asyncio.wait([feeding, collecting])
        if watching:
            watching.cancel()
    check(load.lines, load.rows)


async def _kill(fleet: BenchFleet, names: list[str]) -> _Kill:
    """SIGKILL members, and wait until all of them are up again."""
    status = await fleet.control.status()
    found = {row["name"]: row for row in status["members"]}
    killed_at = time.time()
    for name in names:
        os.kill(found[name]["pid"], signal.SIGKILL)
    async with asyncio.timeout(HEAL_S):
        while True:
            await asyncio.sleep(POLL_S)
            rows = {r["name"]: r for r in (await fleet.control.status())["members"]}
            if all(
                rows[name]["restarts"] > found[name]["restarts"]
                and rows[name]["state"] == "running"
                for name in names
            ):
                return _Kill(killed_at, time.time(), _first_new(status))


def _first_new(status: dict[str, Any]) -> int:
    """Return how many tasks were given out, or ended, at the time of a status."""
    tasks, work = status["tasks"], status["workers"]
    unread = tasks["open"] - work["open"]
    return int(tasks["tasks"] - unread - work["waiting"]) + SLACK


def _times(load: _Load, workers: set[str], kill: _Kill) -> Times:
    """Read off what happened after one kill, in seconds from it."""
    killed = kill.at
    ends = [arrival.at for arrival in load.arrivals]
    after = load.arrivals[bisect_left(ends, killed) :]
    # What the dead one had been given before may be on its way still.
    new = [a for a in after if a.number >= kill.first_new or a.attempts > 1]
    theirs = [a.at for a in new if a.agent in workers]
    again = [a.at for a in new if a.attempts > 1]
    usual = _rate(ends, killed, SETTLE_S)
    slow, back = _dip(ends, kill, usual)
    times: Times = {"first task run again": _since(killed, again)}
    if load.parents:
        moved = [at for at, _ in load.parents if at > killed]
        home = moved[1] if len(moved) > 1 else kill.healed
        through = [at for at in theirs if moved and moved[0] < at < home]
        times["cluster has another parent"] = _since(killed, moved)
        times["first result of it through that"] = _since(killed, through)
        times["cluster is home again"] = _since(killed, moved[1:])
    else:
        times["first result from the group again"] = _since(killed, theirs)
    times["programs are up again"] = kill.healed - killed
    times["throughput back at 90 %"] = back
    times["lowest throughput, % of before"] = 100 * slow / usual
    times["throughput before, tasks/s"] = usual
    return times


def _dip(ends: list[float], kill: _Kill, usual: float) -> tuple[float, float | None]:
    """Return the lowest rate after a kill, and after how long it was enough again.

    Zero where it never was too little; None where it stayed so.
    """
    watched_s = kill.healed - kill.at + SETTLE_S
    steps = int((watched_s - WINDOW_S) / STEP_S)
    offsets = [WINDOW_S + STEP_S * step for step in range(steps)]
    rates = [_rate(ends, kill.at + offset, WINDOW_S) for offset in offsets]
    lowest = min(rates)
    if lowest >= ENOUGH * usual:
        return lowest, 0.0
    back = (
        offset
        for offset, rate in zip(offsets, rates, strict=True)
        if offset > offsets[rates.index(lowest)] and rate >= ENOUGH * usual
    )
    return lowest, next(back, None)


def _rate(ends: list[float], until: float, window_s: float) -> float:
    """Return the results per second in a window that ends at ``until``."""
    return (bisect_left(ends, until) - bisect_left(ends, until - window_s)) / window_s


def _since(killed: float, times: list[float]) -> float | None:
    return times[0] - killed if times else None


def _table(what: str, repeats: list[Times], *, size: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name in repeats[0]:
        values = [times[name] for times in repeats]
        seen = [value for value in values if value is not None]
        spread = (
            (statistics.median(seen), min(seen), max(seen)) if seen else (None,) * 3
        )
        rows.append((name, *spread, f"{len(seen)} of {len(values)}"))
    note = (
        f"{CLUSTERS} times {size} workers, busy without a break with tasks that take"
        f" {TASK_S:g} s on average and no processor; seconds from SIGKILL of daemon and"
        f" program together. Throughput is that of windows of {WINDOW_S:g} s, before:"
        f" of {SETTLE_S:g} s; 0 s where it never fell below 90 %. All tasks of the run"
        " had one result. The official 1.18.0 programs have no tasks."
    )
    columns = ("after the kill", "median s", "lowest", "highest", "seen")
    return Table(f"Recovery from a dead {what}", columns, rows, note)
