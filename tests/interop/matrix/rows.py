"""What a row is, and how its four cells are decided."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tests.interop.matrix.allowed import is_allowed, varies
from tests.interop.matrix.columns import DIRECTIONS, Column, Maker
from tests.interop.matrix.shapes import differences
from tests.interop.matrix.worlds import PUBLIC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tests.interop.matrix.columns import Direction
    from tests.interop.matrix.worlds import Outcome, Pair, Stage, Stages

__all__ = ["REGISTERED", "Cell", "Row", "Verdict", "evaluate", "evaluate_all", "row"]

NO_TUNNEL: Final = "nothing crosses a tunnel"


class Verdict(StrEnum):
    """What a cell says."""

    PASS = "pass"
    FAIL = "FAIL"
    NOT_APPLICABLE = "n/a"


@dataclass(frozen=True, slots=True)
class Cell:
    """One answer, with the differences found or the reason why it has none."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One feature and the scenario that shows it."""

    name: str
    run: Callable[[Pair], None]
    stage: Stage
    fresh: bool
    """Whether it changes its nodes for good and so needs a world of its own."""
    not_applicable: Mapping[Column, str]
    compared: bool
    """Whether the official pair's outcomes are the reference."""


@dataclass(slots=True)
class Run:
    """What one direction of a row gave."""

    outcomes: list[Outcome] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def has_stalled(self) -> bool:
        """Whether a command was still running when its time was up."""
        values = (outcome.value for outcome in self.outcomes)
        return any(
            isinstance(value, dict) and value.get("exit") == -signal.SIGKILL
            for value in values
        )


REGISTERED: Final[dict[str, Row]] = {}
"""All rows by name, as their modules were imported."""


def row(
    name: str,
    *,
    stage: Stage = PUBLIC,
    fresh: bool = False,
    local: bool = False,
    not_applicable: Mapping[Column, str] | None = None,
    compared: bool = True,
) -> Callable[[Callable[[Pair], None]], Callable[[Pair], None]]:
    """Make a function a row of the matrix; ``local`` rows involve no far end."""

    def register(run: Callable[[Pair], None]) -> Callable[[Pair], None]:
        reasons = dict(not_applicable or {})
        if local:
            reasons[Column.TUNNEL] = NO_TUNNEL
        if name in REGISTERED:
            raise ValueError(f"two rows are called {name!r}")
        REGISTERED[name] = Row(name, run, stage, fresh, reasons, compared)
        return run

    return register


def evaluate(row: Row, stages: Stages) -> dict[Column, Cell]:
    """Run a row in all its directions at the same time and decide its cells."""
    directions = [d for d in DIRECTIONS if d.column not in row.not_applicable]
    opened = directions if row.fresh else DIRECTIONS
    with stages.pairs(row.stage, opened, fresh=row.fresh) as pairs:
        started = {
            direction: stages.workers.submit(_run, row, pairs[direction.name])
            for direction in directions
        }
        runs = {direction: future.result() for direction, future in started.items()}
    reference = runs.get(DIRECTIONS[0]) if row.compared else None
    return {column: _cell(row, column, runs, reference) for column in Column}


def evaluate_all(
    rows: Iterable[Row], stages: Stages
) -> Iterator[tuple[Row, dict[Column, Cell], float]]:
    """Yield each row in order with its cells and the seconds it took.

    Two rows run at the same time: one that shares its nodes with others, one with
    nodes of its own. Both mostly wait.
    """
    with ThreadPoolExecutor(1) as sharing, ThreadPoolExecutor(1) as alone:
        started = [
            (row, (alone if row.fresh else sharing).submit(_timed, row, stages))
            for row in rows
        ]
        try:
            for row, future in started:
                yield row, *future.result()
        finally:
            sharing.shutdown(wait=False, cancel_futures=True)
            alone.shutdown(wait=False, cancel_futures=True)


def _timed(row: Row, stages: Stages) -> tuple[dict[Column, Cell], float]:
    started = time.monotonic()
    cells = evaluate(row, stages)
    return cells, time.monotonic() - started


def _run(row: Row, pair: Pair) -> Run:
    if pair.broken:
        return Run(problems=[pair.broken])
    run = _attempt(row, pair)
    # A stream between two official daemons may stand still for ever (wire.md section
    # 19), whoever their clients are: that says nothing of ours.
    is_theirs = {pair.direction.near.daemon, pair.direction.far.daemon} == {
        Maker.OFFICIAL
    }
    return _attempt(row, pair) if is_theirs and run.has_stalled else run


def _attempt(row: Row, pair: Pair) -> Run:
    pair.near.empty_mail()
    pair.far.empty_mail()
    try:
        row.run(pair)
    except Exception as error:  # A row may break off anywhere: that is its finding.
        pair.problems.append(f"broke off: {type(error).__name__}: {error}"[:600])
    return Run(*pair.take())


def _cell(
    row: Row, column: Column, runs: Mapping[Direction, Run], reference: Run | None
) -> Cell:
    if column in row.not_applicable:
        return Cell(Verdict.NOT_APPLICABLE, (row.not_applicable[column],))
    reasons: list[str] = []
    for direction, run in runs.items():
        if direction.column is not column:
            continue
        prefix = f"{direction.name}: " if column is Column.TUNNEL else ""
        found = [*run.problems]
        if reference is not None and run is not reference:
            found += _unlike(reference, run, direction)
        reasons += [f"{prefix}{reason}" for reason in found]
    return Cell(Verdict.FAIL if reasons else Verdict.PASS, tuple(reasons))


def _unlike(reference: Run, run: Run, direction: Direction) -> list[str]:
    """Return how the outcomes of a run differ from the reference's."""
    expected, found = ([o.label for o in r.outcomes] for r in (reference, run))
    if expected != found:
        return [f"steps {found}, not {expected}"]
    return [
        f"[{theirs.label}] {difference}"
        for theirs, its in zip(reference.outcomes, run.outcomes, strict=True)
        for difference in differences(
            theirs.value,
            its.value,
            varies=lambda path, label=theirs.label: varies(label, path),  # type: ignore[misc]
        )
        if not is_allowed(theirs.label, difference, direction)
    ]
