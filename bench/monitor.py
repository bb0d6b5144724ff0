"""What a monitor costs: watching, answering, catching up; and its parts alone."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import uvloop

from bench.fleets import percentile
from bench.history import keep, kept_table, times_ms
from bench.processmemory import MIB, cpu_seconds, memory_of
from bench.report import Table
from pilotfleet.fleet.agent import Agent
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.services.events import (
    EVENT_PORT,
    PUBLISHER_TOPIC,
    encode_event,
)
from tests.cli.monitorsupport import FLEET, Watched, start_hub
from tests.support.programs import data_of, world

if TYPE_CHECKING:
    from bench.options import Options
    from bench.report import Cell
    from pilotfleet.client.streams import ClientStream
    from tests.support.programs import World

AGENTS = (1_000, 10_000)
INTERVAL_S = 10.0
STEP_S = 0.05
"""Between two writes of the publisher."""
MEASURED_S = 60
REQUESTS = 200
BEHIND = 50_000
"""Events that a monitor has to catch up with."""
MEMBER_RATE = 8_000
"""A broker takes 10,000 events a second of one node."""
LIMIT_S = 120.0
API = f"/api/fleets/{FLEET}"


def measure(options: Options) -> list[Table]:
    """Measure a monitor that runs, then its view and its history alone."""
    costs, answers, kept = [], [], []
    for agents in map(options.scaled, AGENTS):
        print(f"  {agents} agents", file=sys.stderr, flush=True)
        cost, answer = _watched(agents, options)
        costs.append(cost)
        answers.append(answer)
    for agents in map(options.scaled, AGENTS):
        print(f"  history of {agents} agents", file=sys.stderr, flush=True)
        kept.append(uvloop.run(keep(agents, options)))
    return [_costs(costs, options), _answers(answers), kept_table(kept)]


def _watched(agents: int, options: Options) -> tuple[tuple[Cell, ...], ...]:
    with world() as net:
        start_hub(net)
        watched = Watched(net, ("--home", net.home / "monitor"))
        watched.start()
        return uvloop.run(_measure_watched(net, watched, agents, options))


async def _measure_watched(
    net: World, watched: Watched, agents: int, options: Options
) -> tuple[tuple[Cell, ...], ...]:
    async with await Agent.connect(net.socket("hub")) as publisher:
        hub = Address.parse(data_of(net.ctl("hub", "info"))["address"])
        stream = await publisher.dial(hub, EVENT_PORT)
        await stream.write(encode_event(PUBLISHER_TOPIC))
        source = _Source(stream, agents)
        feeding = asyncio.create_task(source.feed())
        await source.sent(agents)
        await asyncio.to_thread(_wait_events, watched, agents)
        pid = watched.running().process.pid
        seconds = options.scaled(MEASURED_S)
        before, used_s, started = source.count, cpu_seconds(pid), time.perf_counter()
        await asyncio.sleep(seconds)
        elapsed, used_s = time.perf_counter() - started, cpu_seconds(pid) - used_s
        events, memory = source.count - before, memory_of(pid)
        answers = await asyncio.to_thread(_ask, watched, options.scaled(REQUESTS))
        feeding.cancel()
        await asyncio.wait([feeding])
        behind = options.scaled(BEHIND)
        caught_up_s, per_s = await _catch_up(net, watched, source, behind)
        await stream.close()
    watched.running().terminate()
    cost = (
        *(agents, events / elapsed, 100 * used_s / elapsed, 1e6 * used_s / events),
        *(*memory.mib, behind, caught_up_s, per_s),
    )
    return cost, (agents, *answers)


class _Source:
    """All agents of a fleet, which tell their health in turns."""

    def __init__(self, stream: ClientStream, agents: int) -> None:
        self._stream = stream
        self._agents = agents
        self.count = 0
        """Events so far."""

    async def feed(self) -> None:
        """Publish as the agents would, until cancelled."""
        await self._publish_at(self._agents / INTERVAL_S, None)

    async def burst(self, count: int) -> None:
        """Publish so many events as fast as the broker takes them of one node."""
        await self._publish_at(MEMBER_RATE, self.count + count)

    async def sent(self, count: int) -> None:
        """Return when so many events are published."""
        while self.count < count:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(STEP_S)

    async def _publish_at(self, per_s: float, until: int | None) -> None:
        began, first = time.perf_counter(), self.count
        while until is None or self.count < until:
            due = first + int((time.perf_counter() - began) * per_s)
            due = due if until is None else min(due, until)
            frames = b"".join(map(self._health, range(self.count, due)))
            if frames:
                await self._stream.write(frames)
            self.count = due
            await asyncio.sleep(STEP_S)

    def _health(self, number: int) -> bytes:
        health = {
            "agent": f"worker-{number % self._agents:05d}",
            "status": "idle",
            "tasks_completed": number // self._agents,
            "tasks_failed": 0,
            "uptime_hours": 3.25,
            "interval_s": INTERVAL_S,
        }
        return encode_event("fleet.health", json.dumps(health).encode())


def _wait_events(watched: Watched, count: int) -> None:
    watched.wait(lambda figures: bool(figures["events"] >= count))


def _ask(watched: Watched, count: int) -> list[Cell]:
    """Return the times of what a page and a scraper ask for."""
    paths = (
        f"{API}/figures",
        f"{API}/agents?sort=-completed&limit=100",
        f"{API}/agents?search=99&limit=100",
        "/metrics",
    )
    cells: list[Cell] = []
    for path in paths:
        times = times_ms(partial(watched.get, path), count)
        cells += [percentile(times, 0.5), percentile(times, 0.99)]
    return [*cells, len(watched.get("/metrics")) / 1024]


async def _catch_up(
    net: World, watched: Watched, source: _Source, count: int
) -> tuple[float, float]:
    """Return after how long a monitor that was off has read it all, and how fast."""
    await asyncio.to_thread(_wait_events, watched, source.count)
    await asyncio.to_thread(watched.running().terminate)
    expected = _logged(net) + count
    await source.burst(count)
    async with asyncio.timeout(LIMIT_S):
        while _logged(net) < expected:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(STEP_S)
    return await asyncio.to_thread(_time_catch_up, watched, source.count)


def _logged(net: World) -> int:
    counters = data_of(net.ctl("hub", "events", "status"))
    logged, lost, refused = (
        int(counters[name]) for name in ("logged", "log_lost", "rate_limited")
    )
    assert not lost, "the log has lost events"
    assert not refused, "the broker has refused events"
    return logged


def _time_catch_up(watched: Watched, total: int) -> tuple[float, float]:
    """Start the monitor; return when it has counted all, and how many a second.

    The rate is that after the first look, which leaves the start of the program out.
    """
    began = time.perf_counter()
    watched.start()
    looked, first = time.perf_counter(), int(watched.figures()["events"])
    _wait_events(watched, total)
    done = time.perf_counter()
    return done - began, (total - first) / (done - looked)


def _costs(rows: list[tuple[Cell, ...]], options: Options) -> Table:
    columns = (
        *("agents", "events/s", "monitor's CPU %", "CPU µs per event", *MIB),
        *("events missed while off", "caught up after s", "events/s then"),
    )
    note = (
        f"Each agent tells its health every {INTERVAL_S:g} s; one program publishes for"
        " all at a broker that is a daemon of its own. CPU is that of `pilot-monitor`"
        f" in {options.scaled(MEASURED_S)} s, history on disk included, no page open."
        " Caught up: from the start of the program that was off until it has counted"
        " all that it missed; the rate leaves out the start itself."
    )
    return Table("A monitor that watches", columns, rows, note)


def _answers(rows: list[tuple[Cell, ...]]) -> Table:
    what = ("figures", "100 rows", "search", "/metrics")
    times = (f"{name} {share} ms" for name in what for share in ("p50", "p99"))
    columns = ("agents", *times, "/metrics KiB")
    note = (
        "Requests over HTTP, one after the other, while the events of the first table"
        " come. Rows: the first hundred by tasks; search: names with 99 in them."
    )
    return Table("What it answers", columns, rows, note)
