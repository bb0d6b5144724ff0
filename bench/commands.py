"""What one command costs, from the start of the program to its end."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from bench.fleets import percentile
from bench.report import Table, Target
from tests.support.programs import data_of, world

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping

    from bench.options import Options
    from bench.report import Cell

RUNS = 20
WARM_UP = 2
"""Runs that bring the program's files into memory."""
COMMANDS = ("info", "peers")
OURS, OFFICIAL = "pilotfleet", "official 1.18.0"


@dataclass(frozen=True, slots=True)
class _Times:
    """Of all runs of a command."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def row(self) -> tuple[Cell, ...]:
        return (
            *(median(self.wall_ms), percentile(self.wall_ms, 0.95)),
            median(self.cpu_ms),
        )


def measure(options: Options) -> list[Table]:
    """Run commands of both programs in turns, each against its own daemon."""
    runs = options.scaled(RUNS)
    with world() as net:
        net.start_rendezvous()
        net.start_daemon("a")
        net.start_official_daemon("official")

        def ours(command: str) -> subprocess.CompletedProcess[str]:
            return net.ctl("a", command)

        def official(command: str) -> subprocess.CompletedProcess[str]:
            return net.official_ctl("official", command)

        programs = {OURS: ours, OFFICIAL: official}
        found = {command: _in_turns(programs, command, runs) for command in COMMANDS}
    return [_table(found, runs)]


def _in_turns(
    programs: Mapping[str, Callable[[str], subprocess.CompletedProcess[str]]],
    command: str,
    runs: int,
) -> dict[str, _Times]:
    """Return the times; what else happens on the machine then happens to both."""
    times = {name: _Times() for name in programs}
    for number in range(WARM_UP + runs):
        for name, run in programs.items():
            used_s, started = _children_cpu_s(), time.perf_counter()
            result = run(command)
            wall_ms = 1000 * (time.perf_counter() - started)
            cpu_ms = 1000 * (_children_cpu_s() - used_s)
            data_of(result)
            if number >= WARM_UP:
                times[name].wall_ms.append(wall_ms)
                times[name].cpu_ms.append(cpu_ms)
    return times


def _children_cpu_s() -> float:
    """Return the processor time of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _table(found: dict[str, dict[str, _Times]], runs: int) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (f"`pilotctl {command}`", name, *times.row())
        for command, both in found.items()
        for name, times in both.items()
    ]
    info = found["info"]
    target = Target(
        *("info_ms", "`pilotctl info`, median", "ms"),
        *(median(info[OURS].wall_ms), median(info[OFFICIAL].wall_ms)),
        f"wall time of {runs} runs, the two programs in turns",
    )
    note = (
        f"{runs} runs of each with `--json`, in turns, after {WARM_UP} that do not"
        " count. CPU: of the command alone, without the daemon that answers it."
    )
    columns = ("command", "program", "p50 ms", "p95 ms", "CPU ms")
    return Table("Commands", columns, rows, note, (target,))
