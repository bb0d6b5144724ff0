"""What tests of the history share."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.fleet.monitor.samples import Sample
from pilotfleet.fleet.monitor.times import TimeHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["NOON", "Wall", "query", "sample", "times"]

NOON: Final = 1_800_014_400
"""A full hour, and a full day but 12 hours."""


class Wall:
    """A clock that a test sets."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def times(durations: Iterable[float]) -> TimeHistogram:
    histogram = TimeHistogram()
    for ms in durations:
        histogram.add(ms)
    return histogram


def sample(
    second: int,
    tag: str = "",
    *,
    completed: int = 0,
    failed: int = 0,
    ms: Iterable[float] = (),
    linked: int = 0,
    **gauges: float,
) -> Sample:
    durations = list(ms)
    return Sample(
        second,
        tag,
        completed,
        failed,
        times(durations) if durations else None,
        gauges,
        trust_linked=linked,
    )


def query(path: Path, text: str) -> list[tuple[Any, ...]]:
    """Read a file that no history has open."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute(text).fetchall()
