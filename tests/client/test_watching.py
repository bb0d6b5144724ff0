"""The core of a watch against a registry of a few lines, with everything that happens.

Replies are lost, come late and twice; the registry forgets; pages are short. Whatever
happened, in the end the client knows what the registry knows, and what it told its user
leads there step by step, without a step that was not real.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pilotfleet.client.watching import (
    Change,
    ChangeKind,
    Row,
    RowBudget,
    TooManyRows,
    Watching,
    WatchQuery,
)
from pilotfleet.errors import ProtocolError

NODES = st.integers(1, 12)


def row(node: int, tags: tuple[str, ...] = (), seen: str = "") -> dict[str, Any]:
    return {
        "node_id": node,
        "address": f"0:0000.0000.{node:04X}",
        "hostname": f"w-{node}",
        "tags": list(tags),
        "polo": 0,
        "online": True,
        "last_seen": seen,
    }


@dataclass
class Model:
    """A registry with one watch, as the contract says and no cleverer."""

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    name: str = ""
    names: int = 0
    states: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """What the watcher was told, by the last two values of seq."""

    def watch(self, name: str, seq: int, limit: int) -> dict[str, Any]:
        reset = name != self.name or not name or seq not in self.states
        if reset:
            self.names += 1
            self.name, self.states, seq = f"watch-{self.names}", {0: {}}, 0
        told = dict(self.states[seq])
        removed = [node for node in told if node not in self.rows][:limit]
        room = limit - len(removed)
        changed = [
            n for n in told if n in self.rows and not same(told[n], self.rows[n])
        ]
        changed = changed[:room]
        added = [node for node in sorted(self.rows) if node not in told]
        added = added[: room - len(changed)]
        for node in removed:
            del told[node]
        told |= {node: self.rows[node] for node in (*changed, *added)}
        news = reset or removed or changed or added
        following = max(self.states) + 1 if news else seq
        self.states = {seq: self.states[seq], following: told}
        return {
            "type": "watch_ok",
            "watch": self.name,
            "seq": following,
            "reset": reset,
            "added": [self.rows[node] for node in added],
            "changed": [self.rows[node] for node in changed],
            "removed": removed,
            "total": len(self.rows),
            "more": self._has_more(told),
        }

    def search(self, cursor: str, limit: int) -> dict[str, Any]:
        after = int(cursor or 0)
        found = [node for node in sorted(self.rows) if node > after]
        page = found[:limit]
        more = str(page[-1]) if len(found) > limit else ""
        agents = [self.rows[node] for node in page]
        return {"type": "search_ok", "agents": agents, "next_cursor": more}

    def _has_more(self, told: dict[int, dict[str, Any]]) -> bool:
        return told.keys() != self.rows.keys() or any(
            not same(told[node], self.rows[node]) for node in told
        )


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return {**one, "last_seen": ""} == {**two, "last_seen": ""}


class User:
    """Somebody who believes what he is told, and complains when it makes no sense."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}

    def hear(self, changes: list[Change]) -> None:
        for change in changes:
            node = change.row.node_id
            before = self.rows.get(node)
            match change.kind:
                case ChangeKind.ADDED:
                    assert before is None, "added twice"
                    self.rows[node] = change.row
                case ChangeKind.CHANGED:
                    assert before is not None, "changed before it was there"
                    assert not before.is_same(change.row), "changed to the same"
                    self.rows[node] = change.row
                case ChangeKind.REMOVED:
                    assert before is not None, "removed, and was not there"
                    del self.rows[node]

    def seen(self) -> dict[int, tuple[str, ...]]:
        return {node: row.tags for node, row in self.rows.items()}


