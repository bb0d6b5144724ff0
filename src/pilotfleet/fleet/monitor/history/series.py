"""Values over time out of the three tables of the history."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.fleet.monitor.figures import Series
from pilotfleet.fleet.monitor.history.schema import (
    COUNTS,
    HOURS,
    LEVELS,
    RATES,
    RESOLUTIONS,
)
from pilotfleet.fleet.monitor.source import SERIES
from pilotfleet.fleet.monitor.times import TimeHistogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.fleet.monitor.history.prune import Retention
    from pilotfleet.fleet.monitor.history.schema import Resolution

__all__ = ["Plan", "plan_series", "read_series"]

MIN_POINTS: Final = 2
MAX_POINTS: Final = 10_000
LATEST: Final = 4e9
"""The year 2096; later is a mistake. The last step may be twice as far, and is then
still before the rows of the next subject begin."""
MAX_HISTOGRAMS: Final = 1_500
"""Histograms that are read for one answer; with more, those of hours are taken."""
RATE_S: Final = 60
"""In finer steps, tasks per minute are those of the last minute, as in the figures."""
SURE_S: Final = 10
"""From fewer seconds of a step no more than this much is concluded on a minute."""
STEPS: Final = (
    *(1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10_800, 21_600, 43_200, 86_400),
)
"""Seconds; of the longest one any number."""
QUANTILES: Final = {"p50_ms": 0.50, "p95_ms": 0.95, "p99_ms": 0.99}
_PER_MINUTE: Final = {
    "completed_per_minute": "completed",
    "failed_per_minute": "failed",
}
_SUMS: Final = ("samples", *COUNTS)

_Slot: TypeAlias = dict[str, float | None]
"""One step: its sums, levels and rates, by column."""


class Reader(Protocol):
    """Reads rows of one subject."""

    def __call__(self, query: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a query; ``:subject`` is where its rows begin."""


class Plan(NamedTuple):
    """What is read for an answer."""

    resolution: Resolution
    step_s: int
    first: int
    """When the first step begins."""
    steps: int
    """How many steps."""

    @property
    def end(self) -> int:
        """When the last step is over."""
        return self.first + self.steps * self.step_s


