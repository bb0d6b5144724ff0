"""Sets of node IDs, sparse and dense, against Python's own sets."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pilotfleet.registry.directory.idset import IdSet, bits_of, first_ids


class SetMachine(RuleBasedStateMachine):
    """Adds and removes runs of IDs, so that the form changes both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = IdSet()
        self.model: set[int] = set()

    @rule(start=st.integers(1, 5000), count=st.integers(1, 400), step=st.integers(1, 9))
    def add(self, start: int, count: int, step: int) -> None:
        for node in range(start, start + count * step, step):
            self.ids.add(node)
            self.model.add(node)

    @rule(start=st.integers(0, 9000), count=st.integers(1, 3000))
    def discard(self, start: int, count: int) -> None:
        for node in range(start, start + count):
            self.ids.discard(node)
            self.model.discard(node)

    @rule(node=st.integers(1, 100_000))
    def add_far(self, node: int) -> None:
        self.ids.add(node)
        self.model.add(node)

    @rule(after=st.integers(0, 9000), limit=st.integers(0, 70))
    def page(self, after: int, limit: int) -> None:
        expected = sorted(node for node in self.model if node > after)[:limit]
        assert self.ids.after(after, limit) == expected
        assert first_ids(self.ids.bits(), after=after, limit=limit) == expected

    @invariant()
    def same_members(self) -> None:
        assert len(self.ids) == len(self.model)
        assert list(self.ids) == sorted(self.model)
        assert self.ids.bits() == sum(1 << node for node in self.model)
        assert all(node in self.ids for node in list(self.model)[:20])
        assert 200_000 not in self.ids


TestSet = SetMachine.TestCase
TestSet.settings = settings(max_examples=30, stateful_step_count=15)


@given(st.sets(st.integers(1, 3000)))
def test_a_set_made_at_once_equals_one_made_step_by_step(nodes: set[int]) -> None:
    made, grown = IdSet.of(nodes), IdSet()
    for node in nodes:
        grown.add(node)
    assert list(made) == list(grown) == sorted(nodes)
    assert made.bits() == bits_of(array("I", sorted(nodes)))


def test_an_empty_set_is_empty() -> None:
    assert IdSet.of([]).bits() == 0
    assert first_ids(0, after=0, limit=5) == []


def test_sparse_sets_do_not_share_what_they_write() -> None:
    one, other = IdSet.of(range(1, 200)), IdSet()
    one.discard(5)
    other.add(1_000_000)
    assert list(other) == [1_000_000]


def test_a_set_that_shrinks_becomes_small_again() -> None:
    ids = IdSet.of(range(1, 50_001))
    big = ids.bits()
    for node in range(1, 50_000):
        ids.discard(node)
    assert list(ids) == [50_000]
    assert ids.after(0, 5) == [50_000]
    assert ids.bits() == 1 << 50_000 != big
    ids.add(3)
    ids.discard(4)
    assert list(ids) == [3, 50_000]
