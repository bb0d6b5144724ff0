"""Frozen sets of node IDs, sparse and dense, against Python's own sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.registry.directory.frozenids import NO_IDS, FrozenIds
from pilotfleet.registry.directory.idset import IdSet, bits_of_ids

few = st.sets(st.integers(1, 70_000), max_size=70)
many = st.builds(
    lambda start, count, step: set(range(start, start + count * step, step)),
    st.integers(1, 3000),
    st.integers(0, 400),
    st.integers(1, 9),
)
sets = few | many


def frozen(nodes: set[int]) -> FrozenIds:
    return FrozenIds.of(sorted(nodes))


def members(ids: FrozenIds) -> set[int]:
    found = ids.first(ids.count + 1)
    assert len(found) == ids.count
    assert found == sorted(found)
    return set(found)


@given(sets, sets)
def test_operations_are_those_of_sets(one: set[int], other: set[int]) -> None:
    first, second = frozen(one), frozen(other)
    assert members(first.plus(second)) == one | other
    assert members(first.minus(second)) == one - other
    assert members(first.common(second)) == one & other
    assert first.is_same(second) is (one == other)
    assert first.bits() == bits_of_ids(one)


@given(sets, st.integers(0, 5000), st.integers(0, 80))
def test_pages_are_those_of_a_list(nodes: set[int], after: int, limit: int) -> None:
    expected = [node for node in sorted(nodes) if node > after][:limit]
    assert frozen(nodes).first(limit, after=after) == expected


@given(sets)
def test_the_form_depends_on_the_members_alone(nodes: set[int]) -> None:
    one, other = frozen(nodes), FrozenIds.of_bits(bits_of_ids(nodes))
    assert one.is_same(other)
    assert one.size_bytes == other.size_bytes
    assert members(one.plus(NO_IDS).minus(NO_IDS)) == nodes


@given(sets)
def test_a_set_of_a_bitmap_goes_on_as_one_of_ids(nodes: set[int]) -> None:
    made = IdSet.of_bits(bits_of_ids(nodes))
    assert list(made) == sorted(nodes)
    made.add(80_000)
    made.discard(min(nodes, default=1))
    assert len(made) == len({*nodes, 80_000} - {min(nodes, default=1)})
