"""Tasks per second of a hub and its workers, end to end, and what they cost.

Each program's processor time shows where a task's cost lies, whatever else the machine
does; tasks per second only means something on a machine that does nothing else.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import uvloop

from bench.fleets import running, spec_of
from bench.processmemory import cpu_seconds, tree_of
from bench.report import Table, Target
from pilotfleet.fleet.spec import FleetSpec

if TYPE_CHECKING:
    from bench.fleets import BenchFleet, Measured
    from bench.options import Options
    from bench.report import Cell

WORKERS = (100, 1_000)
QUICK_WORKERS = (10,)
TASKS = {"function": 10_000, "cat": 3_000}
WORK = {
    "function": {"call": "bench.work:echo", "exec": ""},
    "cat": {"exec": "cat"},
}
PROGRAMS = ("controller", "rendezvous", "hub", "groups", "runners")
KEY_WORKERS, KEY_WORK = 1_000, "function"
"""What the design's table of numbers asks for."""


@dataclass(frozen=True, slots=True)
class _Run:
    """A batch of tasks that a fleet has done."""

    workers: int
    work: str
    batch: Measured
    cpu_s: dict[str, float]
    """Of each kind of program."""


def measure(options: Options) -> list[Table]:
    """Measure a hub with each number of workers and each kind of work."""
    runs: list[_Run] = []
    for workers in QUICK_WORKERS if options.quick else WORKERS:
        print(f"  hub and {workers} workers", file=sys.stderr, flush=True)
        runs += uvloop.run(_measure(workers, options))
    return [_table(runs)]


async def _measure(workers: int, options: Options) -> list[_Run]:
    runs = []
    first, *others = WORK
    spec = spec_of("hub-and-spoke", workers, work=WORK[first])
    async with running(spec) as fleet:
        runs.append(await _run(fleet, workers, first, options))
        for work in others:
            spec = spec_of("hub-and-spoke", workers, work=WORK[work])
            changed = msgspec.convert(spec, FleetSpec)
            await fleet.control.rollout(batch=workers, spec=changed)
            runs.append(await _run(fleet, workers, work, options))
    return runs


async def _run(fleet: BenchFleet, workers: int, work: str, options: Options) -> _Run:
    # One for each worker: tunnels are made on the way.
    await fleet.do(workers)
    before = await _cpu_by_program(fleet)
    batch = await fleet.do(options.scaled(TASKS[work]))
    after = await _cpu_by_program(fleet)
    used = {name: after[name] - before.get(name, 0.0) for name in PROGRAMS}
    return _Run(workers, work, batch, used)


async def _cpu_by_program(fleet: BenchFleet) -> dict[str, float]:
    status = await fleet.control.status()
    # The other programs are children of the controller.
    used: dict[str, float] = {"controller": cpu_seconds(status["pid"])}
    for member in status["members"]:
        # Commands that a runner started count as its own.
        pids = tree_of(member["pid"]) if member["pid"] else []
        kind = _kind(str(member["name"]))
        used[kind] = used.get(kind, 0.0) + cpu_seconds(*pids)
    return used


def _kind(member: str) -> str:
    name = member.partition("-")[0]
    return {"group": "groups", "runner": "runners"}.get(name, name)


def _table(runs: list[_Run]) -> Table:
    columns = (
        *("workers", "work", "tasks", "tasks/s", "CPU ms per task"),
        *PROGRAMS,
    )
    rows: list[tuple[Cell, ...]] = [
        (
            *(run.workers, run.work, run.batch.tasks),
            *(run.batch.per_s, run.batch.cpu_ms),
            *(1000 * run.cpu_s[name] / run.batch.tasks for name in PROGRAMS),
        )
        for run in runs
    ]
    note = (
        "All tasks are submitted at once to `pilotctl fleet up`: tasks/s runs from"
        " there to the last result at the client. CPU is that of all programs of the"
        " fleet and their commands; the columns after it divide it among the"
        " controller (orchestrator and journal), the rendezvous (which counts"
        " receipts), the hub's daemon, the workers' daemons (200 agents each) and the"
        " worker programs. *function*: a Python coroutine function; *cat*: a process"
        " for each task. Durable on both sides, polo on, checked results. The official"
        " 1.18.0 programs have no tasks."
    )
    return Table("Tasks of a hub and its workers", columns, rows, note, _targets(runs))


def _targets(runs: list[_Run]) -> tuple[Target, ...]:
    return tuple(
        Target(
            key="tasks_1000_per_s",
            what="tasks, hub and 1,000 workers",
            unit="/s",
            value=run.batch.per_s,
            official=None,
            method=f"{run.batch.tasks} calls of a Python function, durable, polo on",
        )
        for run in runs
        if (run.workers, run.work) == (KEY_WORKERS, KEY_WORK)
    )
