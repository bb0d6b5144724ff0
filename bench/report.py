"""Measured figures: tables that print as text, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

RESULTS = Path(__file__).parent / "results"
"""Ignored by git: one file for each part, of its last run."""

Cell: TypeAlias = "str | int | float | None"
"""None where there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Table:
    """Some figures that were measured together."""

    title: str
    columns: tuple[str, ...]
    """With their units."""
    rows: list[tuple[Cell, ...]]
    note: str = ""
    """How it was measured, and what the official programs do of it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity, ours beside the official program's."""

    what: str
    unit: str
    pilotfleet: float
    official: float | None
    """None where the official programs cannot do the job."""
    method: str


def table_of(title: str, figures: list[Figure]) -> Table:
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
    return Table(title, columns, rows)


def as_text(table: Table) -> str:
    """Return a table with aligned columns."""
    rows = [table.columns, *(tuple(map(_text, row)) for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([table.title, "", *lines, *_note(table)])


def as_markdown(table: Table) -> str:
    """Return a table as it stands in the documentation."""
    rows = [table.columns, tuple("---" for _ in table.columns)]
    rows += [tuple(map(_text, row)) for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"**{table.title}**", "", *lines, *_note(table)])


def save(name: str, tables: list[Table], *, started: float, load: float) -> Path:
    """Write what a part has measured, with the machine it was measured on.

    Args:
        name: The part's; it has one file.
        tables: What was measured.
        started: Unix seconds.
        load: How many programs wanted a processor when it began.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "part": name,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "machine": {
            "cpus": os.cpu_count(),
            "processor": _processor(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load_before": round(load, 2),
        },
        "tables": [
            {
                "title": table.title,
                "columns": table.columns,
                "rows": [_record(table, row) for row in table.rows],
                "note": table.note,
            }
            for table in tables
        ],
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


def load(name: str) -> tuple[str, list[Table]]:
    """Return when and on what a part was measured last, and its tables.

    Raises:
        FileNotFoundError: It was never measured here.
    """
    content = json.loads((RESULTS / f"{name}.json").read_text())
    tables = [
        Table(
            table["title"],
            tuple(table["columns"]),
            [
                tuple(row[column] for column in table["columns"])
                for row in table["rows"]
            ],
            table["note"],
        )
        for table in content["tables"]
    ]
    machine = content["machine"]
    measured = (
        f"Measured on {content['measured_at'][:10]}: {machine['cpus']} cores of"
        f" {machine['processor']}, Linux {machine['kernel']}, Python"
        f" {machine['python']}, loopback; load average {machine['load_before']} before."
    )
    return measured, tables


def _record(table: Table, row: tuple[Cell, ...]) -> dict[str, Any]:
    return dict(zip(table.columns, row, strict=True))


def _note(table: Table) -> list[str]:
    return ["", table.note] if table.note else []


def _text(value: Cell) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        case int():
            return f"{value:,}"
    return value


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
