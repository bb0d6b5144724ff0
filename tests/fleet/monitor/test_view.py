"""A view's table, pages and limits, with whatever a member may publish."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import InvalidArgument, NotFound
from pilotfleet.fleet.monitor.figures import AgentQuery, AgentState
from pilotfleet.fleet.monitor.samples import DirectoryAgent
from pilotfleet.fleet.monitor.view.fleetview import FleetView
from tests.fleet.monitor.events import START, health, node, tasks

if TYPE_CHECKING:
    from typing import Any

TOPICS = ("fleet.health", "fleet.task", "fleet.node", "fleet.broker")


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"7", b"[1]", b"null", b"{}", b"\xff\xfe", b'{"agent": "\xff"}'),
        b'{"agent": "\\ud800"}',
        b'{"agent": ' * 90_000,
        b'{"agent":"a","status":' + b"[" * 90_000 + b"]" * 90_000 + b"}",
        b'{"agent": {"a": 1}, "status": "idle"}',
        b'{"agent":"a","status":["[/b]"]}',
        b'{"agent":"%s"}' % (b"a" * 65),
        b'{"agent":"%s"}' % (b"a" * 10_000_000),
        b'{"agent":""}',
        b'{"agent":"a\\u001b[2J"}',
        b'{"agent":"a\\nb"}',
        b'{"agent":"a","tasks_completed":1e999}',
        b'{"agent":"a","tasks_completed":NaN}',
        b'{"agent":"a","tasks_completed":-1}',
        b'{"agent":"a","tasks_completed":1%s}' % (b"0" * 4_000),
        b'{"agent":"a","uptime_hours":1e300}',
        b'{"agent":"a","interval_s":0}',
        b'{"agent":"a","interval_s":-5}',
        b'{"tasks":[{"agent":"a","task_id":"t","status":"FAILED","ms":NaN}]}',
        b'{"tasks":[{"agent":"a","task_id":"t","status":"FAILED","ms":-1}]}',
        b'{"tasks":[{"agent":"a","task_id":"t","status":"FAILED","ms":1e400}]}',
        b'{"tasks":[{"agent":"a","task_id":"t\\u0000","status":"FAILED","ms":1}]}',
        b'{"tasks":[7]}',
        b'{"tasks":7}',
        b'{"tasks":[%s7]}' % (b"7," * 100_000),
        b'{"host":"h","totals":{"tunnels":-1}}',
        b'{"host":"h","totals":{"bytes_sent":1%s}}' % (b"0" * 30),
        b'{"host":"h","totals":7}',
        b'{"host":"h","totals":{},"agents":[{"agent":"a","node_id":4294967296}]}',
        b'{"broker":7}',
        b'{"broker":"\\u0007"}',
    ],
)
def test_what_is_of_another_form_is_counted_and_no_more(
    topic: str, payload: bytes
) -> None:
    view = FleetView("batch")
    view.take(topic, payload, at=START)
    figures = view.figures()
    assert (figures.events, figures.events_refused) == (1, 1)
    assert figures.agents.total == 0
    assert (figures.tasks.completed, figures.tasks.failed) == (0, 0)
    assert view.agents(AgentQuery()).total == 0
    assert len(view.recent_events()[0].data) <= 300
    FleetView.load(view.save(), at=START)


@given(st.sampled_from([*TOPICS, "fleet.other", "x" * 1_024]), st.binary())
def test_no_bytes_are_too_odd(topic: str, payload: bytes) -> None:
    view = FleetView("batch")
    view.take("fleet.health", health("a"), at=START)
    view.take(topic, payload, at=START)
    view.figures()
    view.agent("a")
    FleetView.load(view.save(), at=START)


JSON = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats()),
        st.text(max_size=5),
        st.sampled_from(["a", "FAILED"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *("agent", "status", "tasks", "task_id", "ms", "at", "host"),
                    *("totals", "agents", "tunnels", "broker", "interval_s"),
                ]
            ),
            inner,
            max_size=6,
        ),
    ),
)


@given(st.sampled_from(TOPICS), JSON)
def test_no_json_is_too_odd(topic: str, data: Any) -> None:
    view = FleetView("batch")
    view.take(topic, json.dumps(data).encode(), at=START)
    view.advance(START + 1)
    view.figures()
    FleetView.load(view.save(), at=START)


def test_extremes_that_are_allowed_are_kept() -> None:
    view = FleetView("batch")
    most = 1 << 53
    for _ in range(5):
        for sent in (most, 0):
            report = node("h", bytes_sent=sent, bytes_received=sent, tunnels=most)
            view.take("fleet.node", report, at=START)
    view.take("fleet.task", tasks(("a", "t", True, 1e12, 1e12)), at=START)
    view.take("fleet.health", health("<b>" * 20, "\x1b[2J" * 20), at=START)
    row = view.agents(AgentQuery()).rows[0]
    assert row.name == "<b>" * 20
    assert row.status.isprintable()
    assert len(row.status) == 32
    FleetView.load(view.save(), at=START)


def table() -> FleetView:
    """Return a fleet of twelve agents."""
    view = FleetView("batch")
    view.take_agents(
        [
            DirectoryAgent(
                number,
                f"0:0000.0000.{number:04X}",
                f"worker-{number}",
                ("worker", "gpu") if number % 3 == 0 else ("worker",),
                number * 7 % 5,
            )
            for number in range(1, 13)
        ],
        at=START,
    )
    for number in range(1, 13):
        status = "stopped" if number == 12 else "idle"
        data = health(f"worker-{number}", status, tasks_completed=number % 4)
        view.take("fleet.health", data, at=START + (30 if number > 5 else 0))
    view.advance(START + 30)
    return view


def numbers(view: FleetView, **query: Any) -> list[int]:
    """Return the numbers of the workers that a query gives."""
    rows = view.agents(AgentQuery(**query)).rows
    return [int(row.name.removeprefix("worker-")) for row in rows]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ({"sort": "-name"}, [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        ({"search": "ER-1"}, [1, 10, 11]),
        ({"search": "nobody"}, []),
        ({"tags": ("gpu",)}, [3, 6, 9]),
        ({"tags": ("gpu", "worker"), "search": "6"}, [6]),
        ({"tags": ("other",)}, []),
        ({"states": (AgentState.LATE,)}, [1, 2, 3, 4, 5]),
        ({"states": (AgentState.LEFT,)}, [12]),
        ({"states": tuple(AgentState), "offset": 9}, [10, 11, 12]),
        ({"offset": 2, "limit": 3}, [3, 4, 5]),
        ({"limit": 0}, []),
        ({"offset": 99}, []),
        ({"sort": "-completed", "limit": 4}, [3, 7, 11, 2]),
        ({"sort": "completed", "limit": 4}, [4, 8, 1, 5]),
        ({"sort": "-state", "limit": 2}, [1, 2]),
        ({"sort": "polo", "limit": 3}, [5, 10, 3]),
        ({"sort": "last_seen", "limit": 2}, [1, 2]),
        ({"sort": "-last_seen", "limit": 2}, [6, 7]),
        ({"sort": "tunnels", "limit": 2}, [1, 2]),
        ({"sort": "status", "limit": 2}, [1, 2]),
        ({"sort": "failed", "limit": 2}, [1, 2]),
    ],
)
def test_rows_of_the_table(query: dict[str, Any], expected: list[int]) -> None:
    assert numbers(table(), **query) == expected


def test_total_is_that_of_all_pages() -> None:
    page = table().agents(AgentQuery(offset=2, limit=3))
    assert (page.total, page.offset, len(page.rows)) == (11, 2, 3)


def test_unknown_order_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="sort"):
        table().agents(AgentQuery(sort="-colour"))


def test_page_of_an_agent() -> None:
    view = table()
    rows = [("worker-1", f"t{n}", n % 2 == 0, n, START + n) for n in range(25)]
    view.take("fleet.task", tasks(*rows), at=START + 30)
    peers = ["0:0000.0000.0002", "0:0000.0000.00FF", "nonsense"]
    row = {"agent": "worker-1", "node_id": 1, "tunnels": 2, "peers": peers}
    view.take("fleet.node", node("h", rows=[row], version="0.5"), at=START + 30)
    view.take_links([(1, 3), (4, 1), (5, 6)], at=START + 30)
    for n in range(25):
        view.take("fleet.custom", b'{"agent":"worker-1","n":%d}' % n, at=START + 31)
    found = view.agent("worker-1")
    assert (found.row.tunnels, found.row.version, found.row.node_id) == (2, "0.5", 1)
    assert found.peers == ("0:0000.0000.00FF", "worker-2")
    assert found.trusted == ("worker-3", "worker-4")
    assert found.address == "0:0000.0000.0001"
    # The last twenty, newest first.
    assert [task.task_id for task in found.tasks] == [f"t{n}" for n in range(24, 4, -1)]
    assert found.tasks[0].at == START + 24
    assert len(found.events) == 20
    assert found.events[0].data == '{"agent":"worker-1","n":24}'
    with pytest.raises(NotFound, match="worker-99"):
        view.agent("worker-99")


def test_health_that_says_the_same_is_no_news() -> None:
    view = FleetView("batch")
    for at in range(0, 50, 10):
        view.take("fleet.health", health("a", uptime_hours=at), at=START + at)
    view.take("fleet.health", health("a", "busy"), at=START + 60)
    assert [event.at for event in view.agent("a").events] == [START + 60, START]
    assert len(view.recent_events()) == 6


def test_few_are_kept_of_each_of_many() -> None:
    view = FleetView("batch")
    for number in range(10_000):
        view.take("fleet.health", health(f"w{number}"), at=START)
    for n in range(5):
        row = ("w1", f"t{n}", True, 1, START)
        view.take("fleet.task", tasks(row), at=START)
    assert len(view.agent("w1").tasks) == 2


def test_tags_are_bounded_and_those_of_most_are_shown() -> None:
    view = FleetView("batch")
    rows = [
        DirectoryAgent(n + 1, "", f"w{n}", ("all", f"t{n:04}", "x" * 65, "\n"))
        for n in range(1_500)
    ]
    view.take_agents(rows, at=START)
    for n in range(1_500):
        view.take("fleet.health", health(f"w{n}"), at=START)
    view.take_agents(rows, at=START + 15)
    view.take("fleet.task", tasks(("w3", "t", True, 5, START)), at=START + 15)
    found = view.tags()
    assert len(found) == 100
    assert [row.tag for row in found[:3]] == ["all", "t0000", "t0001"]
    assert found[0].agents.alive == 1_500
    assert [row.tag for row in found if row.tasks.completed] == ["all", "t0003"]


def test_tag_that_is_taken_away_is_gone() -> None:
    view = table()
    row = DirectoryAgent(1, "", "worker-1", ("new",))
    view.take_agents([row], at=START + 30)
    tags = {row.tag: row.agents.total for row in view.tags()}
    # Of the others the directory's last word counts.
    assert tags == {"worker": 10, "gpu": 3, "new": 1}


def test_graph_shows_those_with_the_most_links() -> None:
    view = table()
    view.take_links([(1, n) for n in range(2, 6)] + [(2, 3), (1, 77)], at=START + 30)
    peers = ["0:0000.0000.0001", "0:0000.0000.0003"]
    row = {"agent": "worker-2", "node_id": 2, "tunnels": 1, "peers": peers}
    view.take("fleet.node", node("h", rows=[row]), at=START + 30)
    graph = view.trust_graph(limit=3)
    assert [row.name for row in graph.nodes] == ["worker-1", "worker-2", "worker-3"]
    assert {(link.one, link.other, link.kind) for link in graph.links} == {
        ("worker-1", "worker-2", "trust"),
        ("worker-1", "worker-3", "trust"),
        ("worker-2", "worker-3", "trust"),
        ("worker-1", "worker-2", "tunnel"),
        ("worker-2", "worker-3", "tunnel"),
    }
    # Eleven of the table and one that is not of the fleet.
    assert (graph.hidden_nodes, graph.hidden_links) == (9, 3)
    whole = view.trust_graph()
    assert (len(whole.nodes), whole.hidden_nodes, whole.hidden_links) == (12, 0, 0)
    assert whole.nodes[-1].name != ""
