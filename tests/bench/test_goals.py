"""Goals are judged by what was measured, and by nothing else."""

from __future__ import annotations

import pytest

from bench.goals import BY_KEY, GOALS, goals_table, outcomes, unknown_keys, with_unit
from bench.parts import BY_NAME
from tests.bench.samples import target


@pytest.mark.parametrize(
    ("key", "value", "official", "is_reached"),
    [
        ("memory_idle_slope_kib", 16.0, 13_000.0, True),
        ("memory_idle_slope_kib", 16.1, 13_000.0, False),
        ("goodput_mb_s", 100.0, None, True),
        ("goodput_mb_s", 99.9, 20.0, False),
        # No less than the official pair of the same run.
        ("goodput_official_peer_mb_s", 21.0, 20.0, True),
        ("goodput_official_peer_mb_s", 19.0, 20.0, False),
        ("goodput_official_peer_mb_s", 19.0, None, None),
    ],
)
def test_figures_are_compared_with_their_goal(
    key: str, value: float, official: float | None, is_reached: bool | None
) -> None:
    (outcome,) = (o for o in outcomes([target(key, value, official)]) if o.key == key)
    assert outcome.is_reached is is_reached
    assert (outcome.value, outcome.official) == (value, official)


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    found = outcomes([])
    assert [outcome.key for outcome in found] == [goal.key for goal in GOALS]
    assert {outcome.is_reached for outcome in found} == {None}
    assert {outcome.value for outcome in found} == {None}


def test_goals_have_different_keys_and_a_part_that_measures_them() -> None:
    assert len(BY_KEY) == len(GOALS)
    assert {goal.part for goal in GOALS} <= set(BY_NAME)


def test_the_table_has_the_claim_beside_the_goal() -> None:
    measured = [
        target("memory_idle_slope_kib", 6.29, 13_037.0),
        target("rtt_ms", 0.5, 0.3),
    ]
    rows = {row[0]: row for row in goals_table(outcomes(measured)).rows}
    assert rows["one more idle agent, 1,000 to 10,000"][1:] == (
        *("13,037 KiB", "~8 MB", "≤ 16 KiB", "6.29 KiB", "yes", "made up"),
        "`python -m bench hosts`",
    )
    assert rows["echo round trip, small, median"][3:6] == ("≤ 0.4 ms", "0.5 ms", "no")
    assert rows["goodput to an official peer"][3] == "≥ official"
    assert rows["registry: lookups"][3:6] == ("≥ 25,000/s", "-", "-")


def test_keys_that_no_goal_has_are_found() -> None:
    assert unknown_keys([target("rtt_ms", 1), target("speed", 1)]) == ["speed"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(16.0, "KiB", "16 KiB"), (1.0, "", "1"), (123_456.7, "/s", "123,457/s")],
)
def test_figures_are_read_with_their_unit(value: float, unit: str, text: str) -> None:
    assert with_unit(value, unit) == text
