"""Print the matrix: ``python -m tests.interop.matrix [--json] [--row NAME]…``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from tests.interop.matrix.catalogue import ROWS
from tests.interop.matrix.columns import Column
from tests.interop.matrix.rows import Verdict, evaluate_all
from tests.interop.matrix.worlds import Stages

if TYPE_CHECKING:
    from tests.interop.matrix.rows import Cell, Row

HEADINGS: Final = {
    Column.OUR_DAEMON: "our daemon",
    Column.OUR_CLIENT: "our client",
    Column.TUNNEL: "tunnel",
    Column.OFFICIAL: "rendezvous",
}
CELL_WIDTH: Final = 12


def main() -> int:
    """Run the chosen rows; return 1 if a cell failed."""
    options = _options()
    width = max(map(len, ROWS)) + 2
    if not options.json:
        _print_heading(width)
    began = time.monotonic()
    results: dict[str, dict[Column, Cell]] = {}
    with Stages() as stages:
        rows = [ROWS[name] for name in options.row]
        _show_progress(f"starting, {len(rows)} rows")
        for row, cells, seconds in evaluate_all(rows, stages):
            results[row.name] = cells
            _show_progress("")
            if not options.json:
                _print_row(row, cells, width, seconds)
            _show_progress(f"{len(results)} of {len(rows)} rows")
        _show_progress("")
    if options.json:
        say(json.dumps(_as_json(results), indent=2))
    else:
        _print_end(results, time.monotonic() - began)
    return int(_count(results, Verdict.FAIL) > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="interop", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--row", action="append", choices=ROWS, metavar="NAME", help="run this row only"
    )
    parser.add_argument("--list", action="store_true", help="print the names of rows")
    options = parser.parse_args()
    if options.list:
        say("\n".join(ROWS))
        raise SystemExit(0)
    options.row = options.row or list(ROWS)
    return options


def _print_heading(width: int) -> None:
    for column, heading in HEADINGS.items():
        say(f"{heading:<{CELL_WIDTH}}{column.value}")
    say()
    cells = "".join(f"{heading:<{CELL_WIDTH}}" for heading in HEADINGS.values())
    say(f"{'feature':<{width}}{cells}".rstrip())


def _print_row(row: Row, cells: dict[Column, Cell], width: int, seconds: float) -> None:
    verdicts = "".join(f"{cells[c].verdict:<{CELL_WIDTH}}" for c in HEADINGS)
    say(f"{row.name:<{width}}{verdicts}{seconds:4.1f} s")
    # The reason follows below, so that the table stays narrow.
    reasons: dict[str, list[str]] = {}
    for column, heading in HEADINGS.items():
        for reason in cells[column].reasons:
            reasons.setdefault(f"{cells[column].verdict}: {reason}", []).append(heading)
    for reason, headings in reasons.items():
        say(f"    {', '.join(headings)} {reason}")


def _print_end(results: dict[str, dict[Column, Cell]], seconds: float) -> None:
    counts = ", ".join(f"{_count(results, v)} {v.value.lower()}" for v in Verdict)
    say(f"\n{len(results)} rows, {counts}; {seconds:.0f} s")


def _as_json(results: dict[str, dict[Column, Cell]]) -> dict[str, Any]:
    return {
        "rows": [
            {
                "feature": name,
                "cells": {
                    column.name.lower(): {
                        "verdict": cell.verdict.value.lower(),
                        "reasons": list(cell.reasons),
                    }
                    for column, cell in cells.items()
                },
            }
            for name, cells in results.items()
        ],
        "totals": {v.value.lower(): _count(results, v) for v in Verdict},
    }


def _count(results: dict[str, dict[Column, Cell]], verdict: Verdict) -> int:
    return sum(
        cell.verdict is verdict for cells in results.values() for cell in cells.values()
    )


def say(line: str = "") -> None:
    """Print a line at once, so that a pipe shows rows as they are decided."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _show_progress(text: str) -> None:
    """Show what runs on a terminal; a pipe gets the rows only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
