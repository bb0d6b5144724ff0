"""Run the benchmarks: all of them, or those named on the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench import memory, report, tasks, tunnel

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.report import Figure

BENCHMARKS: dict[str, Callable[[], list[Figure]]] = {
    "tasks": tasks.measure,
    "tunnel": tunnel.measure,
    "memory": memory.measure,
}


def main() -> None:
    """Measure, print and save."""
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        sys.exit(
            f"unknown benchmark {', '.join(unknown)}; have {', '.join(BENCHMARKS)}"
        )
    figures: list[Figure] = []
    for name in names:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        figures += BENCHMARKS[name]()
    path = report.save(figures)
    print(report.table(figures))
    print(f"\nsaved to {path.relative_to(report.RESULTS.parent.parent)}")


main()
