"""Measured figures, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity, ours beside the official program's."""

    what: str
    unit: str
    pilotfleet: float
    official: float | None
    """None where the official programs cannot do the job."""
    method: str


def table(figures: list[Figure]) -> str:
    """Return the figures as an aligned text table."""
    rows = [("figure", "unit", "pilotfleet", "official 1.18.0")]
    rows += [
        (
            figure.what,
            figure.unit,
            _number(figure.pilotfleet),
            "not offered" if figure.official is None else _number(figure.official),
        )
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{what:<{widths[0]}}  {unit:<{widths[1]}}  {ours:>{widths[2]}}"
        f"  {official:>{widths[3]}}"
        for what, unit, ours, official in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def save(figures: list[Figure]) -> Path:
    """Write the figures with the machine they were measured on."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "latest.json"
    content = {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cpus": os.cpu_count(),
            "processor": _processor(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "figures": [asdict(figure) for figure in figures],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
