"""A monitor's view and history, alone in a program: times, and bytes on disk."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.fleets import percentile
from bench.report import Table
from pilotfleet.fleet.monitor.figures import AgentQuery
from pilotfleet.fleet.monitor.history.history import History
from tests.fleet.monitor.filledview import START, filled_source, publish

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.options import Options
    from bench.report import Cell
    from pilotfleet.fleet.monitor.samples import Sample
    from pilotfleet.fleet.monitor.view.fleetview import FleetView

FLEET = "words"
INTERVAL_S = 10.0
TAGS = ("worker", "text", "gpu")
STORES = 120
CALLS = 100
HOURS = 4
MINUTE_S = 60


async def keep(agents: int, options: Options) -> tuple[Cell, ...]:
    """Return what the view of so many agents and its history take."""
    view = filled_source(agents, completed=400, failed=28, tags=TAGS).view
    clock = _Time()
    saves, stores, samples = [], [], []
    with tempfile.TemporaryDirectory(prefix="pf-") as folder:
        path = Path(folder) / "monitor.db"
        async with History(path, wall=clock) as history:
            for second in range(options.scaled(STORES)):
                clock.now = START + 2 + second
                _pass_second(view, agents, second, clock.now)
                started = time.perf_counter()
                collected, state = view.collect(), view.save()
                saved = time.perf_counter()
                await history.store(FLEET, collected, state=state, positions={})
                stores.append(1e3 * (time.perf_counter() - saved))
                saves.append(1e3 * (saved - started))
                samples += collected
        sizes = [await _hour(path, clock, samples) for _ in range(HOURS)]
    queries = [_window_ms(view), *_call_ms(view)]
    return (
        *(agents, len(state) / 1024, percentile(saves, 0.5)),
        *(percentile(stores, 0.5), percentile(stores, 0.99), *queries),
        *(sizes[0], sizes[-1] - sizes[-2]),
    )


class _Time:
    """Wall time that goes on when told."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def _pass_second(view: FleetView, agents: int, second: int, at: float) -> None:
    """Let a tenth of the agents tell their health, and a hundredth end a task."""
    share = max(1, agents // 10)
    for number in range(share):
        name = f"worker-{(second * share + number) % agents + 1}"
        publish(
            view,
            "fleet.health",
            at=at,
            agent=name,
            status="idle",
            tasks_completed=second,
            interval_s=INTERVAL_S,
        )
    rows = [
        {
            "agent": f"worker-{number + 1}",
            "task_id": f"s{second}-{number}",
            "status": "SUCCEEDED",
            "ms": 10.0 + (37 * number) % 900,
            "at": at,
        }
        for number in range(max(1, agents // 100))
    ]
    publish(view, "fleet.task", at=at, tasks=rows)
    view.advance(at)


async def _hour(path: Path, clock: _Time, samples: list[Sample]) -> float:
    """Write one more hour, like what was measured; return the file's size in MiB."""
    by_second: dict[int, list[Sample]] = {}
    for sample in samples:
        by_second.setdefault(sample.second, []).append(sample)
    pattern = list(by_second.values())
    async with History(path, wall=clock) as history:
        for _ in range(60):
            first = int(clock.now)
            minute = [
                replace(sample, second=first + offset)
                for offset in range(MINUTE_S)
                for sample in pattern[(first + offset) % len(pattern)]
            ]
            clock.now += MINUTE_S
            await history.store(FLEET, minute, state=b"", positions={})
    size = await asyncio.to_thread(path.stat)
    return size.st_size / 1024 / 1024


def _window_ms(view: FleetView) -> float:
    query = AgentQuery(sort="-polo", offset=50, limit=100)
    return percentile(times_ms(lambda: view.agents(query), CALLS), 0.5)


def _call_ms(view: FleetView) -> list[float]:
    return [
        percentile(times_ms(call, CALLS), 0.5) for call in (view.figures, view.tags)
    ]


def times_ms(call: Callable[[], object], count: int) -> list[float]:
    """Return how long each of some calls took."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return times


def kept_table(rows: list[tuple[Cell, ...]]) -> Table:
    """Return what :func:`keep` has found for some sizes."""
    columns = (
        *("agents", "state KiB", "state made ms", "stored p50 ms", "stored p99 ms"),
        *("100 rows ms", "figures ms", "tags ms"),
        *("monitor.db MiB after 1 h", "MiB for the 4th hour"),
    )
    note = (
        "In one program without a network. In a second a tenth of the agents tell their"
        f" health and a hundredth end a task; they have {len(TAGS)} tags. Stored: rows"
        " of the second and the whole state, in one transaction. The hours are"
        f" calculated: the seconds that were measured are written again for {HOURS} h"
        " of made time, and the file is looked at, whose single seconds go after one"
        " hour. 100 rows: by polo. Medians where nothing else is said."
    )
    return Table("The view and the history of a monitor", columns, rows, note)
