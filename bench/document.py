"""The generated parts of ``docs/benchmarks.md``, so that nobody pastes figures.

A part stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. What was not
measured yet, or failed the last time, stays as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bench import plots
from bench.goals import goals_table
from bench.machine import ROOT
from bench.parts import BY_NAME, PARTS
from bench.report import Table, as_markdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.saved import Latest, Run

PAGE = ROOT / "docs" / "benchmarks.md"
PICTURES = "../bench/results"
"""As seen from the page."""
BLOCK = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
START = "<!-- table: "


def filled(page: str, latest: Latest) -> str:
    """Return the page with the figures of a file of results.

    Raises:
        ValueError: It asks for something that there is not, or a mark has no end.
    """
    if len(BLOCK.findall(page)) != page.count(START):
        raise ValueError("a mark <!-- table: NAME --> has no <!-- end -->")

    def block(found: re.Match[str]) -> str:
        name, old = found.groups()
        return f"<!-- table: {name} -->\n{_block(name, latest) or old}<!-- end -->"

    return BLOCK.sub(block, page)


def of_run(run: Run) -> str:
    """Return everything that one part has measured."""
    return "\n\n".join([str(run), *map(as_markdown, run.tables)])


def _block(name: str, latest: Latest) -> str | None:
    """Return the text of a block; None if nothing was measured for it."""
    if name in BLOCKS:
        text = BLOCKS[name](latest)
    elif name in BY_NAME:
        run = latest.run_of(name)
        text = None if run is None else of_run(run)
    else:
        have = ", ".join([*BLOCKS, *BY_NAME])
        raise ValueError(f"no table {name}; have {have}")
    return f"\n{text}\n\n" if text else None


def _goals(latest: Latest) -> str:
    table = goals_table(latest.goals)
    return as_markdown(Table("", table.columns, table.rows))


def _machine(latest: Latest) -> str | None:
    machines: dict[str, list[str]] = {}
    for run in latest.runs:
        machines.setdefault(str(run.machine), []).append(run.part)
    if len(machines) < 2:
        return next((f"Measured on a {machine}." for machine in machines), None)
    lines = (f"* {', '.join(parts)}: {machine}." for machine, parts in machines.items())
    return "\n".join(lines)


def _parts(latest: Latest) -> str:
    rows: list[tuple[str | int | float | None, ...]] = []
    for part in PARTS:
        run = latest.run_of(part.name)
        took = f"{run.seconds:.0f} s" if run else f"about {part.seconds} s"
        rows.append((f"`{part.command}`", part.what, took))
    return as_markdown(Table("", ("command", "measures", "takes"), rows))


def _plots(latest: Latest) -> str | None:
    pictures = (
        f"![{plot.growth.title}]({PICTURES}/{plot.name}.png)\n\n*{plot.in_words}*"
        for plot in plots.plots_of(latest)
    )
    return "\n\n".join(pictures) or None


BLOCKS: dict[str, Callable[[Latest], str | None]] = {
    "goals": _goals,
    "machine": _machine,
    "parts": _parts,
    "plots": _plots,
}
"""Of all parts together; the others are called as the part is."""
