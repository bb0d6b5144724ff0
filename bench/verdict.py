"""What was found in a run of many agents, beside what had to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.hosting import Snapshot
    from bench.report import Cell

KIB = 1024
MIB = 1024**2

# Section 6 of the design.
IDLE_KIB = 16.0
"""Memory of an agent that has never done anything, its share of the host included."""
ACTIVE_KIB = 48.0
"""Of one with up to three tunnels."""
IDLE_CPU_PERCENT = 0.001
"""Of a core, for each agent."""

# Of our choosing.
MANY = 5_000
"""Fewer agents say nothing of what each costs: most of it is their host."""
GROWN_SHARE = 0.02
"""By this much memory may be larger after the last load than after the one before: an
allocator leaves gaps. A record that stays for each task would be more."""
WARM_TASKS = 20_000
"""After fewer, the database of tasks still fills its 8 MiB of pages in memory."""
SHARED_FILES = 100
"""Open files of the host itself: sockets for programs, databases, logs."""
SPARE = 5
"""Files and tasks of the moment, such as those of the connection that asks."""


@dataclass(frozen=True, slots=True)
class State:
    """What the process with the agents has at one moment."""

    when: str
    snapshot: Snapshot
    tasks: int
    """Of its event loop."""

    def row(self, agents: int, before: State | None) -> tuple[Cell, ...]:
        """Return the table's row; processor time is counted from ``before`` on."""
        cpu = None
        if before is not None:
            cpu = self.snapshot.cpu_percent_since(before.snapshot)
        rss, pss, uss = self.snapshot.memory.mib
        share = self.snapshot.memory.kib_per(agents)[0]
        return self.when, rss, pss, uss, share, cpu, self.snapshot.files, self.tasks


@dataclass(frozen=True, slots=True)
class Check:
    """Something that had to be, and what was."""

    what: str
    found: float
    wanted: str
    is_met: bool

    @property
    def row(self) -> tuple[Cell, ...]:
        """The row of the table."""
        return self.what, self.wanted, self.found, "yes" if self.is_met else "MISSED"


def all_of(what: str, found: int, wanted: int) -> Check:
    """Say whether it was all."""
    return Check(what, found, f"{wanted:,}", found == wanted)


def at_most(what: str, found: float, most: float) -> Check:
    """Say whether it was no more."""
    return Check(what, found, f"≤ {most:,.4g}", found <= most)


def of_states(
    states: Sequence[State],
    after_load: Sequence[State],
    *,
    agents: int,
    tasks: int,
) -> list[Check]:
    """Say what is to be thought of memory, processor, files and tasks.

    Args:
        states: All that were seen; the first is that of agents that did nothing.
        after_load: Those after each load, of which there are two or more.
        agents: How many there are.
        tasks: Of one load.
    """
    first, last = states[0], states[-1]
    before, after = (state.snapshot.memory.rss for state in after_load[-2:])
    # From the first load on until the next one they are idle.
    start, end = after_load[0], states[states.index(after_load[1]) - 1]
    cpu = end.snapshot.cpu_percent_since(start.snapshot)
    peak = max(state.snapshot.memory.kib_per(agents)[0] for state in states)
    idle = [
        at_most(
            "memory of an idle agent, KiB",
            *(first.snapshot.memory.kib_per(agents)[0], IDLE_KIB),
        ),
        at_most("memory of an agent at most, KiB", peak, ACTIVE_KIB),
        at_most(
            "processor of an idle agent after work, % of a core",
            *(cpu / agents, IDLE_CPU_PERCENT),
        ),
    ]
    grown = at_most(
        f"memory that the last {tasks:,} tasks have added, KiB",
        *((after - before) / KIB, before * GROWN_SHARE / KIB),
    )
    return [
        *(idle if agents >= MANY else []),
        *([grown] if tasks * (len(after_load) - 1) >= WARM_TASKS else []),
        at_most("open files", last.snapshot.files, agents + SHARED_FILES),
        at_most(
            "open files more than at the start",
            *(last.snapshot.files - first.snapshot.files, SPARE),
        ),
        at_most("tasks more than at the start", last.tasks - first.tasks, SPARE),
    ]


def table(checks: Sequence[Check]) -> Table:
    """Return the verdict: what had to be, what was, and whether it is met."""
    missed = [check.what for check in checks if not check.is_met]
    text = f"Missed: {'; '.join(missed)}." if missed else "All of it is met."
    columns = ("what", "had to be", "found", "met")
    return Table("Verdict", columns, [check.row for check in checks], text)