class WatchMachine(RuleBasedStateMachine):
    """Anything may happen between a registry and one who watches it."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Model()
        self.budget = RowBudget(1000)
        self.client = Watching(self.budget)
        self.user = User()
        self.old: list[dict[str, Any]] = []
        self.removed_ever: set[int] = set()

    @rule(node=NODES, tag=st.sampled_from(["a", "b"]))
    def put(self, node: int, tag: str) -> None:
        self.registry.rows[node] = row(node, (tag,))

    @rule(node=NODES)
    def beat(self, node: int) -> None:
        if node in self.registry.rows:
            known = self.registry.rows[node]
            self.registry.rows[node] = {**known, "last_seen": "later"}

    @rule(node=NODES)
    def remove(self, node: int) -> None:
        self.removed_ever.add(node)
        self.registry.rows.pop(node, None)

    @rule(limit=st.integers(1, 5))
    def ask(self, limit: int) -> None:
        self.hear(self.question(limit))

    @rule(limit=st.integers(1, 5))
    def ask_and_lose_the_answer(self, limit: int) -> None:
        self.old.append(self.question(limit))

    @rule()
    def hear_an_old_answer_again(self) -> None:
        if self.old:
            reply = self.old[0]
            is_late = reply["watch"] == self.client.watch and not reply["reset"]
            if is_late and reply["seq"] <= self.client.seq:
                before = dict(self.client.known)
                self.hear(reply)
                assert self.client.known == before

    @rule()
    def forget(self) -> None:
        self.registry.name = ""

    @rule(limit=st.integers(1, 5))
    def poll(self, limit: int) -> None:
        """As if the registry were an older one for a while."""
        self.client.begin_pass()
        while True:
            page = self.registry.search(self.client.cursor, limit)
            self.user.hear(self.client.receive_page(page))
            if not self.client.cursor:
                break
        self.check_equal()

    @rule(limit=st.integers(1, 5))
    def begin_to_poll(self, limit: int) -> None:
        self.client.begin_pass()
        page = self.registry.search(self.client.cursor, limit)
        self.user.hear(self.client.receive_page(page))

    @rule(limit=st.integers(1, 5))
    def catch_up(self, limit: int) -> None:
        for _ in range(100):
            self.hear(self.question(limit))
            if not self.client.has_more:
                break
        self.check_equal()

    @invariant()
    def the_user_knows_what_the_client_knows(self) -> None:
        known = {node: row.tags for node, row in self.client.known.items()}
        assert self.user.seen() == known
        assert self.budget.used == len(known)

    @invariant()
    def nobody_is_removed_who_never_was(self) -> None:
        stayed = self.registry.rows.keys() - self.removed_ever
        assert stayed & self.heard_ever <= self.user.rows.keys()

    @property
    def heard_ever(self) -> set[int]:
        self._heard = getattr(self, "_heard", set()) | self.user.rows.keys()
        return self._heard

    def question(self, limit: int) -> dict[str, Any]:
        request = self.client.request()
        return self.registry.watch(request["watch"], request["seq"], limit)

    def hear(self, reply: dict[str, Any]) -> None:
        self.old = [*self.old, reply][-5:]
        self.user.hear(self.client.receive(reply))

    def check_equal(self) -> None:
        wanted = {n: tuple(r["tags"]) for n, r in self.registry.rows.items()}
        assert self.user.seen() == wanted
        assert self.client.is_complete


WatchMachine.TestCase.settings = settings(max_examples=60, deadline=None)
TestWatchMachine = WatchMachine.TestCase


def watching(*nodes: int) -> tuple[Watching, Model]:
    """Return a client that knows some nodes of a registry."""
    registry, client = (
        Model({n: row(n, ("a",)) for n in nodes}),
        Watching(RowBudget(99)),
    )
    client.receive(registry.watch("", 0, 1000))
    return client, registry


def described(changes: list[Change]) -> list[tuple[str, int]]:
    return [(str(change.kind), change.row.node_id) for change in changes]


def ask(client: Watching, registry: Model, limit: int = 1000) -> list[tuple[str, int]]:
    request = client.request()
    reply = registry.watch(request["watch"], request["seq"], limit)
    return described(client.receive(reply))


def test_first_answer_is_told_page_by_page() -> None:
    registry = Model({n: row(n) for n in range(1, 6)})
    client = Watching(RowBudget(99))
    assert ask(client, registry, 2) == [("added", 1), ("added", 2)]
    assert client.has_more
    assert not client.is_complete
    ask(client, registry, 2)
    assert ask(client, registry, 2) == [("added", 5)]
    assert client.is_complete


def test_new_beginning_shows_only_what_is_different() -> None:
    client, registry = watching(1, 2, 3)
    registry.name = ""
    del registry.rows[2]
    registry.rows[3] = row(3, ("b",))
    registry.rows[4] = row(4)
    assert ask(client, registry) == [("changed", 3), ("added", 4), ("removed", 2)]


def test_removals_of_a_new_beginning_wait_for_its_end() -> None:
    client, registry = watching(1, 2, 3, 4)
    registry.name = ""
    del registry.rows[1]
    assert ask(client, registry, 1) == []
    assert ask(client, registry, 1) == []
    assert ask(client, registry, 1) == [("removed", 1)]


def test_interrupted_new_beginning_removes_nobody() -> None:
    client, registry = watching(1, 2, 3)
    registry.name = ""
    assert ask(client, registry, 1) == []
    registry.name = ""
    assert ask(client, registry, 1) == []
    assert ask(client, registry) == []
    assert set(client.known) == {1, 2, 3}


def test_heartbeat_is_no_change() -> None:
    client, registry = watching(1)
    registry.name = ""
    registry.rows[1] = row(1, ("a",), seen="2026-11-23T00:00:00Z")
    assert ask(client, registry) == []
    assert client.known[1].last_seen == "2026-11-23T00:00:00Z"


def test_more_than_may_be_kept_is_an_error() -> None:
    budget = RowBudget(2)
    client, registry = Watching(budget), Model({n: row(n) for n in range(1, 4)})
    with pytest.raises(TooManyRows, match="more than 2 agents"):
        client.receive(registry.watch("", 0, 1000))
    client.close()
    assert budget.used == 0


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"watch": "x", "seq": 2},
        {"watch": "", "seq": 2},
        {"watch": 7, "seq": 2},
        {"watch": "watch-1", "seq": "2"},
        {"watch": "watch-1", "seq": 2, "added": [{}]},
        {"watch": "watch-1", "seq": 2, "added": [{"node_id": 0}]},
        {"watch": "watch-1", "seq": 2, "added": [{"node_id": 1 << 32}]},
        {"watch": "watch-1", "seq": 2, "changed": [{"node_id": 1, "tags": "a"}]},
        {"watch": "watch-1", "seq": 2, "removed": ["1"]},
        {"watch": "watch-1", "seq": 10**400},
        {"watch": "watch-1", "seq": 2, "added": [row(n) for n in range(1, 1002)]},
        {
            "watch": "watch-1",
            "seq": 2,
            "added": [{"node_id": 2, "hostname": "h" * 999}],
        },
        {"watch": "watch-1", "seq": 2, "added": [{"node_id": 2, "tags": ["a"] * 99}]},
        {"watch": "watch-1", "seq": 2, "added": [{"node_id": 2, "polo": 10**400}]},
        {"watch": "y" * 2000, "seq": 2, "reset": True},
    ],
)
def test_strange_reply_changes_nothing(reply: dict[str, Any]) -> None:
    client, _ = watching(1)
    with pytest.raises(ProtocolError):
        client.receive(reply)
    assert set(client.known) == {1}


@pytest.mark.parametrize(
    "page",
    [
        {"agents": [row(2), row(2)]},
        {"agents": [row(3), row(2)], "next_cursor": ""},
        {"agents": [], "next_cursor": "1"},
        {"agents": {}},
        {"agents": [row(2)], "next_cursor": 5},
    ],
)
def test_strange_page_changes_nothing(page: dict[str, Any]) -> None:
    client, _ = watching(1)
    client.begin_pass()
    with pytest.raises(ProtocolError):
        client.receive_page(page)
    assert set(client.known) == {1}


def test_pages_that_do_not_go_on_are_refused() -> None:
    client = Watching(RowBudget(99))
    client.begin_pass()
    client.receive_page({"agents": [row(5)], "next_cursor": "5"})
    with pytest.raises(ProtocolError, match="out of order"):
        client.receive_page({"agents": [row(5)], "next_cursor": "5"})


def test_equal_questions_are_equal() -> None:
    one = WatchQuery.of(["#b", "a", "b"], online=True)
    assert one == WatchQuery.of(["a", "b"], online=True)
    assert one != WatchQuery.of(["a", "b"], online=True, any_tag=True)
    assert WatchQuery.of(["a"]) == WatchQuery.of(["a"], any_tag=True)
    assert hash(one) == hash(WatchQuery.of(["b", "a"], online=True))


def test_answer_that_comes_late_changes_nothing() -> None:
    client, registry = watching(1)
    registry.rows[2] = row(2)
    request = client.request()
    late = registry.watch(request["watch"], request["seq"], 1000)
    assert described(client.receive(late)) == [("added", 2)]
    del registry.rows[2]
    assert ask(client, registry) == [("removed", 2)]
    assert client.receive(late) == []
    assert set(client.known) == {1}
    assert ask(client, registry) == []


def test_watch_begins_anew_after_a_search() -> None:
    """What the search has shown, the registry does not know to have told."""
    client, registry = watching(1)
    registry.rows[2] = row(2)
    client.begin_pass()
    assert described(client.receive_page(registry.search("", 10))) == [("added", 2)]
    del registry.rows[2]
    assert ask(client, registry) == [("removed", 2)]
