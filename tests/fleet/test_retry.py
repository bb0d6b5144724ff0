"""When a task is tried again, after what pause, and who has to rest."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.fleet.retry import AttemptEnd, Conduct, Judge, RetryPolicy

SUCCEEDED, FAILED, KILLED, LOST = (
    AttemptEnd.SUCCEEDED,
    AttemptEnd.FAILED,
    AttemptEnd.KILLED,
    AttemptEnd.LOST,
)
BAD = (FAILED, KILLED, LOST)


class Fleet:
    """Workers, and how often each had to rest."""

    def __init__(self, workers: int) -> None:
        self.judge = Judge(RetryPolicy())
        self.conducts = [Conduct() for _ in range(workers)]
        self.rested = [0] * workers

    def end(self, worker: int, end: AttemptEnd, blamed: int = 1) -> bool:
        rests = self.judge.must_rest(
            self.conducts[worker], end, blamed=blamed, workers=len(self.conducts)
        )
        self.rested[worker] += rests
        return rests


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
        (AttemptEnd.KILLED, 4, 0, 0, True),
        (AttemptEnd.KILLED, 5, 0, 0, False),
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


def test_a_worker_rests_longer_each_time() -> None:
    policy = RetryPolicy(first_rest_s=1.0, longest_rest_s=60.0)
    rng = random.Random(1)
    assert policy.rest_s(1, rng) <= 1.0
    assert 2.0 <= policy.rest_s(3, rng) <= 4.0
    assert 30.0 <= policy.rest_s(50, rng) <= 60.0


def test_a_worker_that_does_not_answer_rests_at_once() -> None:
    fleet = Fleet(1)
    assert fleet.end(0, LOST)
    assert fleet.conducts[0].rests == 1


@pytest.mark.parametrize("end", [FAILED, KILLED])
def test_a_worker_that_is_alive_rests_from_the_third_bad_end_in_a_row(
    end: AttemptEnd,
) -> None:
    fleet = Fleet(2)
    assert [fleet.end(0, end) for _ in range(5)] == [False, False, True, True, True]
    assert fleet.conducts[0].rests == 3


def test_a_success_wipes_the_slate() -> None:
    fleet = Fleet(2)
    for _ in range(5):
        fleet.end(0, FAILED)
    fleet.end(0, SUCCEEDED)
    assert (fleet.conducts[0].row, fleet.conducts[0].rests) == (0, 0)
    assert not fleet.end(0, FAILED)


def test_the_only_worker_is_not_rested_for_commands_that_fail() -> None:
    fleet = Fleet(1)
    assert not any(fleet.end(0, FAILED) for _ in range(50))


@given(st.integers(3, 12), st.lists(st.sampled_from(BAD), min_size=1, max_size=12))
def test_one_bad_task_rests_one_worker_at_most(
    workers: int, ends: list[AttemptEnd]
) -> None:
    fleet = Fleet(workers)
    for turn, end in enumerate(ends):
        fleet.end(turn % workers, end, blamed=min(turn + 1, workers))
        # Everybody does other work as well.
        for worker in range(workers):
            fleet.end(worker, SUCCEEDED)
    assert sum(fleet.rested) <= 1


@given(st.integers(2, 8), st.integers(1, 40), st.sampled_from([FAILED, KILLED]))
def test_where_everything_fails_few_rests_are_given(
    workers: int, rounds: int, end: AttemptEnd
) -> None:
    fleet = Fleet(workers)
    for _ in range(rounds):
        for worker in range(workers):
            fleet.end(worker, end)
    assert not any(fleet.rested)


@given(st.integers(0, 10**6), st.integers(4, 20), st.sampled_from(BAD))
def test_one_bad_worker_among_good_ones_is_found_and_they_are_left_alone(
    seed: int, workers: int, end: AttemptEnd
) -> None:
    rng, fleet = random.Random(seed), Fleet(workers)
    for _ in range(400):
        worker = rng.randrange(workers)
        is_bad = worker == 0
        fleet.end(worker, end if is_bad else SUCCEEDED)
    had = fleet.conducts[0].row + fleet.conducts[0].rests
    assert fleet.rested[0] >= 1 or had < 3
    assert not any(fleet.rested[1:])


def test_bad_luck_of_many_bad_tasks_is_seldom_taken_for_a_bad_worker() -> None:
    rng, fleet = random.Random(1), Fleet(20)
    for _ in range(20_000):
        end = FAILED if rng.random() < 0.5 else SUCCEEDED
        fleet.end(rng.randrange(20), end)
    assert sum(fleet.rested) < 60, "of 10,000 bad ends"
