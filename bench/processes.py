"""What processes cost: processor time and memory, from ``/proc``."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.fleet.support import children_of

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, or the sum of some."""

    processes: int
    rss_kib: float
    pss_kib: float
    """Pages that several share are divided among them."""


def family(pid: int) -> list[int]:
    """Return a process and everything below it."""
    return [pid, *children_of(pid)]


def cpu_s(pids: list[int]) -> float:
    """Return the processor time so far, that of ended children included."""
    total = 0
    for pid in pids:
        with suppress(*GONE):
            # Behind the name, which may hold spaces: utime, stime and the children's.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / TICKS_PER_S


def memory(pids: list[int]) -> Memory:
    """Return the memory of processes, all together."""
    count, sums = 0, {"Rss:": 0.0, "Pss:": 0.0}
    for pid in pids:
        with suppress(*GONE):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            count += 1
            for line in text.splitlines()[1:]:
                words = line.split()
                if words[0] in sums:
                    sums[words[0]] += float(words[1])
    return Memory(count, sums["Rss:"], sums["Pss:"])
