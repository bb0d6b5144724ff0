"""What was measured, kept as JSON: a file for each part, and one of all parts.

``NAME.json`` is the last run of a part, ``latest.json`` the parts together with the
goals. ``docs/reference/benchmark-results.md`` describes both.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bench.goals import Outcome, goals_table, outcomes
from bench.machine import Machine, Source  # noqa: TC001 - msgspec reads the types
from bench.report import Table, Target, as_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RESULTS = Path(__file__).parent / "results"
"""In Git: the files of all parts together, from a whole run."""
PARTIAL = RESULTS / "partial"
"""Of runs that are no full ones: shows that all works, and nothing else."""
LATEST = "latest.json"
TEXT = "latest.txt"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Run:
    """One part that was measured, or failed."""

    part: str
    command: str
    started: float
    """Unix seconds."""
    seconds: float
    load_before: float
    """How many programs wanted a processor when it began."""
    source: Source
    machine: Machine
    tables: list[Table]
    error: str = ""
    """Why there are no tables."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """All figures that have a goal."""
        return tuple(target for table in self.tables for target in table.targets)

    @property
    def day(self) -> str:
        """When it was measured."""
        return time.strftime("%Y-%m-%d", time.gmtime(self.started))

    def __str__(self) -> str:
        what = "Failed" if self.error else "Measured"
        return (
            f"{what} on {self.day} {self.source}, in {self.seconds:.0f} s; load average"
            f" {self.load_before:.2f} before."
        )


@dataclass(frozen=True, slots=True)
class Latest:
    """All parts, each as it was measured last, and what became of the goals."""

    runs: list[Run]
    goals: list[Outcome]
    format: int = FORMAT

    def run_of(self, part: str) -> Run | None:
        """Return the run of a part, if there was any that did not fail."""
        found = (run for run in self.runs if run.part == part and not run.error)
        return next(found, None)


def save(folder: Path, run: Run) -> None:
    """Keep the run of a part."""
    _write(folder / f"{run.part}.json", run)


def load(folder: Path, part: str) -> Run | None:
    """Return the last run of a part; None if there is none."""
    try:
        return msgspec.json.decode((folder / f"{part}.json").read_bytes(), type=Run)
    except (FileNotFoundError, msgspec.ValidationError):
        # Files of before this format are no runs.
        return None


def check(tables: Iterable[Table]) -> None:
    """Check that figures are figures, for JSON has no others.

    Raises:
        ValueError: One is infinite, or no number.
    """
    for table in tables:
        cells = [cell for row in table.rows for cell in row]
        for figure in (*cells, *(target.value for target in table.targets)):
            if isinstance(figure, float) and not math.isfinite(figure):
                raise ValueError(f"{figure} is no figure, in table {table.title!r}")


def collect(folder: Path, parts: Iterable[str]) -> Latest:
    """Put the last runs of parts together, and keep that as JSON and as text."""
    runs = [run for part in parts if (run := load(folder, part)) is not None]
    targets = (target for run in runs for target in run.targets)
    latest = Latest(runs, outcomes(targets))
    _write(folder / LATEST, latest)
    (folder / TEXT).write_text("\n".join(_lines(latest)) + "\n")
    return latest


def load_latest(folder: Path) -> Latest:
    """Return what was put together last; nothing is measured if there is no file."""
    try:
        content = (folder / LATEST).read_bytes()
    except FileNotFoundError:
        return Latest([], outcomes(()))
    return msgspec.json.decode(content, type=Latest)


def _lines(latest: Latest) -> Iterator[str]:
    yield from (as_text(goals_table(latest.goals)), "")
    for machine in dict.fromkeys(str(run.machine) for run in latest.runs):
        yield f"Measured on a {machine}."
    for run in latest.runs:
        yield from ("", f"{run.part}: {run.command}", str(run))
        if run.error:
            yield run.error
        for table in run.tables:
            yield from ("", as_text(table))


def _write(path: Path, content: object) -> None:
    """Write all of it or nothing: a run may be interrupted at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    os.replace(new, path)
