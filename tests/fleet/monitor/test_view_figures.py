"""The figures of a fleet against a count of the raw events by other means."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from pilotfleet.fleet.monitor.figures import PoloFigures
from pilotfleet.fleet.monitor.samples import DirectoryAgent
from pilotfleet.fleet.monitor.times import TimeHistogram
from pilotfleet.fleet.monitor.view.fleetview import FleetView
from pilotfleet.fleet.monitor.view.polo import distribution
from tests.fleet.monitor.events import START, health, node, tasks

TASKS = 2_000
AGENTS = 200
SPAN_S = 700.0


def directory() -> list[DirectoryAgent]:
    """Return 200 agents, half of them with the tag ``even``."""
    return [
        DirectoryAgent(
            node_id=number + 1,
            address=f"0:0000.0000.{number + 1:04X}",
            name=f"worker-{number}",
            tags=("worker", "even") if number % 2 == 0 else ("worker",),
            polo=number % 41,
        )
        for number in range(AGENTS)
    ]


def raw_events(seed: int) -> list[tuple[float, str, bytes]]:
    """Return what 200 workers publish: 2,000 tasks of which 7 % fail."""
    rng = random.Random(seed)
    ends = sorted(rng.uniform(0, SPAN_S) for _ in range(TASKS))
    failing = set(rng.sample(range(TASKS), TASKS * 7 // 100))
    events = []
    for number, end in enumerate(ends):
        agent = f"worker-{rng.randrange(AGENTS)}"
        ms = rng.lognormvariate(6, 1)
        row = (agent, f"t{number}", number not in failing, ms, START + end)
        events.append((START + end + 0.2, "fleet.task", tasks(row)))
        if number % 50 == 0:
            # A confirmation got lost, and it was sent again.
            events.append((START + end + 5.2, "fleet.task", tasks(row)))
    for number in range(AGENTS):
        # The last 20 end at 600 s.
        until = 600 if number >= 180 else int(SPAN_S)
        events += [
            (START + at + number / 100, "fleet.health", health(f"worker-{number}"))
            for at in range(0, until, 10)
        ]
    return sorted(events)


def counted(
    events: list[tuple[float, str, bytes]], now: float, tag: str = "worker"
) -> dict[str, Any]:
    """Count the slow way what the figures should say."""
    members = {agent.name for agent in directory() if tag in agent.tags}
    rows: dict[tuple[str, str, float], tuple[float, bool, float]] = {}
    for at, topic, payload in events:
        if topic == "fleet.task" and at <= now:
            for row in json.loads(payload)["tasks"]:
                if row["agent"] in members:
                    key = (row["agent"], row["task_id"], row["at"])
                    rows.setdefault(key, (at, row["status"] == "SUCCEEDED", row["ms"]))
    minute = [row for row in rows.values() if int(row[0]) > int(now) - 60]
    five = [row for row in rows.values() if int(row[0]) > int(now) - 300]
    return {
        "completed": sum(row[1] for row in rows.values()),
        "failed": sum(not row[1] for row in rows.values()),
        "completed_per_minute": sum(row[1] for row in minute),
        "failed_per_minute": sum(not row[1] for row in minute),
        "error_rate": sum(not row[1] for row in five) / len(five),
        "times": sorted(row[2] for row in five),
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_figures_equal_an_independent_count(seed: int) -> None:
    events = raw_events(seed)
    view = FleetView("batch")
    view.take_agents(directory(), at=START)
    stops = [START + at + 0.9 for at in (9, 100, 350, 620, 640, 655, 699, 705)]
    waiting = list(reversed(events))
    for stop in stops:
        while waiting and waiting[-1][0] <= stop:
            at, topic, payload = waiting.pop()
            view.take(topic, payload, at=at)
        view.advance(stop)
        expected = counted(events, stop)
        found = view.figures().tasks
        for share, value in ((0.5, found.p50_ms), (0.95, found.p95_ms)):
            times = expected["times"]
            exact = times[max(1, math.ceil(share * len(times))) - 1]
            assert value == pytest.approx(exact, rel=0.01001)
        del expected["times"]
        assert {key: getattr(found, key) for key in expected} == pytest.approx(expected)
    assert (found.completed, found.failed) == (1_860, 140)
    assert view.task_times().count == TASKS


def test_tags_equal_an_independent_count() -> None:
    events = raw_events(4)
    view = FleetView("batch")
    view.take_agents(directory(), at=START)
    for at, topic, payload in events:
        view.take(topic, payload, at=at)
    end = START + SPAN_S + 6
    view.advance(end)
    found = {row.tag: row for row in view.tags()}
    assert list(found) == ["worker", "even"]
    for tag, row in found.items():
        expected = counted(events, end, tag)
        assert row.tasks.completed == expected["completed"]
        assert row.tasks.failed == expected["failed"]
        assert row.tasks.completed_per_minute == expected["completed_per_minute"]
        # Its longer window is exact to half a minute only.
        assert row.tasks.error_rate == pytest.approx(expected["error_rate"], abs=0.03)
    assert view.figures().agents == found["worker"].agents
    assert (found["even"].agents.alive, found["even"].agents.lost) == (90, 10)


def test_samples_add_up_to_the_totals() -> None:
    events = raw_events(5)
    view = FleetView("batch")
    view.take_agents(directory(), at=START)
    samples = []
    for number, (at, topic, payload) in enumerate(events):
        view.take(topic, payload, at=at)
        if number % 97 == 0:
            samples += view.collect()
    view.advance(START + SPAN_S + 10)
    samples += view.collect()
    assert view.collect() == []
    fleet = [sample for sample in samples if sample.tag == ""]
    seconds = [sample.second for sample in fleet]
    assert seconds == list(range(int(START), int(START + SPAN_S) + 10))
    assert sum(sample.completed for sample in fleet) == 1_860
    assert sum(sample.failed for sample in fleet) == 140
    merged = TimeHistogram()
    for sample in fleet:
        if sample.times is not None:
            merged.merge(sample.times)
    assert merged.count == TASKS
    assert merged.quantile(0.5) == view.task_times().quantile(0.5)
    assert {sample.tag for sample in samples} == {"", "worker", "even"}
    tagged = [sample for sample in samples if sample.tag == "even"]
    expected = counted(events, START + SPAN_S + 10, "even")
    assert sum(sample.completed for sample in tagged) == expected["completed"]
    last = fleet[-1].gauges
    assert (last["agents_alive"], last["agents_lost"]) == (180, 20)
    assert set(tagged[-1].gauges) == {"agents_alive", "agents_late", "agents_lost"}


def test_long_gap_is_one_in_history_as_well() -> None:
    view = FleetView("batch")
    view.take("fleet.task", tasks(("a", "1", True, 5, START)), at=START)
    view.advance(START + 3_600)
    assert [sample.second for sample in view.collect()] == [int(START)]
    view.advance(START + 3_603)
    assert len(view.collect()) == 3


def test_task_is_counted_once_by_agent_id_and_time() -> None:
    view = FleetView("batch")
    row = ("a", "t", True, 5, START)
    again = ("a", "t", True, 5, START + 1)
    other = ("b", "t", False, 5, START)
    for rows in ((row,), (row, again), (other, other), (again,)):
        view.take("fleet.task", tasks(*rows), at=START + 2)
    view.take("fleet.task", tasks(row), at=START + 599)
    found = view.figures().tasks
    assert (found.completed, found.failed) == (2, 1)
    # Rows that tell no time cannot be told apart, and all count.
    plain = b'{"tasks":[{"agent":"a","task_id":"t","status":"SUCCEEDED","ms":1}]}'
    for _ in range(2):
        view.take("fleet.task", plain, at=START + 600)
    assert view.figures().tasks.completed == 4


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], PoloFigures()),
        ([7], PoloFigures(1, 7, 7, 7, 7, 7, 7, 7, ((7, 7, 1),))),
        (
            [-5, 0, 0, 10],
            PoloFigures(
                4, 5, -5, -5, 0, 10, 10, 10, ((-5, -5, 1), (0, 0, 2), (10, 10, 1))
            ),
        ),
        (
            list(range(100)),
            PoloFigures(
                *(100, 4950, 0, 9, 49, 89, 98, 99),
                tuple((low, low + 4, 5) for low in range(0, 100, 5)),
            ),
        ),
    ],
)
def test_distribution_of_polo(scores: list[int], expected: PoloFigures) -> None:
    found = distribution(reversed(scores))
    bins = tuple(row for row in found.histogram if row[2])
    assert bins == expected.histogram
    assert len(found.histogram) <= 20
    for name in ("agents", "total", "lowest", "p10", "p50", "p90", "p99", "highest"):
        assert getattr(found, name) == getattr(expected, name), name


def test_polo_is_that_of_agents_that_were_heard() -> None:
    view = FleetView("batch")
    for number in range(3):
        view.take("fleet.health", health(f"worker-{number}"), at=START)
    view.take("fleet.health", health("worker-2", "stopped"), at=START + 1)
    view.take_agents(directory(), at=START + 2)
    polo = view.figures().polo
    assert (polo.agents, polo.total, polo.highest) == (2, 1, 1)


def test_trust_changes_are_the_difference_to_the_last_answer() -> None:
    view = FleetView("batch")
    view.take_agents(directory(), at=START)
    view.take_links([(1, 2), (3, 2)], at=START)
    assert (view.figures().trust_links, view.figures().trust_linked) == (2, 0)
    # The same link the other way round is no news.
    view.take_links([(2, 1), (1, 999), (2, 2)], at=START + 5)
    figures = view.figures()
    assert (figures.trust_links, figures.trust_linked, figures.trust_revoked) == (
        *(2, 1),
        1,
    )
    changes = [(row.change, row.one, row.other) for row in view.trust_changes()]
    assert changes == [
        ("revoked", "worker-1", "worker-2"),
        ("linked", "worker-0", "0:0000.0000.03E7"),
    ]
    view.advance(START + 3_604)
    assert view.figures().trust_linked == 1
    view.advance(START + 3_605)
    figures = view.figures()
    assert (figures.trust_linked, figures.trust_linked_total) == (0, 1)
    assert (figures.trust_revoked, figures.trust_revoked_total) == (0, 1)


def test_traffic_adds_up_over_daemons_and_their_restarts() -> None:
    view = FleetView("batch")

    def report(host: str, at: float, sent: int, **fields: Any) -> None:
        data = node(host, bytes_sent=sent, version="0.5", **fields)
        view.take("fleet.node", data, at=START + at)

    report("a", 0, 1_000, agents=3, tunnels=2)
    report("b", 0, 500, agents=1, tunnels=5)
    traffic = view.figures().traffic
    assert (traffic.tunnels, traffic.bytes_sent, traffic.sent_per_s) == (7, 1_500, 0)
    assert view.figures().versions == {"0.5": 4}
    report("a", 10, 3_000, agents=3, tunnels=2)
    # A long report comes in pieces.
    report("a", 10, 3_000, agents=3, tunnels=2)
    assert view.figures().traffic.sent_per_s == 200
    # Started again, it counts from nothing.
    report("a", 20, 400, agents=2, tunnels=1, bytes_received=7)
    traffic = view.figures().traffic
    assert (traffic.tunnels, traffic.bytes_sent, traffic.sent_per_s) == (6, 3_900, 40)
    assert traffic.bytes_received == 7
    # Who does not report any more carries nothing, but what it carried stays.
    view.advance(START + 52)
    traffic = view.figures().traffic
    assert (traffic.tunnels, traffic.bytes_sent) == (1, 3_900)
    assert view.figures().versions == {"0.5": 2}
    view.advance(START + 72)
    assert view.figures().versions == {}
    report("b", 80, 600, agents=1, tunnels=1)
    assert view.figures().traffic.bytes_sent == 4_000


def test_brokers_and_losses_are_told() -> None:
    view = FleetView("batch")
    data = b'{"broker":"hub","published":7,"dropped":1,"note":"x","odd":-1,"f":1.5}'
    view.take("fleet.broker", data, at=START)
    view.count_lost(4)
    view.is_following = True
    figures = view.figures()
    assert figures.brokers == {"hub": {"published": 7, "dropped": 1}}
    assert (figures.events, figures.events_lost, figures.following) == (1, 4, True)
