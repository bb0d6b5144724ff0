"""Choosing workers by tags and by how much they have to do."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from pilotfleet.fleet.roster import MAX_POOLS, Roster, Tags, WorkerInfo, worker_info

TEXT: Tags = frozenset({"text"})
ANY: Tags = frozenset()
NUMBERS = itertools.count()


def info(name: str, *tags: str) -> WorkerInfo:
    return WorkerInfo(f"address of {name}", name, frozenset(tags))


def take(roster: Roster, tags: Tags = ANY, avoided: tuple[str, ...] = ()) -> str | None:
    """Give the best worker a task and return its name."""
    worker = roster.choose(tags, [f"address of {name}" for name in avoided])
    if worker is None:
        return None
    roster.begin(worker, f"attempt {next(NUMBERS)}")
    return worker.info.name


def end(roster: Roster, name: str) -> bool:
    """Let one of a worker's tasks end; return whether the worker is known."""
    worker = roster.find(f"address of {name}")
    wire_id = min(worker.open) if worker else "none"
    return roster.end(f"address of {name}", wire_id) is not None


@pytest.fixture
def roster() -> Roster:
    roster = Roster(concurrency=2)
    roster.update([info("a", "text"), info("b", "text", "fast"), info("c")], 0.0)
    return roster


def test_idle_workers_come_before_busy_ones(roster: Roster) -> None:
    assert sorted(str(take(roster)) for _ in range(3)) == ["a", "b", "c"]
    assert sorted(str(take(roster)) for _ in range(3)) == ["a", "b", "c"]
    assert take(roster) is None


def test_all_tags_are_needed(roster: Roster) -> None:
    assert take(roster, frozenset({"text", "fast"})) == "b"
    assert take(roster, frozenset({"slow"})) is None
    assert {take(roster, TEXT) for _ in range(3)} == {"a", "b"}
    assert take(roster, TEXT) is None
    assert take(roster) == "c"


def test_a_worker_that_is_done_is_chosen_again(roster: Roster) -> None:
    for _ in range(6):
        take(roster)
    assert end(roster, "b")
    assert take(roster) == "b"


def test_who_lost_the_task_is_chosen_only_when_nobody_else_can(roster: Roster) -> None:
    assert take(roster, TEXT, ("a",)) == "b"
    assert take(roster, TEXT, ("a",)) == "b"
    assert take(roster, TEXT, ("a",)) == "a"


def test_a_resting_worker_gets_nothing_until_its_time(roster: Roster) -> None:
    worker = roster.choose(frozenset({"fast"}))
    assert worker is not None
    roster.rest(worker, 5.0)
    assert take(roster, frozenset({"fast"})) is None
    assert roster.wake("address of b", 4.0) is None
    assert roster.wake("address of b", 5.0) is worker
    assert take(roster, frozenset({"fast"})) == "b"


def test_rest_outlives_an_update_of_discovery(roster: Roster) -> None:
    worker = roster.choose(frozenset({"fast"}))
    assert worker is not None
    roster.rest(worker, 5.0)
    roster.update([info("b", "text", "fast", "new")], 1.0)
    assert take(roster, frozenset({"fast"})) is None


def test_a_worker_that_is_gone_gets_nothing_more(roster: Roster) -> None:
    take(roster, frozenset({"fast"}))
    roster.update([info("a", "text")], 1.0)
    assert len(roster) == 2, "b still has a task"
    assert take(roster, frozenset({"fast"})) is None
    assert roster.find("b") is roster.find("address of b") is not None
    assert end(roster, "b")
    assert roster.find("b") is None
    assert len(roster) == 1
    assert not end(roster, "b")


def test_a_worker_that_returns_keeps_its_count(roster: Roster) -> None:
    take(roster, frozenset({"fast"}))
    roster.update([], 1.0)
    roster.update([info("b", "fast")], 2.0)
    assert take(roster, frozenset({"fast"})) == "b"
    assert take(roster, frozenset({"fast"})) is None


def test_changed_tags_count_at_once(roster: Roster) -> None:
    assert take(roster, frozenset({"gpu"})) is None
    roster.update([info("c", "gpu"), info("a", "text")], 1.0)
    assert take(roster, frozenset({"gpu"})) == "c"
    assert take(roster, frozenset({"fast"})) is None


def test_work_is_spread_evenly_over_many() -> None:
    roster = Roster(concurrency=10)
    roster.update([info(f"w{number}") for number in range(100)], 0.0)
    counts = Counter(take(roster) for _ in range(500))
    assert set(counts.values()) == {5}


def test_sets_of_tags_are_forgotten_but_for_those_that_wait(roster: Roster) -> None:
    waiting = roster.waiting(frozenset({"never"}))
    waiting.push((0, 1))
    for number in range(2 * MAX_POOLS):
        roster.choose(frozenset({f"tag{number}"}))
    assert roster.waiting_pools() == [frozenset({"never"})]
    assert roster.waiting(frozenset({"never"})) is waiting
    assert take(roster, TEXT) in ("a", "b")


def test_tags_of_the_most_urgent_task_come_first(roster: Roster) -> None:
    fast = frozenset({"fast"})
    for rank, tags in (((0, 7), TEXT), ((0, 3), ANY), ((-1, 9), fast)):
        roster.waiting(tags).push(rank)
    assert roster.waiting_pools() == [fast, ANY, TEXT]
    assert roster.waiting_pools(roster.choose(fast)) == [fast, ANY, TEXT]


def test_a_worker_may_be_expected_before_it_is_seen(roster: Roster) -> None:
    late = roster.expect("address of late")
    for number in range(5):
        roster.begin(late, f"adopted {number}")
    assert late.info.name == "address of late"
    assert len(roster) == 4
    roster.update([info("late", "new")], 1.0)
    new = frozenset({"new"})
    assert take(roster, new) is None, "it has more than its share"
    for _ in range(4):
        assert end(roster, "late")
    assert take(roster, new) == "late"
    assert roster.expect("address of late") is late
    assert roster.counts() == (1, 0)


def test_tags_are_carried_by_busy_workers_and_not_by_those_that_left(
    roster: Roster,
) -> None:
    fast = frozenset({"fast"})
    assert not roster.is_carried(frozenset({"nobody"}))
    take(roster, fast)
    take(roster, fast)
    assert roster.is_carried(fast)
    roster.update([info("a", "text")], 1.0)
    assert not roster.is_carried(fast)


def test_rows_of_a_search_become_workers() -> None:
    row = {"address": "0:0000.0000.0001", "hostname": "w", "tags": ["a", 7]}
    assert worker_info(row) == WorkerInfo("0:0000.0000.0001", "w", frozenset({"a"}))
    nameless = worker_info({"address": "0:0000.0000.0001", "tags": None})
    assert nameless is not None
    assert nameless.name == "0:0000.0000.0001"
    assert worker_info({"hostname": "w"}) is None
    assert worker_info({"address": 7}) is None
