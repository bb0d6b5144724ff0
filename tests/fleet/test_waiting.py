"""The queue of waiting tasks against a plain sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.fleet.waiting import STALE, WaitingTasks

RANKS = st.tuples(st.integers(-2, 2), st.integers(0, 20))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), RANKS),
        st.tuples(st.just("discard"), RANKS),
        st.tuples(st.just("pop"), st.none()),
    ),
    max_size=60,
)


@given(STEPS)
def test_it_gives_what_a_sorted_list_would(steps: list[tuple[str, object]]) -> None:
    queue, model = WaitingTasks(), set[tuple[int, int]]()
    for step, rank in steps:
        if isinstance(rank, tuple):
            getattr(queue, step)(rank)
            model = model | {rank} if step == "push" else model - {rank}
        elif model:
            assert queue.pop() == min(model)
            model.discard(min(model))
        assert len(queue) == len(model)
        if model:
            assert queue.first() == min(model)


def test_places_of_those_who_left_do_not_pile_up() -> None:
    queue = WaitingTasks()
    queue.push((0, 0))
    for number in range(1, 10_000):
        queue.push((0, number))
        queue.discard((0, number))
    assert len(queue._heap) <= STALE + 3
    assert queue.pop() == (0, 0)
