"""Rate limits: arithmetic, and that their tables cannot grow."""

from __future__ import annotations

import pytest

from pilotfleet.protocol.limits import Cooldown, TokenBucket, TokenBuckets


@pytest.mark.parametrize(
    ("waits", "taken"),
    [
        ([0, 0, 0, 0], [True, True, True, False]),
        ([0, 0, 0, 0.4, 0.1], [True, True, True, False, True]),
        ([0, 0, 0, 100, 0, 0, 0], [True] * 6 + [False]),
    ],
)
def test_a_bucket_gives_a_burst_and_then_a_rate(
    waits: list[float], taken: list[bool]
) -> None:
    bucket = TokenBucket(3, 2.0, 0.0)
    now = 0.0
    results = []
    for wait in waits:
        now += wait
        results.append(bucket.take(now))
    assert results == taken


def test_bucket_gives_its_burst_and_then_its_rate() -> None:
    buckets = TokenBuckets(5.0, 5, capacity=10)
    assert [buckets.allow("a", 0.0) for _ in range(6)] == [True] * 5 + [False]
    assert buckets.allow("a", 0.2)
    assert not buckets.allow("a", 0.3)
    assert [buckets.allow("a", 100.0) for _ in range(6)] == [True] * 5 + [False]


def test_each_source_has_its_own_bucket() -> None:
    buckets = TokenBuckets(1.0, 1, capacity=10)
    assert buckets.allow("a", 0.0)
    assert not buckets.allow("a", 0.0)
    assert buckets.allow("b", 0.0)


def test_full_table_admits_no_new_source_until_one_was_idle() -> None:
    buckets = TokenBuckets(1.0, 5, capacity=2)
    assert buckets.allow("a", 0.0)
    assert buckets.allow("b", 5.0)
    assert not buckets.allow("c", 9.0)
    assert buckets.allow("a", 9.0)
    assert buckets.allow("c", 15.0)
    assert not buckets.allow("b", 15.0)


def test_cooldown_allows_one_action_per_period() -> None:
    cooldown = Cooldown(3.0, capacity=10)
    assert not cooldown.is_cooling(1, 0.0)
    assert cooldown.allow(1, 0.0)
    assert cooldown.is_cooling(1, 2.9)
    assert not cooldown.allow(1, 2.9)
    assert cooldown.allow(2, 2.9)
    assert cooldown.allow(1, 3.0)


def test_full_cooldown_table_refuses_until_the_oldest_has_cooled() -> None:
    cooldown = Cooldown(3.0, capacity=2)
    assert cooldown.allow(1, 0.0)
    assert cooldown.allow(2, 1.0)
    assert not cooldown.allow(3, 2.0)
    assert cooldown.allow(3, 3.0)
    assert cooldown.is_cooling(2, 3.5)
