"""The pauses of a client are bounded, spread and grow as they should."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.client import pacing
from pilotfleet.protocol.grid import GRID_S

RNG = random.Random(1)


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        ({"error": "later", "retry_after": 2.5}, 2.5),
        ({"error": "later", "retry_after": 1}, 1.0),
        ({"error": "later", "retry_after": 1e9}, pacing.MAX_DEFERRAL_S),
        # No float can hold it, and JSON can say it.
        ({"error": "later", "retry_after": 10**400}, pacing.MAX_DEFERRAL_S),
        ({"error": "later", "retry_after": -(10**400)}, 0.0),
        ({"error": "later", "retry_after": -1}, 0.0),
        ({"error": "later", "retry_after": 1e-300}, pacing.MIN_DEFERRAL_S),
        ({"error": "later", "retry_after": "2"}, 0.0),
        ({"error": "no"}, 0.0),
        ({"type": "register_ok", "retry_after": 2}, 0.0),
    ],
)
def test_only_a_refusal_with_a_time_is_waited_for(
    reply: dict[str, object], seconds: float
) -> None:
    assert pacing.deferral_s(reply) == seconds


def test_nobody_comes_back_before_the_time_that_the_registry_named() -> None:
    pauses = [pacing.deferral_pause_s(2.0, RNG) for _ in range(1_000)]
    assert min(pauses) >= 2.0
    assert max(pauses) <= 3.0
    assert max(pauses) - min(pauses) > 0.5


def test_dials_come_apart_and_their_pauses_grow_to_a_bound() -> None:
    for failures, middle in [(1, 0.5), (2, 1.0), (5, 8.0), (9, 10.0)]:
        pauses = [
            pacing.dial_pause_s(failures, first_s=0.5, longest_s=10.0, rng=RNG)
            for _ in range(200)
        ]
        assert middle * 0.75 <= min(pauses) < middle < max(pauses) <= middle * 1.25


def test_a_refused_registration_waits_longer_each_time() -> None:
    pause, waits = pacing.REGISTER_PAUSE_S, []
    for _ in range(12):
        wait, pause = pacing.register_pause_s(pause, RNG)
        waits.append(wait)
    assert waits[:9] == sorted(waits[:9])
    assert pause == pacing.MAX_PAUSE_S
    assert max(waits) <= 1.5 * pacing.MAX_PAUSE_S


@given(now=st.floats(0, 1e7), keepalive_s=st.floats(1, 3600))
def test_heartbeats_are_due_on_the_grid_and_never_early(
    now: float, keepalive_s: float
) -> None:
    due = pacing.beat_due(now, keepalive_s)
    assert due % GRID_S == 0
    assert now + keepalive_s <= due <= now + keepalive_s + GRID_S + 1e-6


def test_agents_that_wait_for_a_registry_come_back_one_after_the_other() -> None:
    until = pacing.down_until(100.0, 30.0)
    assert until == 102.0
    times = sorted(100.0 + pacing.return_s(100.0, until, RNG) for _ in range(1_000))
    assert times[0] >= until
    assert times[-1] <= until + pacing.RETURN_SPREAD_S
    # No tenth of a second has more than some of them.
    busiest = max(sum(1 for t in times if at <= t < at + 0.1) for at in times)
    assert busiest < 60
