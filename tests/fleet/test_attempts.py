"""Ids of attempts, and what is left of those of an earlier life."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.fleet.attempts import (
    PastAttempts,
    run_prefix,
    task_key,
    wire_key,
)


def wire_id(task_id: str, number: int) -> str:
    return f"{run_prefix('run')}{task_key(task_id)}-{number}"


@given(st.text(st.characters()), st.integers(1, 10**9 - 1))
def test_ids_are_allowed_on_the_wire_and_name_their_task(
    task_id: str, number: int
) -> None:
    wire = wire_id(task_id, number)
    assert len(wire) <= 64
    assert wire.replace("-", "").isalnum()
    assert wire_key(wire) == task_key(task_id)


def test_the_same_run_and_task_have_the_same_id_for_ever() -> None:
    # Written down: a daemon's table outlives the program's version.
    assert wire_id("t-1", 3) == "fb4b0d4947c68395-bdd78572cb3bda3d3dbf-3"


def test_attempts_are_found_by_their_task() -> None:
    past = PastAttempts()
    past.add(wire_id("a", 2), "w2", "NEW")
    past.add(wire_id("a", 1), "w1", "EXPIRED")
    past.add(wire_id("b", 1), "w1", "NEW")
    past.update(wire_id("a", 2), "EXECUTING")
    assert len(past) == 3
    found = past.take(task_key("a"))
    assert found is not None
    assert found.last == 2
    assert found.attempts == {
        wire_id("a", 1): ("w1", "EXPIRED"),
        wire_id("a", 2): ("w2", "EXECUTING"),
    }
    assert past.take(task_key("a")) is None
    assert wire_id("a", 1) not in past
    assert wire_id("b", 1) in past


def test_ids_of_another_form_are_left_alone() -> None:
    past = PastAttempts()
    for other in ("", "x" * 64, wire_id("a", 1)[:-2], f"{wire_id('a', 1)}0" * 2):
        past.add(other, "w", "NEW")
        assert other not in past
    assert len(past) == 0


def test_numbers_outlive_the_attempts() -> None:
    past = PastAttempts()
    past.add(wire_id("a", 7), "w", "NEW")
    assert list(past.give_up()) == [(wire_id("a", 7), "NEW")]
    assert len(past) == 0
    found = past.take(task_key("a"))
    assert found is not None
    assert (found.last, found.attempts) == (7, {})
