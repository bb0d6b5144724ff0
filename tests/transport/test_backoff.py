"""How long to wait before something is tried again."""

from __future__ import annotations

import random

import pytest

from pilotfleet.transport.backoff import backoff_s


@pytest.mark.parametrize(
    ("count", "longest"),
    [(0, 0.5), (1, 0.5), (2, 1.0), (4, 4.0), (7, 30.0), (9**9, 30)],
)
def test_pause_doubles_up_to_the_longest_and_loses_up_to_a_half(
    count: int, longest: float
) -> None:
    rng = random.Random(count)
    pauses = [
        backoff_s(count, first_s=0.5, longest_s=30.0, rng=rng) for _ in range(500)
    ]
    assert longest / 2 <= min(pauses) < 0.55 * longest
    assert 0.95 * longest < max(pauses) <= longest
