"""The pauses before a process of a daemon is started again."""

from __future__ import annotations

import random

import pytest

from pilotfleet.node.processes.restarts import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    STEADY_S,
    Restarts,
)
from pilotfleet.testing.clock import FakeClock


class NoJitter(random.Random):
    """Takes nothing off."""

    def uniform(self, a: float, b: float) -> float:
        return b


def live(restarts: Restarts, clock: FakeClock, seconds: float) -> float:
    """Have the process run for a time; return the pause after its end."""
    restarts.begin()
    clock.advance(seconds)
    pause_s = restarts.pause_s()
    clock.advance(pause_s)
    return pause_s


def test_pauses_double_up_to_a_bound() -> None:
    clock = FakeClock(1000.0)
    restarts = Restarts(clock, rng=NoJitter())
    pauses = [live(restarts, clock, 1.0) for _ in range(8)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE_S, LONGEST_PAUSE_S)


def test_a_process_that_ran_steadily_starts_again_at_once() -> None:
    clock = FakeClock()
    restarts = Restarts(clock, rng=NoJitter())
    for _ in range(9):
        live(restarts, clock, 1.0)
    # The pause itself is no time in which it ran.
    assert live(restarts, clock, STEADY_S) == LONGEST_PAUSE_S
    assert live(restarts, clock, STEADY_S + 1) == FIRST_PAUSE_S
    assert live(restarts, clock, 1.0) == 2 * FIRST_PAUSE_S


@pytest.mark.parametrize("seed", range(20))
def test_jitter_takes_up_to_a_half_off(seed: int) -> None:
    clock = FakeClock()
    restarts = Restarts(clock, rng=random.Random(seed))
    for whole in (0.5, 1.0, 2.0, 4.0):
        assert whole / 2 <= live(restarts, clock, 0.1) <= whole
