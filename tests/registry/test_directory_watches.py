"""Watches against search: whatever happens, the watcher ends with what search finds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from pilotfleet.registry.agentrow import agent_row
from pilotfleet.registry.directory import watches as watches_module
from pilotfleet.registry.directory.changes import ChangeLog
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.directory.records import (
    Claim,
    MemberRecord,
    NetworkRecord,
    NodeRecord,
    PoloRecord,
    encode_record,
    grant_key,
    host_key,
    member_key,
    network_key,
    node_key,
    polo_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.directory.search import Query, search
from pilotfleet.registry.directory.trust import Grant
from pilotfleet.registry.directory.visibility import audience, visible_bits
from pilotfleet.registry.directory.watches import Question, Watches, WatchLimits
from pilotfleet.registry.store.base import Entry

if TYPE_CHECKING:
    from pilotfleet.registry.directory.watches import Delta

WINDOW_S = 180.0
NODES = 160
"""More than a sparse set has."""
TAGS = ("gpu", "web", "rare")


def shown(directory: Directory, node: int) -> dict[str, Any]:
    """Return what a watcher keeps of a row."""
    row = agent_row(directory, directory.nodes.by_id[node])
    del row["last_seen"]
    return row


@dataclass
class Watcher:
    """What one watcher knows, and the answers that it did not get."""

    query: Query
    requester: int
    limit: int
    watch: str = ""
    seq: int = 0
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)

    def take(self, directory: Directory, delta: Delta) -> None:
        """Take over an answer."""
        if delta.reset:
            self.rows.clear()
        for node in delta.removed:
            del self.rows[node]
        for node in delta.changed:
            assert node in self.rows
            self.rows[node] = shown(directory, node)
        for node in delta.added:
            assert node not in self.rows
            self.rows[node] = shown(directory, node)
        self.watch, self.seq = delta.watch, delta.seq


class Registry:
    """A directory that is changed through entries, as a store would."""

    def __init__(self, kept: int = 8) -> None:
        self.directory = Directory(online_window_s=WINDOW_S)
        # Few, so that the record of changes is often too short.
        self.directory.changes = ChangeLog(kept)
        self.revision = 0
        self.names = itertools.count(1)
        self.now = 0.0

    def watches(self, **limits: Any) -> Watches:
        return Watches(
            self.directory,
            limits=WatchLimits(**limits),
            make_name=lambda: f"w{next(self.names)}",
        )

    def store(self, key: str, value: bytes | None) -> None:
        self.revision += 1
        self.directory.apply(Entry(key, value, self.revision))

    def put(
        self,
        node: int,
        *tags: str,
        live: bool = True,
        public: bool = True,
        created: int = 1000,
    ) -> None:
        key = node.to_bytes(32, "big")
        record = NodeRecord(node, key, created, public=public, tags=tags, live=live)
        self.store(node_key(node), encode_record(record))

    def ask(self, watches: Watches, watcher: Watcher) -> Delta:
        requester = self.directory.nodes.get_live(watcher.requester)
        question = Question(
            watcher.query,
            requester if watcher.requester else None,
            watcher.watch,
            watcher.seq,
            watcher.limit,
            "192.0.2.1",
        )
        watch = watches.open(question, self.now)
        return watches.compare(watch, watcher.limit)


class WatchMachine(RuleBasedStateMachine):
    """Changes a directory; watchers ask, miss answers, and are forgotten."""

    watchers = Bundle("watchers")

    @initialize()
    def begin(self) -> None:
        self.registry = Registry()
        self.directory = self.registry.directory
        self.watches = self.registry.watches(forget_after_s=50)
        self.wall = 1000
        self.live: dict[int, bool] = {}
        self.hosts: dict[str, int] = {}
        self.members: set[tuple[int, int]] = set()
        for network in (1, 2):
            record = NetworkRecord(network, f"n{network}")
            self.registry.store(network_key(network), encode_record(record))
        for node in range(1, NODES - 20):
            self.put(node, node % 9 > 0, ("gpu",) if node % 5 else ())

    @rule(
        node=st.integers(1, NODES),
        public=st.booleans(),
        tags=st.lists(st.sampled_from(TAGS), unique=True).map(tuple),
    )
    def put(self, node: int, public: bool, tags: tuple[str, ...]) -> None:
        self.live[node] = True
        self.registry.put(node, *tags, public=public, created=self.wall)

    @rule(node=st.integers(5, NODES))
    def end(self, node: int) -> None:
        if self.live.get(node):
            self.live[node] = False
            self.registry.put(node, live=False)

    @rule(node=st.integers(1, NODES), name=st.sampled_from(["w-1", "w-2", "x-1"]))
    def name(self, node: int, name: str) -> None:
        if node not in self.live:
            return
        if self.hosts.get(name) == node:
            del self.hosts[name]
            self.registry.store(host_key(name), None)
        else:
            self.hosts[name] = node
            self.registry.store(host_key(name), encode_record(Claim(node)))

    @rule(node=st.integers(1, NODES), network=st.sampled_from([1, 2]))
    def join_or_leave(self, node: int, network: int) -> None:
        self.members ^= {(node, network)}
        joins = (node, network) in self.members
        value = encode_record(MemberRecord()) if joins else None
        self.registry.store(member_key(network, node), value)

    @rule(
        node=st.integers(1, NODES),
        peer=st.integers(1, 4),
        grant=st.sampled_from([None, *Grant]),
    )
    def trust(self, node: int, peer: int, grant: Grant | None) -> None:
        value = None if grant is None else grant.value
        self.registry.store(grant_key(node, peer), value)

    @rule(node=st.integers(1, NODES), score=st.integers(-3, 3))
    def award(self, node: int, score: int) -> None:
        record = encode_record(PoloRecord(score=score))
        self.registry.store(polo_key(node), record)

    @rule(some=st.sets(st.integers(1, NODES), max_size=20))
    def hear(self, some: set[int]) -> None:
        for node in some:
            self.directory.touch(node, self.wall)

    @rule(seconds=st.integers(1, 200))
    def wait(self, seconds: int) -> None:
        self.wall += seconds
        self.registry.now += seconds / 10

    @rule()
    def restart(self) -> None:
        self.watches = self.registry.watches(forget_after_s=50)

    @rule(
        target=watchers,
        tags=st.lists(st.sampled_from((*TAGS, "none")), unique=True, max_size=2),
        any_tag=st.booleans(),
        prefix=st.sampled_from(["", "w", "w-1"]),
        online=st.booleans(),
        requester=st.integers(0, 4),
        limit=st.integers(1, 40) | st.just(1000),
    )
    def begin_to_watch(
        self,
        tags: list[str],
        any_tag: bool,
        prefix: str,
        online: bool,
        requester: int,
        limit: int,
    ) -> Watcher:
        query = Query(tuple(sorted(tags)), any_tag, prefix, online, limit=0)
        return Watcher(query, requester, limit)

    @rule(watcher=watchers, is_lost=st.booleans())
    def ask(self, watcher: Watcher, is_lost: bool) -> None:
        self.directory.expire_online(self.wall)
        delta = self.registry.ask(self.watches, watcher)
        assert delta.size <= watcher.limit
        if not is_lost:
            watcher.take(self.directory, delta)

    @rule(watcher=watchers, requester=st.integers(0, 4))
    def ask_for_the_watch_of_another(self, watcher: Watcher, requester: int) -> None:
        stolen = Watcher(
            watcher.query, requester, watcher.limit, watcher.watch, watcher.seq
        )
        if requester != watcher.requester:
            assert self.registry.ask(self.watches, stolen).reset

    @rule(
        watcher=watchers,
        before=st.sets(st.integers(1, NODES), max_size=10),
        after=st.sets(st.integers(1, NODES), max_size=10),
    )
    def lose(self, watcher: Watcher, before: set[int], after: set[int]) -> None:
        """Lose an answer with news, and have some of them undone again."""
        self.settle(watcher)
        for node in before:
            self.toggle(node)
        self.directory.expire_online(self.wall)
        self.registry.ask(self.watches, watcher)
        for node in after:
            self.toggle(node)
        self.settle(watcher)

    def toggle(self, node: int) -> None:
        found = self.directory.nodes.get_live(node)
        has_tags = found is not None and bool(found.record.tags)
        self.put(node, True, () if has_tags else ("gpu", "web"))

    @rule(watcher=watchers)
    def settle(self, watcher: Watcher) -> None:
        """Ask until there is nothing new: then the watcher knows what search finds."""
        self.directory.expire_online(self.wall)
        for _ in range(2 * NODES):
            delta = self.registry.ask(self.watches, watcher)
            watcher.take(self.directory, delta)
            if not delta.is_news:
                break
        node = self.directory.nodes.get_live(watcher.requester)
        query = Query(
            watcher.query.tags,
            watcher.query.any_tag,
            watcher.query.hostname_prefix,
            watcher.query.online,
            limit=1000,
        )
        page = search(self.directory, query, node)
        found = {n.record.id: shown(self.directory, n.record.id) for n in page.nodes}
        assert watcher.rows == found
        assert (delta.total, delta.more) == (page.total, False)

    @invariant()
    def memory_is_counted(self) -> None:
        if not hasattr(self, "watches"):
            return
        held = {
            ids
            for watch in self.watches._watches.values()
            for state in (watch.base, watch.last)
            for ids in (state.told, state.stale)
        }
        assert self.watches.size_bytes == sum(ids.size_bytes for ids in held)


TestWatches = WatchMachine.TestCase
TestWatches.settings = settings(max_examples=120, stateful_step_count=50)


def watcher_of(*tags: str, requester: int = 0, limit: int = 1000) -> Watcher:
    return Watcher(Query(tags, limit=0), requester, limit)


def test_a_lost_answer_is_made_anew_from_where_the_watcher_is() -> None:
    registry = Registry()
    registry.put(1, "gpu")
    watches, watcher = registry.watches(), watcher_of("gpu")
    watcher.take(registry.directory, registry.ask(watches, watcher))
    registry.put(2, "gpu")
    lost = registry.ask(watches, watcher)
    assert lost.added == [2]
    registry.put(1, "web")
    again = registry.ask(watches, watcher)
    assert (again.added, again.removed, again.reset) == ([2], [1], False)
    # The lost one may have been on its way all the same: then it is too late.
    assert again.seq != lost.seq
    watcher.seq = lost.seq
    assert registry.ask(watches, watcher).reset


def test_pages_of_a_reset_are_asked_for_at_once() -> None:
    registry = Registry()
    for node in range(1, 8):
        registry.put(node)
    watches, watcher = registry.watches(), watcher_of(limit=3)
    pages = []
    for _ in range(3):
        delta = registry.ask(watches, watcher)
        pages.append((delta.reset, delta.added, delta.more, delta.total))
        watcher.take(registry.directory, delta)
    assert pages == [
        (True, [1, 2, 3], True, 7),
        (False, [4, 5, 6], True, 7),
        (False, [7], False, 7),
    ]


def test_only_what_a_row_shows_counts_as_a_change() -> None:
    registry = Registry(kept=100)
    directory = registry.directory
    for node in (1, 2):
        registry.put(node, "gpu")
    watches, watcher = registry.watches(), watcher_of("gpu")
    watcher.take(directory, registry.ask(watches, watcher))
    before = directory.changes.revision
    directory.touch(1, 1100)
    key = (1).to_bytes(32, "big")
    moved = NodeRecord(1, key, 1000, public=True, tags=("gpu",), endpoint="192.0.2.9:1")
    registry.store(node_key(1), encode_record(moved))
    assert directory.changes.revision == before
    assert not registry.ask(watches, watcher).is_news
    registry.store(polo_key(2), encode_record(PoloRecord(score=5)))
    assert registry.ask(watches, watcher).changed == [2]


def test_after_too_many_changes_all_told_rows_count_as_changed() -> None:
    registry = Registry(kept=4)
    for node in range(1, 11):
        registry.put(node, "gpu")
    watches, watcher = registry.watches(), watcher_of("gpu")
    watcher.take(registry.directory, registry.ask(watches, watcher))
    for score in range(1, 7):
        registry.store(polo_key(1), encode_record(PoloRecord(score=score)))
    delta = registry.ask(watches, watcher)
    assert (delta.changed, delta.reset) == (list(range(1, 11)), False)


def test_a_change_is_told_though_the_node_was_away_for_a_page() -> None:
    registry = Registry(kept=100)
    for node in (1, 2, 3):
        registry.put(node)
    watches, watcher = registry.watches(), watcher_of()
    watcher.take(registry.directory, registry.ask(watches, watcher))
    watcher.limit = 1
    registry.store(polo_key(2), encode_record(PoloRecord(score=5)))
    for node in (1, 2):
        registry.put(node, public=False)
    delta = registry.ask(watches, watcher)
    assert (delta.removed, delta.more) == ([1], True)
    watcher.take(registry.directory, delta)
    registry.put(2)
    delta = registry.ask(watches, watcher)
    assert (delta.removed, delta.changed, delta.more) == ([], [2], False)


def test_what_is_no_longer_visible_is_removed() -> None:
    registry = Registry()
    member = encode_record(MemberRecord())
    registry.store(network_key(1), encode_record(NetworkRecord(1, "n")))
    for node in (1, 2, 3, 4):
        registry.put(node, public=node == 4)
    for node in (1, 2):
        registry.store(member_key(1, node), member)
    registry.store(grant_key(3, 1), Grant.CONSENT.value)
    watches, watcher = registry.watches(), watcher_of(requester=1)
    watcher.take(registry.directory, registry.ask(watches, watcher))
    assert sorted(watcher.rows) == [1, 2, 3, 4]
    registry.store(member_key(1, 2), None)
    registry.store(grant_key(3, 1), None)
    registry.put(4, public=False)
    delta = registry.ask(watches, watcher)
    assert (delta.removed, delta.total) == ([2, 3, 4], 1)


def test_a_watcher_that_has_gone_is_told_so() -> None:
    registry = Registry()
    registry.put(1, public=False)
    watches, watcher = registry.watches(), watcher_of(requester=1)
    question = Question(watcher.query, registry.directory.nodes.by_id[1])
    watch = watches.open(question, 0.0)
    watches.compare(watch, 10)
    registry.put(1, live=False)
    with pytest.raises(Refused, match="node 1: node not found"):
        watches.compare(watch, 10)
    assert len(watches) == watches.size_bytes == 0


def test_equal_watches_share_what_they_were_told() -> None:
    registry = Registry(kept=1000)
    for node in range(1, 2000):
        registry.put(node, "gpu")
    watches = registry.watches()
    watchers = [watcher_of("gpu", limit=5000) for _ in range(50)]
    for number, watcher in enumerate(watchers):
        # All of them begin at another time.
        registry.put(3000 + number, "gpu")
        watcher.take(registry.directory, registry.ask(watches, watcher))
    registry.put(4000, "gpu")
    for _ in range(2):
        for watcher in watchers:
            watcher.take(registry.directory, registry.ask(watches, watcher))
    assert watches.size_bytes < 3 * 600
    assert all(len(watcher.rows) == 1999 + 51 for watcher in watchers)


def test_watches_are_bounded() -> None:
    registry = Registry()
    for node in range(1, 100):
        registry.put(node, "gpu")
    watches = registry.watches(most=3, most_per_ip=2, forget_after_s=120)
    query = Query(limit=0)
    local = Question(query)
    first = Question(query, source="192.0.2.1")
    for _ in range(2):
        watches.open(first, 0.0)
    with pytest.raises(Refused, match=r"too many watches from 192\.0\.2\.1 \(max 2\)"):
        watches.open(first, 0.0)
    watches.open(local, 100.0)
    with pytest.raises(Refused, match=r"too many watches \(max 3\)") as refused:
        watches.open(local, 110.0)
    assert refused.value.facts["retry_after"] > 0
    watches.open(first, 121.0)
    assert len(watches) == 2


@pytest.mark.parametrize("limit", ["size_bytes", "size_bytes_per_ip"])
def test_memory_of_watches_is_bounded(limit: str) -> None:
    registry = Registry()
    for node in range(1, 5000):
        registry.put(node, "gpu")
    watches = registry.watches(**{limit: 700})
    watcher = watcher_of("gpu", limit=100)

    def ask_for_all() -> None:
        for _ in range(100):
            watcher.take(registry.directory, registry.ask(watches, watcher))

    with pytest.raises(Refused, match="take too much memory: ask again later"):
        ask_for_all()
    assert len(watches) == watches.size_bytes == 0


def test_what_is_kept_for_equal_questions_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watches_module, "RESULTS", 3)
    monkeypatch.setattr(watches_module, "STEPS", 2)
    registry = Registry()
    for node in range(1, 40):
        registry.put(node, f"t{node % 8}")
    watches = registry.watches()
    watchers = [watcher_of(f"t{number}", limit=1) for number in range(8)]
    for _ in range(8):
        for watcher in watchers:
            watcher.take(registry.directory, registry.ask(watches, watcher))
    assert len(watches._found) == 3
    assert len(watches._steps) <= 2
    assert sum(len(watcher.rows) for watcher in watchers) == 39


def test_the_record_of_changes_forgets_the_oldest() -> None:
    changes = ChangeLog(4)
    for node in (5, 3, 5):
        changes.note_row(node)
    assert changes.rows_since(0) == [3, 5]
    assert changes.rows_since(3) == []
    changes.note_row(9)
    changes.note_row(1)
    assert changes.rows_since(0) is None
    assert changes.rows_since(1) == [1, 3, 5, 9]
    revision = changes.revision
    changes.note_view()
    assert changes.revision == revision + 1
    assert changes.rows_since(5) == []


def test_audiences_are_equal_only_if_they_see_the_same() -> None:
    registry = Registry()
    registry.store(network_key(1), encode_record(NetworkRecord(1, "n")))
    for node in range(1, 7):
        registry.put(node, public=node in (5, 6))
    for node in (1, 2, 3):
        registry.store(member_key(1, node), encode_record(MemberRecord()))
    registry.store(grant_key(4, 3), Grant.CONSENT.value)
    directory = registry.directory
    seen: dict[Any, int] = {}
    for asker in directory.nodes.by_id.values():
        bits = visible_bits(directory, asker)
        group = audience(directory, asker)
        assert seen.setdefault(group, bits) == bits
    assert len(seen) == 4
