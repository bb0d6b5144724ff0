"""Search against a plain filter over all nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from pilotfleet.errors import DecodeError
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.directory.records import (
    Claim,
    MemberRecord,
    NetworkRecord,
    NodeRecord,
    encode_record,
    host_key,
    member_key,
    network_key,
    node_key,
    trust_key,
)
from pilotfleet.registry.directory.search import (
    Query,
    decode_cursor,
    encode_cursor,
    search,
)
from pilotfleet.registry.store.base import Entry

WINDOW_S = 180.0
TAGS = ("gpu", "web", "db", "rare")
PREFIXES = ("", "w", "w-1", "w-11", "x", "z")

nodes = st.integers(1, 120)
few = st.integers(1, 4)
"""Those who ask; most of what makes nodes visible to each other concerns them."""


@dataclass
class Model:
    """What the filter knows about a node."""

    public: bool = False
    live: bool = True
    tags: tuple[str, ...] = ()
    hostname: str = ""
    seen: float = 0.0


class SearchMachine(RuleBasedStateMachine):
    """Changes the directory through entries and asks in between."""

    @initialize()
    def begin(self) -> None:
        self.directory = Directory(online_window_s=WINDOW_S)
        self.model: dict[int, Model] = {}
        self.trust: set[tuple[int, int]] = set()
        self.members: dict[int, set[int]] = {1: set(), 2: set()}
        self.wall = 1000
        self.revision = 0
        for network in self.members:
            self.store(network_key(network), NetworkRecord(network, f"n{network}"))
        # Toggling from something rather than from nothing: rules that happen to
        # be drawn seldom then still meet each other.
        self.put_many(1, 120, "gpu")
        self.change_memberships({1, 2, *range(9, 90, 2)}, 1)
        self.change_memberships({2, 3, 119}, 2)
        self.change_trusts(1, {3, 111})
        self.change_trusts(4, set(range(5, 120, 2)))

    def store(self, key: str, record: Any) -> None:
        self.revision += 1
        value = None if record is None else encode_record(record)
        self.directory.apply(Entry(key, value, self.revision))

    @rule(
        node=nodes,
        public=st.booleans(),
        tags=st.lists(st.sampled_from(TAGS), unique=True).map(tuple),
    )
    def put_node(self, node: int, public: bool, tags: tuple[str, ...]) -> None:
        old = self.model.get(node)
        if old is None or not old.live:
            old = Model(seen=self.wall)
        self.model[node] = Model(public, True, tags, old.hostname, old.seen)
        key = node.to_bytes(32, "big")
        record = NodeRecord(node, key, self.wall, public=public, tags=tags)
        self.store(node_key(node), record)

    @rule(first=nodes, count=st.integers(1, 80), tag=st.sampled_from(TAGS))
    def put_many(self, first: int, count: int, tag: str) -> None:
        for node in range(first, min(first + count, 121)):
            self.put_node(node, node % 2 == 0, (tag,))

    @precondition(lambda self: any(m.live for m in self.model.values()))
    @rule(data=st.data())
    def end_node(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from([n for n, m in self.model.items() if m.live]))
        hostname = self.model[node].hostname
        if hostname:
            self.store(host_key(hostname), None)
        self.model[node] = Model(live=False)
        key = node.to_bytes(32, "big")
        self.store(node_key(node), NodeRecord(node, key, self.wall, live=False))

    @precondition(lambda self: any(m.live for m in self.model.values()))
    @rule(data=st.data(), number=st.integers(1, 130), kind=st.sampled_from("wx"))
    def name_node(self, data: st.DataObject, number: int, kind: str) -> None:
        node = data.draw(st.sampled_from([n for n, m in self.model.items() if m.live]))
        name = f"{kind}-{number}"
        if any(model.hostname == name for model in self.model.values()):
            return
        old = self.model[node].hostname
        self.store(host_key(name), Claim(node))
        if old:
            self.store(host_key(old), None)
        self.model[node].hostname = name

    @rule(one=few, others=st.sets(nodes, max_size=20))
    def change_trusts(self, one: int, others: set[int]) -> None:
        for other in others - {one}:
            self.change_trust(one, other)

    def change_trust(self, one: int, other: int) -> None:
        pair = (min(one, other), max(one, other))
        made = pair not in self.trust
        self.trust ^= {pair}
        self.store(trust_key(one, other), Claim(0) if made else None)

    @rule(
        some=st.sets(few) | st.sets(nodes, max_size=40), network=st.sampled_from([1, 2])
    )
    def change_memberships(self, some: set[int], network: int) -> None:
        for node in some:
            joins = node not in self.members[network]
            self.members[network] ^= {node}
            self.store(member_key(network, node), MemberRecord() if joins else None)

    @rule(node=nodes)
    def hear(self, node: int) -> None:
        self.directory.touch(node, self.wall)
        model = self.model.get(node)
        if model is not None and model.live:
            model.seen = max(model.seen, self.wall)

    @rule(seconds=st.integers(1, 200))
    def wait(self, seconds: int) -> None:
        self.wall += seconds

    @rule(
        tags=st.lists(st.sampled_from((*TAGS, "none")), unique=True, max_size=3),
        any_tag=st.booleans(),
        prefix=st.sampled_from(PREFIXES),
        online=st.booleans(),
        limit=st.integers(1, 130),
    )
    def ask(
        self,
        tags: list[str],
        any_tag: bool,
        prefix: str,
        online: bool,
        limit: int,
    ) -> None:
        self.directory.expire_online(self.wall)
        for requester in (None, 1, 2, 3, 4):
            if requester is None or self.model[requester].live:
                self.check(requester, tags, any_tag, prefix, online, limit)

    def check(
        self,
        requester: int | None,
        tags: list[str],
        any_tag: bool,
        prefix: str,
        online: bool,
        limit: int,
    ) -> None:
        expected = [
            node
            for node in sorted(self.model)
            if self.is_match(node, requester, tags, any_tag, prefix, online)
        ]
        found: list[int] = []
        after = 0
        for _ in range(len(expected) // limit + 1):
            query = Query(tuple(tags), any_tag, prefix, online, limit, after)
            node = self.directory.nodes.get_live(requester or 0)
            page = search(self.directory, query, node)
            found += [n.record.id for n in page.nodes]
            assert page.total == len(expected)
            if not page.next_cursor:
                break
            after = decode_cursor(page.next_cursor)
        assert found == expected

    def is_match(
        self,
        node: int,
        requester: int | None,
        tags: list[str],
        any_tag: bool,
        prefix: str,
        online: bool,
    ) -> bool:
        model = self.model[node]
        has = [tag in model.tags for tag in tags]
        if not model.live or not self.is_visible(node, requester):
            return False
        if tags and not (any(has) if any_tag else all(has)):
            return False
        if online and self.wall - model.seen > WINDOW_S:
            return False
        return not prefix or model.hostname.startswith(prefix)

    def is_visible(self, node: int, requester: int | None) -> bool:
        if self.model[node].public or node == requester:
            return True
        if requester is None:
            return False
        if (min(node, requester), max(node, requester)) in self.trust:
            return True
        return any({node, requester} <= members for members in self.members.values())


TestSearch = SearchMachine.TestCase
TestSearch.settings = settings(max_examples=60, stateful_step_count=40)


def test_cursors_survive_the_way_to_text_and_back() -> None:
    assert decode_cursor("") == 0
    for after in (1, 0xFFFF_FFFF):
        assert decode_cursor(encode_cursor(after)) == after


@pytest.mark.parametrize(
    "cursor", ["x", "AAAA", "é", encode_cursor(-1), encode_cursor(10**11), "YWZ0ZXI6"]
)
def test_foreign_cursors_are_refused(cursor: str) -> None:
    with pytest.raises(DecodeError, match="invalid cursor"):
        decode_cursor(cursor)


def test_a_popular_prefix_stays_right_while_names_change() -> None:
    directory = Directory()
    for node in range(1, 401):
        record = NodeRecord(node, node.to_bytes(32, "big"), 0, public=True)
        directory.apply(Entry(node_key(node), encode_record(record), node))
        claim = encode_record(Claim(node))
        directory.apply(Entry(host_key(f"worker-{node}"), claim, 1000 + node))
    query = Query(hostname_prefix="worker-")
    assert search(directory, query, None).total == 400
    directory.apply(Entry(host_key("worker-7"), None, 2000))
    directory.apply(Entry(host_key("other"), encode_record(Claim(7)), 2001))
    assert search(directory, query, None).total == 399
    directory.apply(Entry(host_key("worker-x"), encode_record(Claim(7)), 2002))
    assert search(directory, query, None).total == 400
