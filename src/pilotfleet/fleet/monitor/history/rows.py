"""Samples folded into rows of seconds, minutes and hours, and how a row is written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeAlias

from pilotfleet.fleet.monitor.history.schema import (
    COUNTS,
    LEVELS,
    RATES,
    RESOLUTIONS,
    SECONDS,
    SUBJECT,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.fleet.monitor.history.schema import Resolution
    from pilotfleet.fleet.monitor.samples import Sample
    from pilotfleet.fleet.monitor.times import TimeHistogram

__all__ = ["Row", "fold_all", "upsert"]

_COLUMNS: Final = (
    "id",
    "at",
    "samples",
    "newest",
    *COUNTS,
    *LEVELS,
    "rated",
    *RATES,
    "times",
)
_LEVEL_PLACES: Final = {name: place for place, name in enumerate(LEVELS)}


class Row:
    """What is to be added to one row of a table."""

    __slots__ = ("counts", "levels", "newest", "rated", "rates", "samples", "times")

    def __init__(self) -> None:
        self.samples = 0
        self.newest = -1
        """The second that the levels are of."""
        self.counts = [0] * len(COUNTS)
        self.levels: list[float | None] = [None] * len(LEVELS)
        self.rated = 0
        """How many samples the rates are the sum of."""
        self.rates = [0.0] * len(RATES)
        self.times: list[TimeHistogram] = []

    def add(self, sample: Sample) -> None:
        """Add one second; they may come in any order."""
        self.samples += 1
        counts = self.counts
        counts[0] += sample.completed
        counts[1] += sample.failed
        counts[2] += sample.trust_linked
        counts[3] += sample.trust_revoked
        is_newest = sample.second >= self.newest
        for name, value in sample.gauges.items():
            if not math.isfinite(value):
                continue
            if (place := _LEVEL_PLACES.get(name)) is not None:
                if is_newest or self.levels[place] is None:
                    self.levels[place] = value
            elif name in RATES:
                self.rates[RATES.index(name)] += value
                # They always come together.
                self.rated += name == RATES[0]
        self.newest = max(self.newest, sample.second)
        if sample.times is not None and sample.times.count:
            self.times.append(sample.times)

    def values(self, subject: int, at: int, times: bytes | None) -> tuple[object, ...]:
        """Return the parameters of :func:`upsert`.

        Args:
            subject: Whose row.
            at: When it begins.
            times: All times of the row, those that it has already included.
        """
        return (
            subject * SUBJECT + at,
            at,
            self.samples,
            self.newest,
            *self.counts,
            *self.levels,
            self.rated,
            *self.rates,
            times,
        )


Rows: TypeAlias = dict[tuple[str, int], Row]
"""By tag and beginning."""


def fold(samples: Sequence[Sample], resolution: Resolution) -> Rows:
    """Return rows by tag and beginning."""
    rows: Rows = {}
    unit = resolution.unit_s
    for sample in samples:
        key = (sample.tag, sample.second - sample.second % unit)
        row = rows.get(key)
        if row is None:
            row = rows[key] = Row()
        row.add(sample)
    return rows


def fold_all(samples: Sequence[Sample]) -> dict[Resolution, Rows]:
    """Return the rows of all tables."""
    if len({sample.second for sample in samples}) > 1:
        return {resolution: fold(samples, resolution) for resolution in RESOLUTIONS}
    # One second, as it is most of the time, adds the same to each of the tables.
    seconds = fold(samples, SECONDS)
    return {
        resolution: {
            (tag, at - at % resolution.unit_s): row
            for (tag, at), row in seconds.items()
        }
        for resolution in RESOLUTIONS
    }


def upsert(resolution: Resolution) -> str:
    """Return the statement that adds a row's values to what the table has."""
    table = resolution.table
    sums = ("samples", *COUNTS, "rated", *RATES)
    changes = [f"{name} = {name} + excluded.{name}" for name in sums]
    # A second that comes late must not take the place of a newer level.
    changes += [
        f"{name} = CASE WHEN excluded.newest >= newest"
        f" THEN coalesce(excluded.{name}, {name})"
        f" ELSE coalesce({name}, excluded.{name}) END"
        for name in LEVELS
    ]
    changes.append("newest = max(newest, excluded.newest)")
    changes.append("times = coalesce(excluded.times, times)")
    return (
        f"INSERT INTO {table} ({', '.join(_COLUMNS)})"
        f" VALUES ({', '.join('?' * len(_COLUMNS))})"
        f" ON CONFLICT (id) DO UPDATE SET {', '.join(changes)}"
    )