def plan_series(
    metrics: Sequence[str],
    *,
    start: float,
    end: float,
    points: int,
    now: float,
    retention: Retention,
) -> Plan:
    """Choose the finest steps that fit the points and that a table has.

    Raises:
        InvalidArgument: There is no such metric, or no such time.
    """
    for metric in metrics:
        if metric not in SERIES:
            raise InvalidArgument(
                f"there is no metric {metric[:64]!r} in history",
                hint=f"use one of {', '.join(SERIES)}",
            )
    if not (0 <= start < end <= LATEST):
        raise InvalidArgument(
            f"there is no time from {start:g} to {end:g}",
            hint="give Unix seconds, the end after the start",
        )
    if points < MIN_POINTS:
        raise InvalidArgument(f"points: {points} is less than {MIN_POINTS}")
    points = min(points, MAX_POINTS)
    has_times = not QUANTILES.keys().isdisjoint(metrics)
    longest = STEPS[-1]
    # The first step may begin before the start: then one more is needed.
    days = [math.ceil((end - start) / n / longest) for n in (points, points - 1)]
    for step in (*STEPS, *(longest * number for number in days)):
        first = int(start // step) * step
        count = math.ceil((end - first) / step)
        if count > points:
            continue
        for resolution in reversed(RESOLUTIONS):
            if step % resolution.unit_s:
                continue
            is_kept = resolution is HOURS or start >= now - retention.of(resolution)
            rows = (end - start) / resolution.unit_s
            if is_kept and not (
                has_times and rows > MAX_HISTOGRAMS and resolution is not HOURS
            ):
                return Plan(resolution, step, first, count)
    raise AssertionError("hours are always there, and a step may be of any length")


def read_series(metrics: Sequence[str], plan: Plan, read: Reader) -> Series:
    """Read the rows of a plan and make values of them."""
    wanted = dict.fromkeys(metrics)
    slots = _read_slots(plan, read)
    times = _read_times(plan, read) if wanted.keys() & QUANTILES.keys() else {}
    begins = range(plan.first, plan.end, plan.step_s)
    return Series(
        resolution_s=plan.step_s,
        times=tuple(map(float, begins)),
        values={
            metric: _column(metric, begins, slots, times, plan.step_s)
            for metric in wanted
        },
    )


def _read_slots(plan: Plan, read: Reader) -> dict[int, _Slot]:
    sums = ", ".join(f"sum({name})" for name in _SUMS)
    rates = ", ".join(f"sum({name}) / sum(rated)" for name in RATES)
    # Beside a single max(), SQLite takes bare columns from the row that has it.
    query = (
        f"SELECT at - at % :step AS slot, max(at), {sums}, {', '.join(LEVELS)}, {rates}"
        f" FROM {plan.resolution.table}"
        " WHERE id >= :subject + :first AND id < :subject + :end GROUP BY slot"
    )
    # What the first minute of finer steps is counted from.
    first = plan.first - (RATE_S if plan.step_s < RATE_S else 0)
    values = {"step": plan.step_s, "first": first, "end": plan.end}
    names = (*_SUMS, *LEVELS, *RATES)
    return {
        row[0]: dict(zip(names, row[2:], strict=True)) for row in read(query, values)
    }


def _read_times(plan: Plan, read: Reader) -> dict[int, TimeHistogram]:
    query = (
        f"SELECT at - at % :step, times FROM {plan.resolution.table}"
        " WHERE id >= :subject + :first AND id < :subject + :end"
        " AND times IS NOT NULL"
    )
    values = {"step": plan.step_s, "first": plan.first, "end": plan.end}
    found: defaultdict[int, TimeHistogram] = defaultdict(TimeHistogram)
    for slot, content in read(query, values):
        try:
            found[slot].merge(TimeHistogram.decode(content))
        except DecodeError:
            # A damaged row costs its times, not the whole chart.
            continue
    return found


def _column(
    metric: str,
    begins: range,
    slots: dict[int, _Slot],
    times: dict[int, TimeHistogram],
    step_s: int,
) -> tuple[float | None, ...]:
    if metric in QUANTILES:
        share = QUANTILES[metric]
        return tuple(
            times[at].quantile(share) if at in times else None for at in begins
        )
    if metric in _PER_MINUTE:
        name = _PER_MINUTE[metric]
        if step_s < RATE_S:
            return _of_last_minute(name, begins, slots, step_s)
        return tuple(_per_minute(slots.get(at), name, step_s) for at in begins)
    return tuple(_value(metric, slots.get(at)) for at in begins)


def _value(metric: str, slot: _Slot | None) -> float | None:
    if slot is None:
        return None
    if metric != "error_rate":
        return slot[metric]
    failed = _sum(slot, "failed")
    ended = _sum(slot, "completed") + failed
    return failed / ended if ended else None


def _per_minute(slot: _Slot | None, name: str, step_s: int) -> float | None:
    """Return the rate over the seconds that are known: the last step still grows."""
    if slot is None:
        return None
    known_s = max(min(_sum(slot, "samples"), step_s), SURE_S)
    return _sum(slot, name) * 60 / known_s


def _of_last_minute(
    name: str, begins: range, slots: dict[int, _Slot], step_s: int
) -> tuple[float | None, ...]:
    before = range(begins.start - RATE_S + step_s, begins.start, step_s)
    total = sum(_sum(slots.get(at), name) for at in before)
    values: list[float | None] = []
    for at in begins:
        total += _sum(slots.get(at), name)
        values.append(total if at in slots else None)
        total -= _sum(slots.get(at - RATE_S + step_s), name)
    return tuple(values)


def _sum(slot: _Slot | None, name: str) -> float:
    return 0.0 if slot is None else float(slot[name] or 0)
