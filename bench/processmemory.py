"""What processes cost: memory, processor time and open files, from ``/proc``."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.fleet.support import children_of

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
GONE = (FileNotFoundError, ProcessLookupError)
KIB = 1024
MIB = ("RSS MiB", "PSS MiB", "private MiB")
"""Columns of a table for what ``Memory.mib`` gives."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process or of several together, or a difference of two; in bytes."""

    rss: int
    """Resident: pages that processes share count in full in each of them."""
    pss: int
    """Proportional: such pages are divided among those that share them."""
    uss: int
    """Private (unique): what would be free again if the process ended."""

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss, self.uss + other.uss)

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.rss - other.rss, self.pss - other.pss, self.uss - other.uss)

    def kib_per(self, count: int) -> tuple[float, float, float]:
        """Return KiB for each of so many agents: resident, proportional, private."""
        share = 1 / (KIB * count)
        return self.rss * share, self.pss * share, self.uss * share

    @property
    def mib(self) -> tuple[float, float, float]:
        """MiB: resident, proportional, private."""
        return self.rss / KIB**2, self.pss / KIB**2, self.uss / KIB**2


def tree_of(pid: int) -> list[int]:
    """Return a process and everything below it."""
    return [pid, *children_of(pid)]


def memory_of(*pids: int) -> Memory:
    """Return the memory of processes, all together; those that have ended have none.

    Raises:
        ProcessLookupError: None of them is there, so a zero would be no figure.
    """
    total, found = Memory(0, 0, 0), False
    for pid in pids:
        with suppress(*GONE):
            total += _parsed(Path(f"/proc/{pid}/smaps_rollup").read_text())
            found = True
    if not found:
        raise ProcessLookupError(f"no process {pids} is there to measure")
    return total


def cpu_seconds(*pids: int) -> float:
    """Return the processor time so far, that of ended children included."""
    total = 0
    for pid in pids:
        with suppress(*GONE):
            # Behind the name, which may hold spaces: utime, stime and the children's.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / TICKS_PER_S


def open_files(pid: int) -> int:
    """Return how many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def _parsed(rollup: str) -> Memory:
    """Return the sums of ``smaps_rollup``, whose first line is an address range."""
    kib = {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in rollup.splitlines()[1:])
    }
    private = kib["Private_Clean"] + kib["Private_Dirty"] + kib["Private_Hugetlb"]
    return Memory(kib["Rss"] * KIB, kib["Pss"] * KIB, private * KIB)
