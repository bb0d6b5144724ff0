"""Tasks per second, latency, start and memory of the three patterns."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import uvloop

from bench.fleets import percentile, running, spec_of
from bench.processmemory import KIB, MIB, memory_of
from bench.report import Table
from pilotfleet.fleet.spec import FleetSpec

if TYPE_CHECKING:
    from bench.fleets import BenchFleet, Measured, Steady
    from bench.options import Options
    from bench.processmemory import Memory
    from bench.report import Cell

COMMAND = {"exec": "cat"}
FUNCTION = {"call": "bench.work:echo", "exec": ""}
BATCH = 1_500
STEADY = 1_000
PER_WORKER = 2
"""More tasks than that where workers are many."""
SINGLE = 200
SHARES = (0.50, 0.95, 0.99)
PERCENTILES = ("p50 ms", "p95 ms", "p99 ms")
NO_TASKS = "The official 1.18.0 programs have no tasks."


@dataclass(frozen=True, slots=True)
class _Work:
    """What was measured of one kind of task."""

    first_s: float
    """One task for each worker."""
    batch: Measured
    steady: Steady
    """With one open task per worker."""
    single: Steady
    """With one open task."""


@dataclass(frozen=True, slots=True)
class _Size:
    """What was measured of one pattern with so many workers."""

    pattern: str
    workers: int
    start_s: float
    programs: int
    memory: Memory
    command: _Work
    function: _Work

    @property
    def key(self) -> tuple[Cell, ...]:
        """What its rows begin with."""
        return self.pattern, self.workers


def measure(options: Options) -> list[Table]:
    """Measure every pattern with every number of workers."""
    sizes = []
    for pattern in options.patterns:
        for workers in options.workers:
            print(f"  {pattern}, {workers} workers", file=sys.stderr, flush=True)
            sizes.append(uvloop.run(_measure(pattern, workers, options)))
    return [
        _works("a command (`cat`) for each", [(s, s.command) for s in sizes]),
        _works("a Python function, no process", [(s, s.function) for s in sizes]),
        _singles(sizes, options.scaled(SINGLE)),
        _starts(sizes),
    ]


async def _measure(pattern: str, workers: int, options: Options) -> _Size:
    async with running(spec_of(pattern, workers, work=COMMAND)) as fleet:
        command = await _work(fleet, workers, options)
        pids = await fleet.pids()
        memory = memory_of(*pids)
        # The same workers call a function from now on.
        spec = msgspec.convert(spec_of(pattern, workers, work=FUNCTION), FleetSpec)
        await fleet.control.rollout(batch=workers, spec=spec)
        function = await _work(fleet, workers, options)
    return _Size(
        pattern=pattern,
        workers=workers,
        start_s=fleet.start_s,
        programs=len(pids),
        memory=memory,
        command=command,
        function=function,
    )


async def _work(fleet: BenchFleet, workers: int, options: Options) -> _Work:
    more = PER_WORKER * workers
    first = await fleet.do(workers)
    return _Work(
        first_s=first.wall_s,
        single=await fleet.do_steadily(options.scaled(SINGLE), open_tasks=1),
        batch=await fleet.do(options.scaled(BATCH + more)),
        steady=await fleet.do_steadily(
            options.scaled(STEADY + more), open_tasks=workers
        ),
    )


def _works(what: str, measured: list[tuple[_Size, _Work]]) -> Table:
    """Return the table of many tasks at a time."""
    columns = (
        *("pattern", "workers", "tasks", "tasks/s", "CPU ms per task"),
        *("open per worker", "tasks/s at 1 open per worker", *PERCENTILES),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            *size.key,
            work.batch.tasks,
            work.batch.per_s,
            work.batch.cpu_ms,
            work.batch.open_per_worker,
            work.steady.per_s,
            *(percentile(work.steady.latencies_ms, share) for share in SHARES),
        )
        for size, work in measured
    ]
    note = (
        "First, all tasks are submitted at once to `pilotctl fleet up`: tasks/s runs"
        " from there to the last result, CPU is that of all programs of the fleet and"
        " their commands, and *open per worker* is what the agents had been given"
        " (median of samples). Then as many tasks are open as there are workers, a new"
        " one for each that is done: latency runs from a task's submission at the"
        " control socket to its result there. Durable on both sides, polo on, checked"
        f" results. {NO_TASKS}"
    )
    return Table(f"Many tasks: {what}", columns, rows, note)


def _singles(sizes: list[_Size], count: int) -> Table:
    names = [f"{work} {name}" for work in ("cat", "function") for name in PERCENTILES]
    rows: list[tuple[Cell, ...]] = [
        (
            *size.key,
            *(percentile(size.command.single.latencies_ms, s) for s in SHARES),
            *(percentile(size.function.single.latencies_ms, s) for s in SHARES),
        )
        for size in sizes
    ]
    note = (
        f"{count} tasks one after the other: one open task in the whole fleet. From its"
        f" submission at the control socket to its result there. {NO_TASKS}"
    )
    return Table("One task at a time", ("pattern", "workers", *names), rows, note)


def _starts(sizes: list[_Size]) -> Table:
    columns = (
        *("pattern", "workers", "start s", "first tasks s", "programs"),
        *(*MIB, "PSS KiB per worker"),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            *size.key,
            size.start_s,
            size.command.first_s,
            size.programs,
            *size.memory.mib,
            size.memory.pss / KIB / size.workers,
        )
        for size in sizes
    ]
    note = (
        "Start is `pilotctl fleet up`, from the command until all agents are registered"
        " and serve. First tasks: as many as there are workers, right after that;"
        " tunnels are made on the way. Memory of all programs after the tasks of"
        " `cat`: RSS counts shared pages in each program, PSS once, private not at all."
        " An official agent is a process of its own (see `hosts`)."
    )
    return Table("Start and memory", columns, rows, note)
