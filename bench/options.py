"""What the command line says of all benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.saved import PARTIAL, RESULTS

if TYPE_CHECKING:
    from pathlib import Path

PATTERNS = ("hub-and-spoke", "mesh", "hierarchical")
WORKERS = (50, 200, 1_000)
QUICK_WORKERS = (6, 20)


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure."""

    quick: bool = False
    """Small sizes: shows that the benchmarks work, and nothing else."""
    patterns: tuple[str, ...] = PATTERNS
    workers: tuple[int, ...] = WORKERS

    @property
    def is_full(self) -> bool:
        """Whether the figures are those of the documentation."""
        return self == Options()

    @property
    def folder(self) -> Path:
        """Where the figures go: what is no full run does not replace one."""
        return RESULTS if self.is_full else PARTIAL

    @property
    def flags(self) -> tuple[str, ...]:
        """The command line that says the same."""
        if self.is_full:
            return ()
        patterns = (word for name in self.patterns for word in ("--pattern", name))
        workers = ",".join(map(str, self.workers))
        return (*(("--quick",) * self.quick), *patterns, "--workers", workers)

    def scaled(self, count: int) -> int:
        """Return a number of repetitions, a tenth of it where it is to be quick."""
        return max(1, count // 10) if self.quick else count
