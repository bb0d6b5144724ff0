"""Rates: arithmetic on time that is passed in."""

from __future__ import annotations

import pytest

from pilotfleet.registry.limits import MAX_SLOT_S, RateLimit, SlotLimit


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


# Slots


def test_those_who_come_too_early_get_one_slot_each() -> None:
    limit = SlotLimit(10.0, burst=3)
    for _ in range(3):
        assert limit.missing("a", 1, 0.0) == 0.0
        limit.charge("a", 1, 0.0)
    assert limit.missing("a", 1, 0.0) == pytest.approx(0.1)
    slots = [limit.slot("a", 1, 0.0) for _ in range(5)]
    assert slots == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert limit.denied == 5
    # Others have a rate and a queue of their own.
    assert limit.missing("b", 1, 0.0) == 0.0


def test_slots_go_on_behind_the_last_one_until_that_is_over() -> None:
    limit = SlotLimit(10.0, burst=1)
    limit.charge("a", 1, 0.0)
    assert [limit.slot("a", 1, 0.0) for _ in range(2)] == pytest.approx([0.1, 0.2])
    limit.charge("a", 1, 0.1)
    assert limit.slot("a", 1, 0.1) == pytest.approx(0.2)
    limit.charge("a", 1, 5.0)
    assert limit.slot("a", 1, 5.0) == pytest.approx(0.1)


def test_a_slot_for_many_has_room_for_all_of_them() -> None:
    limit = SlotLimit(10.0, burst=20)
    limit.charge("a", 15, 0.0)
    first = limit.slot("a", 15, 0.0)
    assert first == pytest.approx(1.0)
    assert limit.slot("a", 15, 0.0) == pytest.approx(2.5)
    assert limit.missing("a", 15, first) == 0.0


def test_nobody_is_told_to_wait_longer_than_the_bound() -> None:
    limit = SlotLimit(1.0, burst=1)
    limit.charge("a", 1, 0.0)
    slots = [limit.slot("a", 1, 0.0) for _ in range(100)]
    assert slots[:30] == pytest.approx(range(1, 31))
    assert set(slots[30:]) == {MAX_SLOT_S}
    # The queue is not longer than that either: it goes on where the others end.
    assert limit.slot("a", 1, 10.0) == pytest.approx(21.0)


def test_room_is_what_would_be_allowed_one_by_one() -> None:
    limit = SlotLimit(10.0, burst=5)
    assert limit.room("a", 0.0, 3) == 3
    for left in range(5, 0, -1):
        assert limit.room("a", 0.0, 100) == left
        assert limit.missing("a", 1, 0.0) == 0.0
        limit.charge("a", 1, 0.0)
    assert limit.room("a", 0.0, 100) == 0
    assert limit.room("a", 0.25, 100) == 2


def test_table_of_slots_is_bounded() -> None:
    limit = SlotLimit(1.0, max_keys=10)
    for number in range(100):
        limit.charge(number, 1, 0.0)
        limit.slot(number, 1, 0.0)
        assert len(limit._told_until) <= 10
