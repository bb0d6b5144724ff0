"""Which rows an answer is made of, and what is made of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.monitor.history.history import History, Retention
from pilotfleet.fleet.monitor.history.schema import SUBJECT
from pilotfleet.fleet.monitor.history.series import MAX_POINTS, plan_series
from pilotfleet.fleet.monitor.source import SERIES
from tests.fleet.monitor.historysupport import NOON, Wall, sample

if TYPE_CHECKING:
    from pathlib import Path

MINUTE, HOUR, DAY = 60, 3600, 86_400


@pytest.mark.parametrize(
    ("back_s", "length_s", "points", "table", "step_s"),
    [
        (600, 600, 600, "seconds", 1),
        (600, 600, 300, "seconds", 2),
        (HOUR - 1, HOUR, 600, "seconds", 10),
        (HOUR, HOUR, 60, "minutes", MINUTE),
        (6 * HOUR, 6 * HOUR, 600, "minutes", MINUTE),
        (DAY, DAY, 600, "minutes", 5 * MINUTE),
        (7 * DAY, 7 * DAY, 600, "minutes", 30 * MINUTE),
        (30 * DAY, 30 * DAY, 600, "hours", 2 * HOUR),
        (400 * DAY, 400 * DAY, 600, "hours", DAY),
        # Of long ago there are no finer rows, however short the time is.
        (2 * HOUR, 100, 600, "minutes", MINUTE),
        (30 * DAY, 100, 600, "hours", HOUR),
        (400 * DAY, 400 * DAY, 2, "hours", 400 * DAY),
    ],
)
def test_finest_resolution_that_is_kept_and_fits(
    back_s: int, length_s: int, points: int, table: str, step_s: int
) -> None:
    start = float(NOON - back_s)
    plan = plan_series(
        ["tunnels"],
        start=start,
        end=start + length_s,
        points=points,
        now=NOON,
        retention=Retention(),
    )
    assert plan.resolution.table == table
    assert plan.steps <= points
    assert plan.step_s == step_s


def test_times_of_a_long_time_come_from_hours() -> None:
    for metrics, step_s in ((["tunnels"], 1800), (["tunnels", "p50_ms"], HOUR)):
        plan = plan_series(
            metrics,
            start=NOON - 7 * DAY,
            end=NOON,
            points=600,
            now=NOON,
            retention=Retention(),
        )
        assert plan.step_s == step_s


@given(
    start=st.floats(0, 3.9e9),
    length=st.floats(0.001, 3.9e9),
    points=st.integers(2, 20_000),
    now=st.floats(0, 4e9),
)
def test_every_time_has_a_plan(
    start: float, length: float, points: int, now: float
) -> None:
    end = min(start + length, 4e9)
    plan = plan_series(
        SERIES, start=start, end=end, points=points, now=now, retention=Retention()
    )
    assert 1 <= plan.steps <= min(points, MAX_POINTS)
    assert plan.first <= start < plan.first + plan.step_s
    assert plan.end - plan.step_s < end <= plan.end
    assert plan.step_s % plan.resolution.unit_s == 0
    assert plan.end < SUBJECT


@pytest.mark.parametrize(
    ("start", "end"),
    [(10.0, 10.0), (10.0, 5.0), (-1.0, 5.0), (math.nan, 5.0), (5.0, math.inf)],
)
async def test_impossible_times_are_refused(
    tmp_path: Path, start: float, end: float
) -> None:
    async with History(tmp_path / "m.db") as history:
        with pytest.raises(InvalidArgument, match="there is no time"):
            await history.series("f", ["tunnels"], start=start, end=end)


async def test_unknown_metrics_are_refused(tmp_path: Path) -> None:
    async with History(tmp_path / "m.db") as history:
        with pytest.raises(InvalidArgument, match="no metric 'at; DROP'") as caught:
            await history.series("f", ["at; DROP"], start=1, end=2)
        assert "tunnels" in (caught.value.hint or "")
        with pytest.raises(InvalidArgument, match="points"):
            await history.series("f", ["tunnels"], start=1, end=2, points=1)


async def test_nothing_is_none_everywhere(tmp_path: Path) -> None:
    async with History(tmp_path / "m.db", wall=Wall()) as history:
        series = await history.series("f", SERIES, start=NOON - 5, end=NOON)
        assert set(series.values) == set(SERIES)
        assert len(series.times) == 5
        assert set(series.values.values()) == {(None,) * 5}


async def test_values_of_each_kind(tmp_path: Path) -> None:
    wall = Wall(NOON + 120)
    async with History(tmp_path / "m.db", wall=wall) as history:
        samples = [
            sample(
                NOON + second,
                completed=3,
                failed=1,
                ms=[10] * 3 + [1000],
                linked=1,
                agents_alive=second,
                sent_per_s=second,
                received_per_s=2 * second,
            )
            for second in range(60)
        ]
        # A minute of which only the first 20 s are known.
        samples += [sample(NOON + 60 + second, completed=1) for second in range(20)]
        await history.store("f", samples, state=b"", positions={})
        series = await history.series(
            "f", SERIES, start=NOON, end=NOON + 180, points=10
        )
        assert series.resolution_s == 30
        series = await history.series("f", SERIES, start=NOON, end=NOON + 180, points=3)
    assert series.resolution_s == 60
    assert series.times == (NOON, NOON + 60, NOON + 120)
    values = series.values
    assert values["completed_per_minute"] == (180, 60, None)
    assert values["failed_per_minute"] == (60, 0, None)
    assert values["error_rate"] == (0.25, 0, None)
    assert values["trust_linked"] == (60, 0, None)
    assert values["agents_alive"] == (59, None, None)
    assert values["sent_per_s"] == (29.5, None, None)
    assert values["received_per_s"] == (59, None, None)
    assert values["p50_ms"][0] == pytest.approx(10, rel=0.01)
    assert values["p99_ms"][0] == pytest.approx(1000, rel=0.01)
    assert values["p50_ms"][1:] == (None, None)


async def test_fine_steps_count_the_last_minute(tmp_path: Path) -> None:
    wall = Wall(NOON + 300)
    async with History(tmp_path / "m.db", wall=wall) as history:
        samples = [
            sample(NOON + second, completed=int(second % 10 == 0))
            for second in range(240)
            if not 100 <= second < 103
        ]
        await history.store("f", samples, state=b"", positions={})
        metrics = ["completed_per_minute"]
        for step in (1, 2, 5):
            series = await history.series(
                "f", metrics, start=NOON + 90, end=NOON + 110, points=20 // step
            )
            assert series.resolution_s == step
            values = series.values["completed_per_minute"]
            # A step that is missing is a gap; what was before still counts.
            assert values.count(None) == {1: 3, 2: 1, 5: 0}[step]
            assert values[0] == 6
            assert {value for value in values if value is not None} <= {5, 6}
        start = await history.series("f", metrics, start=NOON, end=NOON + 30)
        assert start.values["completed_per_minute"][::10] == (1, 2, 3)


async def test_series_of_a_tag_is_its_own(tmp_path: Path) -> None:
    async with History(tmp_path / "m.db", wall=Wall()) as history:
        second = NOON - 1
        both = [sample(second, agents_alive=9), sample(second, "gpu", agents_alive=4)]
        for fleet in ("f", "g"):
            await history.store(fleet, both, state=b"", positions={})
        await history.store(
            "g", [sample(second, "gpu", agents_alive=5)], state=b"", positions={}
        )
        for fleet, tag, value in (("f", None, 9), ("f", "gpu", 4), ("g", "gpu", 5)):
            series = await history.series(
                fleet, ["agents_alive"], start=second, end=NOON, tag=tag
            )
            assert series.values["agents_alive"] == (value,)
