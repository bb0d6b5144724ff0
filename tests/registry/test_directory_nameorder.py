"""Names in order against a sorted list, with groups small enough to come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pilotfleet.registry.directory import nameorder
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.directory.hostnames import HostClaim, HostnameIndex
from pilotfleet.registry.directory.idset import bits_of_ids
from pilotfleet.registry.directory.records import (
    Claim,
    NodeRecord,
    encode_record,
    host_key,
    node_key,
)
from pilotfleet.registry.directory.search import Query, search
from pilotfleet.registry.store.base import Entry

if TYPE_CHECKING:
    import pytest

names = st.text("ab-1", min_size=1, max_size=4)
PREFIXES = ("", "a", "b", "a-", "ab1", "zz")


class OrderMachine(RuleBasedStateMachine):
    """Names come and go, one by one and many at once."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: dict[str, int] = {}
        self.order = nameorder.NameOrder(lambda name: self.claims[name])

    @initialize()
    def make_groups_small(self) -> None:
        self.most = nameorder.MOST
        nameorder.MOST = 8  # type: ignore[misc]

    def teardown(self) -> None:
        nameorder.MOST = getattr(self, "most", nameorder.MOST)  # type: ignore[misc]

    @rule(some=st.sets(names, max_size=30))
    def add(self, some: set[str]) -> None:
        for name in some - self.claims.keys():
            self.claims[name] = len(self.claims) + 1
            while list(self.claims.values()).count(self.claims[name]) > 1:
                self.claims[name] += 1
            self.order.add(name, self.claims[name])

    @rule(some=st.sets(names, max_size=30))
    def discard(self, some: set[str]) -> None:
        for name in some & self.claims.keys():
            self.order.discard(name, self.claims[name])
            del self.claims[name]

    @rule()
    def fill(self) -> None:
        self.order.fill(self.claims)

    @invariant()
    def knows_what_the_list_knows(self) -> None:
        assert self.order.names() == sorted(self.claims)
        for prefix in PREFIXES:
            nodes = [n for name, n in self.claims.items() if name.startswith(prefix)]
            assert self.order.prefix_bits(prefix) == bits_of_ids(nodes)
            assert self.order.few(prefix, len(nodes)) == sorted(nodes)
            if nodes:
                assert self.order.few(prefix, len(nodes) - 1) is None


TestOrder = OrderMachine.TestCase
TestOrder.settings = settings(max_examples=60, stateful_step_count=30)


def test_groups_that_shrink_are_united(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nameorder, "MOST", 8)
    order = nameorder.NameOrder(int)
    every = [f"{number:03}" for number in range(100, 200)]
    for name in every:
        order.add(name, int(name))
    assert len(order._groups) > 10
    for name in every[1:]:
        order.discard(name, int(name))
    assert len(order._groups) == 1
    assert order.names() == ["100"]


def test_a_renamed_node_stays_under_a_popular_prefix() -> None:
    directory = Directory()
    for node in range(1, 401):
        record = NodeRecord(node, node.to_bytes(32, "big"), 0, public=True)
        directory.apply(Entry(node_key(node), encode_record(record), node))
        claim = encode_record(Claim(node))
        directory.apply(Entry(host_key(f"worker-{node}"), claim, 1000 + node))
    query = Query(hostname_prefix="worker-")
    assert search(directory, query, None).total == 400
    # In the order of a renaming: first the new claim, then the old one goes.
    directory.apply(Entry(host_key("worker-x"), encode_record(Claim(7)), 2000))
    directory.apply(Entry(host_key("worker-7"), None, 2001))
    assert search(directory, query, None).total == 400


def test_a_kept_prefix_is_forgotten_for_another_one() -> None:
    index = HostnameIndex()
    for node in range(1, 1001):
        name = f"{node % 3}-{node}"
        index.claim(name, HostClaim(node, node))
        index.show(name, node)
    for prefix in ("0", "1", "2"):
        assert index.prefix_bits(prefix).bit_count() in (333, 334)
    index.show_all(index.names())
    assert index.prefix_bits("1-").bit_count() == 334
