"""Histograms of task times."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.fleet.monitor.times import LONGEST_MS, SHORTEST_MS, TimeHistogram

TIMES = st.lists(st.floats(SHORTEST_MS, LONGEST_MS), max_size=50)


def histogram(times: list[float]) -> TimeHistogram:
    """Return a histogram of these times."""
    made = TimeHistogram()
    for ms in times:
        made.add(ms)
    return made


@given(TIMES, st.floats(0, 1))
def test_quantile_is_within_a_hundredth(times: list[float], share: float) -> None:
    found = histogram(times).quantile(share)
    if not times:
        assert found is None
        return
    exact = sorted(times)[max(1, math.ceil(share * len(times))) - 1]
    assert found == pytest.approx(exact, rel=0.01001)


@given(TIMES, TIMES)
def test_what_was_added_can_be_taken_away(one: list[float], other: list[float]) -> None:
    sum_of_both = histogram(one)
    sum_of_both.merge(histogram(other))
    assert sum_of_both.count == len(one) + len(other)
    sum_of_both.subtract(histogram(other))
    assert sum_of_both.count == len(one)
    for share in (0.0, 0.5, 1.0):
        assert sum_of_both.quantile(share) == histogram(one).quantile(share)
    assert sum_of_both.total_ms >= 0


@given(TIMES)
def test_bytes_are_read_back(times: list[float]) -> None:
    made = histogram(times)
    again = TimeHistogram.decode(made.encode())
    assert (again.count, again.total_ms) == (made.count, made.total_ms)
    assert again.encode() == made.encode()


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_sound(data: bytes) -> None:
    try:
        found = TimeHistogram.decode(data)
    except DecodeError:
        return
    assert found.count >= 0
    found.quantile(0.5)


@pytest.mark.parametrize("ms", [0.0, -1.0, -math.inf, math.nan])
def test_what_is_no_duration_counts_as_the_shortest(ms: float) -> None:
    assert histogram([ms]).quantile(1.0) == pytest.approx(SHORTEST_MS, rel=0.01001)


def test_cumulated_counts() -> None:
    made = histogram([1, 2, 3, 100, 5_000])
    assert list(made.cumulated((0.5, 2.5, 50, 1e6))) == [0, 2, 3, 5]
