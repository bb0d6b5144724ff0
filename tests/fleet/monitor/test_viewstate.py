"""What a view keeps over a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.fleet.monitor.figures import AgentQuery, AgentState
from pilotfleet.fleet.monitor.samples import DirectoryAgent, Recent, Sample
from pilotfleet.fleet.monitor.view.fleetview import FleetView
from tests.fleet.monitor.events import START, health, node, tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.fleet.monitor.times import TimeHistogram

Step = tuple[float, float, "Callable[[FleetView, float], None]"]

NAMES = st.sampled_from(["a", "b", "c", "worker-7"])


def _listen(view: FleetView, at: float) -> None:
    view.listen_from(at)


def _event(topic: str, payload: bytes) -> Callable[[FleetView, float], None]:
    return lambda view, at: view.take(topic, payload, at=at)


def _agents(rows: list[tuple[str, tuple[str, ...], int]]) -> Any:
    agents = [
        DirectoryAgent(number + 1, f"0:{number}", name, tags, polo)
        for number, (name, tags, polo) in enumerate(rows)
    ]
    return lambda view, at: view.take_agents(agents, at=at)


def _links(links: list[tuple[int, int]]) -> Any:
    return lambda view, at: view.take_links(links, at=at)


ROWS = st.tuples(
    NAMES, st.sampled_from("xyz"), st.booleans(), st.floats(0, 1e6), st.just(START)
)
TAGS = st.lists(st.sampled_from(["t", "u", "v"]), unique=True, max_size=3).map(tuple)
ACTIONS = st.one_of(
    st.builds(
        lambda name, status, interval: _event(
            "fleet.health", health(name, status, interval_s=interval)
        ),
        *(NAMES, st.sampled_from(["idle", "busy", "stopped"]), st.floats(0.5, 30)),
    ),
    st.lists(ROWS, max_size=4).map(lambda rows: _event("fleet.task", tasks(*rows))),
    st.builds(
        lambda host, sent, agent: _event(
            "fleet.node",
            node(
                *(host,),
                agents=1,
                tunnels=2,
                bytes_sent=sent,
                version="1",
                rows=[{"agent": agent, "node_id": 9, "tunnels": 3}],
            ),
        ),
        *(st.sampled_from("hi"), st.integers(0, 10**9), NAMES),
    ),
    st.lists(st.tuples(NAMES, TAGS, st.integers(-5, 50)), max_size=4).map(_agents),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=5).map(_links),
    st.just(_event("fleet.health", b"[1]")),
    st.just(_event("fleet.broker", b'{"broker":"hub","published":1}')),
    st.just(_listen),
    st.just(lambda view, at: view.advance(at)),
)
STEPS = st.lists(
    st.tuples(st.one_of(st.floats(0, 3), st.floats(0, 400)), st.floats(0, 30), ACTIONS),
    max_size=30,
)


def told(view: FleetView) -> tuple[Any, ...]:
    """Return everything that must be the same after a restart."""
    everyone = AgentQuery(states=tuple(AgentState), limit=1_000)
    return (
        view.figures(),
        view.tags(),
        view.agents(everyone),
        view.trust_changes(),
        view.task_times().encode(),
        view.save(),
    )


def kept(samples: list[Sample]) -> list[tuple[Any, ...]]:
    """Return samples so that they can be compared."""

    def times(histogram: TimeHistogram | None) -> bytes:
        return b"" if histogram is None else histogram.encode()

    return [
        (
            *(row.second, row.tag, row.completed, row.failed, times(row.times)),
            *(row.gauges, row.trust_linked, row.trust_revoked),
        )
        for row in samples
    ]


@settings(max_examples=200, deadline=None)
@given(STEPS, st.sets(st.integers(0, 29), max_size=4))
def test_restarts_change_nothing(steps: list[Step], restarts: set[int]) -> None:
    one = other = FleetView("batch")
    other = FleetView("batch")
    now, samples = START, list[Sample]()
    for number, (pause_s, age_s, act) in enumerate(steps):
        if number in restarts:
            samples += other.collect()
            other = FleetView.load(other.save(), at=now)
        now += pause_s
        # Some events are of before: another broker's log.
        for view in (one, other):
            act(view, now - age_s if age_s > 20 else now)
    assert told(one)[:-1] == told(other)[:-1]
    assert kept(one.collect()) == kept([*samples, *other.collect()])
    again = FleetView.load(one.save(), at=now)
    assert told(again)[:-1] == told(one)[:-1]


@settings(max_examples=60, deadline=None)
@given(STEPS, st.lists(st.floats(0, 400), max_size=30))
def test_time_may_pass_in_any_steps(steps: list[Step], looks: list[float]) -> None:
    one, other = FleetView("batch"), FleetView("batch")
    now = START
    for number, (pause_s, _, act) in enumerate(steps):
        began, now = now, now + pause_s
        # While nobody listens, time stands still: nothing is said of it then.
        during = [] if act is _listen else looks[number:]
        for look in sorted(at for at in during if at < pause_s):
            other.advance(began + look)
            other.figures()
        act(one, now)
        act(other, now)
    for view in (one, other):
        view.advance(now)
    assert told(one)[:-1] == told(other)[:-1]


def test_who_was_late_before_nobody_listened_is_late_after_it() -> None:
    for is_restarted in (False, True):
        view = FleetView("batch")
        view.take("fleet.health", health("a", interval_s=0.5), at=START + 0.9)
        view.take("fleet.other", b"{}", at=START + 2.95)
        if is_restarted:
            view = FleetView.load(view.save(), at=START + 2.95)
        view.listen_from(START + 3.5)
        view.take("fleet.health", health("b"), at=START - 21)
        assert view.figures().agents.late == 1


def pages(view: FleetView) -> list[Any]:
    """Return what the pages of agents show."""
    return [(view.agent(name).tasks, view.agent(name).events) for name in "ab"]


def test_pages_go_on_with_what_was_handed_on() -> None:
    view = FleetView("batch")
    for name in "ab":
        view.take("fleet.health", health(name), at=START)
    handed: list[Recent] = []
    for number in range(40):
        row = ("a", f"t-{number}", True, 5, START + number)
        view.take("fleet.task", tasks(row), at=START + number)
        view.take("other.topic", b'{"agent":"b"}', at=START + number)
        if number % 3 == 0:
            handed.append(view.new_recent())
    handed.append(view.new_recent())
    assert view.new_recent() == ([], [], 20)
    assert sum(len(each.tasks) for each in handed) == 40
    assert [len(each.events) for each in handed[:2]] == [3, 3]
    again = FleetView.load(view.save(), at=START + 40)
    for each in handed:
        again.take_back(each)
    assert pages(again) == pages(view)
    assert len(again.agent("a").tasks) == 20
    # What was taken back is stored already.
    assert again.new_recent() == ([], [], 20)
    # Nobody of that name is known any more.
    again.take_back(Recent([("c", (1.0, "t", "FAILED", 1.0, ""))], [], 20))


def filled() -> FleetView:
    """Return a view with something of everything."""
    view = FleetView("batch")
    view.take_agents([DirectoryAgent(1, "0:1", "a", ("t",), 5)], at=START)
    view.take("fleet.health", health("a"), at=START)
    view.take("fleet.task", tasks(("a", "x", True, 5, START)), at=START)
    view.take("fleet.node", node("h", agents=1), at=START)
    view.take_links([(1, 2)], at=START)
    return view


def test_damage_is_noticed() -> None:
    data = filled().save()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(DecodeError):
            FleetView.load(bytes(damaged), at=START)
    for size in range(0, len(data), 7):
        with pytest.raises(DecodeError):
            FleetView.load(data[:size], at=START)


@given(st.binary(max_size=200))
def test_other_bytes_are_no_state(data: bytes) -> None:
    with pytest.raises(DecodeError):
        FleetView.load(data, at=START)


def test_state_of_a_clock_that_was_wrong_counts_as_now() -> None:
    data = filled().save()
    view = FleetView.load(data, at=START - 86_400)
    assert view.now == START - 86_400
    view.advance(START - 86_400 + 22)
    assert view.figures().agents.late == 1
    view.take("fleet.health", health("a"), at=START - 86_400 + 23)
    assert view.figures().agents.alive == 1
    assert view.figures().tasks.completed == 1
