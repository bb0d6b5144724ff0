"""Run the benchmarks: all of them, or those named on the command line.

``python -m bench table NAME`` prints what was measured last as Markdown.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from bench import (
    events,
    memory,
    mesh,
    monitor,
    pages,
    patterns,
    polo,
    recovery,
    report,
    tasks,
    tunnel,
)
from bench.options import PATTERNS, QUICK_WORKERS, WORKERS, Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.report import Figure, Table

TABLE = "table"


def _figures(
    title: str, measure: Callable[[], list[Figure]]
) -> Callable[[Options], list[Table]]:
    return lambda _: [report.table_of(title, measure())]


BENCHMARKS: dict[str, Callable[[Options], list[Table]]] = {
    "tasks": _figures("Tasks of a hub and 100 workers", tasks.measure),
    "tunnel": _figures("One stream between two daemons", tunnel.measure),
    "memory": _figures("Memory of an idle agent", memory.measure),
    "patterns": patterns.measure,
    "recovery": recovery.measure,
    "mesh": mesh.measure,
    "polo": polo.measure,
    "events": events.measure,
    "monitor": monitor.measure,
    "pages": pages.measure,
}


def main() -> None:
    """Measure, print and save; or print what was saved."""
    # By default it would leave the fleet that is measured running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = _parser().parse_args()
    unknown = sorted(set(words.names) - {TABLE, *BENCHMARKS})
    if unknown:
        have = ", ".join(BENCHMARKS)
        sys.exit(f"unknown benchmark {', '.join(unknown)}; have {have}")
    names = [name for name in words.names if name != TABLE] or list(BENCHMARKS)
    options = Options(
        quick=words.quick,
        patterns=tuple(words.pattern or PATTERNS),
        workers=words.workers or (QUICK_WORKERS if words.quick else WORKERS),
    )
    for name in names:
        if TABLE in words.names:
            _print_saved(name, options)
        else:
            _measure(name, options)


def _measure(name: str, options: Options) -> None:
    print(f"measuring {name} …", file=sys.stderr, flush=True)
    started, (load, _, _) = time.time(), os.getloadavg()
    tables = BENCHMARKS[name](options)
    path = report.save(_file(name, options), tables, started=started, load=load)
    for table in tables:
        print(report.as_text(table), end="\n\n")
    place = path.relative_to(report.RESULTS.parent.parent)
    print(f"{time.time() - started:.0f} s; saved to {place}\n", flush=True)


def _print_saved(name: str, options: Options) -> None:
    try:
        measured, tables = report.load(_file(name, options))
    except FileNotFoundError:
        print(f"{name} was not measured here yet", file=sys.stderr)
        return
    print(measured, *map(report.as_markdown, tables), sep="\n\n", end="\n\n")


def _file(name: str, options: Options) -> str:
    """Return the name of the file: what is no full run does not replace one."""
    return name if options.is_full else f"{name}.partial"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that all of it works"
    )
    parser.add_argument(
        "--pattern", action="append", choices=PATTERNS, help="patterns: only this one"
    )
    parser.add_argument(
        "--workers", type=_numbers, help="patterns: sizes, such as 50,200"
    )
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


main()
