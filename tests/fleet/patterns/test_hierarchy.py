"""Who is under whom."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.fleet.patterns.hierarchy import TOP_TAG, Topology


def make(workers: int, size: int = 50, fanout: int = 50, **more: int) -> Topology:
    return Topology.of("f", workers, cluster_size=size, fanout=fanout, **more)


def test_a_thousand_workers_make_twenty_clusters() -> None:
    topology = make(1_000)
    assert len(topology.levels) == 1
    assert topology.clusters == topology.top
    assert [cluster.tag for cluster in topology.top][:2] == ["c1", "c2"]
    last = topology.top[-1]
    assert (last.home, last.home_tag) == ("f-sub-20", TOP_TAG)
    assert (last.first, last.members) == (951, 50)
    assert (last.each, last.capacity) == (2, 105)


def test_too_many_clusters_make_another_level() -> None:
    topology = make(40, size=2, fanout=5)
    assert [len(level) for level in topology.levels] == [20, 4]
    low, high = topology.levels
    assert high[3].home == "f-sub2-4"
    assert high[3].home_tag == TOP_TAG
    assert (high[3].tag, high[3].first, high[3].members) == ("c2-4", 16, 5)
    assert {cluster.home_tag for cluster in low[15:]} == {"c2-4"}
    assert high[0].each == low[0].capacity


def test_any_depth() -> None:
    topology = make(1_000, size=1, fanout=10)
    assert [len(level) for level in topology.levels] == [1_000, 100, 10]


def test_the_last_cluster_may_be_smaller() -> None:
    assert [cluster.members for cluster in make(120).top] == [50, 50, 20]


def test_the_flags_of_a_sub_orchestrator() -> None:
    flags = make(100, concurrency=3).top[1].worker_flags("f-hub")
    assert " ".join(flags) == (
        "--id f-sub-2 --delegate --cluster c2 --tree f-hub --level 1 --each 4"
        " --concurrency 205"
    )


def test_an_orphan_goes_to_a_sibling_and_comes_home() -> None:
    topology = make(40, size=2, fanout=5)
    everybody = {cluster.home for cluster in topology.clusters}
    assert topology.assign(everybody) == topology.home_parents
    orphaned = topology.assign(everybody - {"f-sub-1"}, topology.home_parents)
    moved = {
        tag: parent
        for tag, parent in orphaned.items()
        if parent != topology.home_parents[tag]
    }
    # A sibling: under the same parent, c2-1.
    assert moved == {"c1": "f-sub-2"}
    assert topology.assign(everybody, orphaned) == topology.home_parents


def test_without_siblings_anybody_of_the_level_takes_over() -> None:
    topology = make(40, size=2, fanout=5)
    family = {f"f-sub-{number}" for number in range(1, 6)}
    live = {cluster.home for cluster in topology.clusters} - family
    parents = topology.assign(live)
    assert {parents[f"c{number}"] for number in range(1, 6)} == {
        f"f-sub-{number}" for number in range(6, 11)
    }


def test_while_nobody_lives_nothing_moves() -> None:
    topology = make(200)
    assert topology.assign([]) == topology.home_parents
    before = topology.assign(["f-sub-1"])
    assert topology.assign([], before) == before


topologies = st.builds(
    make,
    st.integers(1, 300),
    size=st.integers(1, 20),
    fanout=st.integers(2, 12),
)


@given(topology=topologies, data=st.data())
def test_living_parents_for_all_and_few_moves(
    topology: Topology, data: st.DataObject
) -> None:
    names = sorted(cluster.home for cluster in topology.clusters)
    before = topology.home_parents
    for _ in range(data.draw(st.integers(1, 6))):
        live = set(data.draw(st.lists(st.sampled_from(names), unique=True)))
        after = topology.assign(live, before)
        for level in topology.levels:
            homes = {cluster.home for cluster in level}
            load = Counter(after[cluster.tag] for cluster in level)
            for cluster in level:
                parent = after[cluster.tag]
                if homes & live:
                    assert parent in homes & live
                else:
                    assert parent == before[cluster.tag]
                if cluster.home in live:
                    assert parent == cluster.home
                    continue
                family = {
                    other.home for other in level if other.home_tag == cluster.home_tag
                } & live
                if family:
                    assert parent in family
                    assert load[parent] <= min(load[name] for name in family) + 1
        assert topology.assign(live, after) == after
        before = after
    assert topology.assign(set(names), before) == topology.home_parents


@given(topology=topologies, data=st.data())
def test_one_death_moves_what_it_had_and_nothing_else(
    topology: Topology, data: st.DataObject
) -> None:
    names = sorted(cluster.home for cluster in topology.clusters)
    live = set(names)
    dead = data.draw(st.sampled_from(names))
    after = topology.assign(live - {dead}, topology.home_parents)
    moved = {
        cluster.home
        for cluster in topology.clusters
        if after[cluster.tag] != cluster.home
    }
    assert moved <= {dead}


@pytest.mark.parametrize("workers", [1, 49, 50, 51, 999, 2_501])
def test_every_worker_is_in_exactly_one_cluster(workers: int) -> None:
    topology = make(workers)
    below = workers
    for level in topology.levels:
        ends = [cluster.first + cluster.members for cluster in level]
        assert [cluster.first for cluster in level] == [1, *ends[:-1]]
        assert ends[-1] == below + 1
        below = len(level)
    assert below <= 50
