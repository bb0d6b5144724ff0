"""When a task is tried again, and after what pause."""

from __future__ import annotations

import random

import pytest

from pilotfleet.fleet.retry import AttemptEnd, RetryPolicy


@pytest.mark.parametrize(
    ("end", "attempts", "failed", "retry_failed", "again"),
    [
        (AttemptEnd.SUCCEEDED, 1, 0, 9, False),
        (AttemptEnd.LOST, 1, 0, 0, True),
        (AttemptEnd.LOST, 4, 0, 0, True),
        (AttemptEnd.LOST, 5, 0, 0, False),
        (AttemptEnd.FAILED, 1, 1, 0, False),
        (AttemptEnd.FAILED, 1, 1, 1, True),
        (AttemptEnd.FAILED, 2, 2, 1, False),
        (AttemptEnd.FAILED, 5, 1, 9, False),
        (AttemptEnd.LOST, 2, 1, 0, True),
    ],
)
def test_another_attempt(
    end: AttemptEnd, attempts: int, failed: int, retry_failed: int, again: bool
) -> None:
    policy = RetryPolicy(retry_failed=retry_failed)
    assert policy.allows_another(end, attempts=attempts, failed=failed) is again


def test_pauses_double_up_to_the_longest_with_jitter_of_a_half() -> None:
    policy = RetryPolicy(first_pause_s=1.0, longest_pause_s=8.0)
    rng = random.Random(1)
    for attempts, full in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 8.0), (999, 8)):
        pauses = [policy.pause_s(attempts, rng) for _ in range(50)]
        assert full / 2 <= min(pauses) < max(pauses) <= full


def test_a_worker_rests_longer_with_each_loss() -> None:
    policy = RetryPolicy(first_rest_s=1.0, longest_rest_s=60.0)
    rng = random.Random(1)
    assert policy.rest_s(1, rng) <= 1.0
    assert 2.0 <= policy.rest_s(3, rng) <= 4.0
    assert 30.0 <= policy.rest_s(50, rng) <= 60.0
