"""Measured figures: tables that print as text and as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Cell: TypeAlias = str | int | float | None
"""None where there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Target:
    """A measured figure that has a goal in the design's table of numbers."""

    key: str
    """Of ``bench.goals.GOALS``."""
    what: str
    unit: str
    value: float
    official: float | None
    """None where the official programs cannot do the job."""
    method: str
    """How it was measured, in a few words."""


@dataclass(frozen=True, slots=True)
class Table:
    """Some figures that were measured together."""

    title: str
    columns: tuple[str, ...]
    """With their units."""
    rows: list[tuple[Cell, ...]]
    note: str = ""
    """How it was measured, and what the official programs do of it."""
    targets: tuple[Target, ...] = ()
    """Those of the figures that have a goal."""

    def column(self, name: str) -> list[Cell]:
        """Return the cells of one column.

        Raises:
            ValueError: There is no such column.
        """
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity, ours beside the official program's."""

    what: str
    unit: str
    pilotfleet: float
    official: float | None
    """None where the official programs cannot do the job."""
    method: str


def table_of(
    title: str, figures: list[Figure], *, targets: tuple[Target, ...] = ()
) -> Table:
    """Return a table with a row for each figure."""
    rows: list[tuple[Cell, ...]] = [
        (
            figure.what,
            figure.unit,
            figure.pilotfleet,
            "not offered" if figure.official is None else figure.official,
            figure.method,
        )
        for figure in figures
    ]
    columns = ("figure", "unit", "pilotfleet", "official 1.18.0", "how")
    return Table(title, columns, rows, targets=targets)


def as_text(table: Table) -> str:
    """Return a table with aligned columns."""
    rows = [table.columns, *(tuple(map(cell_text, row)) for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([table.title, "", *lines, *_note(table)])


def as_markdown(table: Table) -> str:
    """Return a table as it stands in the documentation."""
    title = [f"**{table.title}**", ""] if table.title else []
    rows = [table.columns, tuple("---" for _ in table.columns)]
    rows += [tuple(map(cell_text, row)) for row in table.rows]
    lines = [f"| {' | '.join(map(_in_cell, row))} |" for row in rows]
    return "\n".join([*title, *lines, *_note(table)])


def cell_text(value: Cell) -> str:
    """Return a cell as it is read: three digits that count, thousands apart."""
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        case int():
            return f"{value:,}"
    return value


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _note(table: Table) -> list[str]:
    return ["", table.note] if table.note else []
