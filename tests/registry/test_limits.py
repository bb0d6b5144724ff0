"""Rates: arithmetic on time that is passed in."""

from __future__ import annotations

import pytest

from pilotfleet.registry.limits import RateLimit


def test_burst_is_free_and_then_the_rate_counts() -> None:
    limit = RateLimit(10.0, burst=3)
    assert [limit.allow("a", 0.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert limit.denied == 2
    assert not limit.allow("a", 0.05)
    assert limit.allow("a", 0.1)
    assert not limit.allow("a", 0.1)
    assert [limit.allow("a", 60.0) for _ in range(4)] == [True] * 3 + [False]


def test_many_uses_at_once_are_allowed_whole_or_not_at_all() -> None:
    limit = RateLimit(10.0, burst=30)
    assert limit.allow("a", 0.0, count=20)
    assert not limit.allow("a", 0.0, count=20)
    assert limit.allow("a", 0.0, count=10)
    assert not limit.allow("a", 0.9, count=10)
    assert limit.allow("a", 1.0, count=10)


def test_keys_do_not_share_their_rate() -> None:
    limit = RateLimit(1.0)
    assert limit.allow("a", 0.0)
    assert limit.allow("b", 0.0)
    assert not limit.allow("a", 0.0)


def test_long_run_keeps_the_rate() -> None:
    limit = RateLimit(100.0, burst=5)
    passed = sum(limit.allow("a", step / 1000) for step in range(10_000))
    assert passed == pytest.approx(1000, abs=6)


def test_charge_tells_how_long_to_wait() -> None:
    limit = RateLimit(10.0, burst=5)
    assert limit.charge("a", 5, 0.0) == 0.0
    assert limit.charge("a", 10, 0.0) == pytest.approx(1.0)
    assert limit.charge("a", 1, 10.0) == 0.0
    assert limit.denied == 1


def test_table_of_keys_is_bounded() -> None:
    limit = RateLimit(1.0, max_keys=10)
    for number in range(10):
        assert limit.allow(number, float(number))
    assert limit.allow("new", 9.5)
    # Those that owe something are still remembered.
    assert not limit.allow(9, 9.5)
    for number in range(100, 200):
        assert limit.allow(number, 9.5)
    assert len(limit._paid_until) <= 10
