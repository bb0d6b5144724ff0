"""States of agents by what they say, and by their silence."""

from __future__ import annotations

from typing import Any

import pytest

from pilotfleet.fleet.monitor.figures import AgentCounts, AgentQuery, AgentState
from pilotfleet.fleet.monitor.samples import DirectoryAgent
from pilotfleet.fleet.monitor.view.fleetview import FleetView, ViewConfig
from tests.fleet.monitor.events import START, health

EVERYONE = AgentQuery(states=tuple(AgentState))


def counts(view: FleetView) -> tuple[int, int, int, int]:
    """Return alive, late, lost, left."""
    found = view.figures().agents
    return found.alive, found.late, found.lost, found.left


@pytest.mark.parametrize(
    ("interval_s", "silence_s", "state"),
    [
        # Late: longer than two intervals and a second; lost: than five and a second.
        (None, 0, "alive"),
        (None, 21, "alive"),
        (None, 21.1, "late"),
        (None, 51, "late"),
        (None, 51.1, "lost"),
        (None, 86_000, "lost"),
        (1, 3, "alive"),
        (1, 3.1, "late"),
        (1, 6, "late"),
        (1, 6.1, "lost"),
        (60, 121, "alive"),
        (60, 121.1, "late"),
        (60, 301.1, "lost"),
        # An interval is at least half a second and at most an hour.
        (0.001, 1.9, "alive"),
        (0.001, 2.1, "late"),
        (86_400, 7_201, "alive"),
        (86_400, 7_201.1, "late"),
    ],
)
@pytest.mark.parametrize("steps", [1, 7, 400])
def test_state_follows_from_the_silence(
    interval_s: float | None, silence_s: float, state: str, steps: int
) -> None:
    view = FleetView("batch")
    fields: dict[str, Any] = {} if interval_s is None else {"interval_s": interval_s}
    view.take("fleet.health", health("a", **fields), at=START)
    for step in range(1, steps + 1):
        view.advance(START + silence_s * step / steps)
    row = view.agent("a").row
    assert (row.state, row.last_seen) == (AgentState(state), START)
    assert view.figures().agents == AgentCounts(**{state: 1})


def test_agent_that_is_heard_again_is_alive() -> None:
    view = FleetView("batch")
    view.take("fleet.health", health("a"), at=START)
    view.advance(START + 100)
    assert counts(view) == (0, 0, 1, 0)
    view.take("fleet.health", health("a", "busy"), at=START + 100)
    assert counts(view) == (1, 0, 0, 0)
    view.advance(START + 122)
    assert counts(view) == (0, 1, 0, 0)


def test_agent_that_says_goodbye_is_counted_no_more() -> None:
    view = FleetView("batch")
    for name in "ab":
        view.take("fleet.health", health(name), at=START)
    view.take("fleet.health", health("a", "stopped"), at=START + 5)
    view.advance(START + 200)
    assert counts(view) == (0, 0, 1, 1)
    assert view.figures().agents.total == 1
    assert [row.name for row in view.agents(AgentQuery()).rows] == ["b"]
    view.take("fleet.health", health("a"), at=START + 201)
    assert counts(view) == (1, 0, 1, 0)


def test_shorter_interval_makes_an_agent_late_sooner() -> None:
    view = FleetView("batch")
    view.take("fleet.health", health("a", interval_s=1_000), at=START)
    view.take("fleet.health", health("a", interval_s=1), at=START + 1)
    view.advance(START + 5)
    assert counts(view) == (0, 1, 0, 0)


def test_health_of_before_changes_nothing() -> None:
    """The log of another broker is still being read."""
    view = FleetView("batch")
    view.take("fleet.health", health("a", "busy"), at=START + 60)
    view.take("fleet.health", health("a", "stopped"), at=START)
    view.take("fleet.health", health("b"), at=START)
    assert view.agent("a").row.status == "busy"
    assert view.now == START + 60
    # It was silent for a minute of the fleet's time.
    assert counts(view) == (1, 0, 1, 0)


def test_silence_counts_only_while_somebody_listens() -> None:
    view = FleetView("batch")
    for name, at in (("late", START), ("well", START + 30)):
        view.take("fleet.health", health(name), at=at)
    view.advance(START + 30)
    assert counts(view) == (1, 1, 0, 0)
    view.listen_from(START + 3_000)
    view.advance(START + 3_021)
    assert counts(view) == (1, 1, 0, 0)
    view.advance(START + 3_022)
    assert counts(view) == (0, 2, 0, 0)
    view.advance(START + 3_052)
    assert counts(view) == (0, 0, 2, 0)


def test_who_was_lost_for_longest_gives_way() -> None:
    view = FleetView("batch", config=ViewConfig(max_agents=3))
    for number, name in enumerate("abc"):
        view.take("fleet.health", health(name), at=START + 60 * number)
    assert counts(view) == (1, 0, 2, 0)
    view.take("fleet.health", health("d"), at=START + 121)
    names = [row.name for row in view.agents(AgentQuery()).rows]
    assert names == ["b", "c", "d"]
    assert counts(view) == (2, 0, 1, 0)
    # Nobody who is well gives way.
    view.take("fleet.health", health("b"), at=START + 122)
    view.take("fleet.health", health("e"), at=START + 122)
    assert counts(view) == (3, 0, 0, 0)
    assert view.figures().events_refused == 1


@pytest.mark.parametrize(
    ("silence_s", "heard_s", "is_known"),
    [
        # Lost after 51 s; a day later it is forgotten.
        (51 + 86_400, None, True),
        (51 + 86_401, None, False),
        # Nobody listened for days: it may have come back in that time.
        (300_000, 300_000, True),
        (300_051, 300_000, True),
        (300_052, 300_000, False),
        # It was alive when that time began, so it is lost from 51 s after it.
        (200_051 + 86_400, 200_000, True),
    ],
)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("is_restarted", [False, True])
def test_who_is_lost_for_a_day_is_forgotten(
    silence_s: float,
    heard_s: float | None,
    is_known: bool,
    steps: int,
    is_restarted: bool,
) -> None:
    view = FleetView("batch")
    view.take_agents([DirectoryAgent(1, "0:1", "me", ("t",), 5)], at=START)
    view.take("fleet.health", health("me"), at=START)
    if heard_s != 200_000:
        view.advance(START + 100)
    if is_restarted:
        view = FleetView.load(view.save(), at=START + 100)
    begin = START + (heard_s or 100)
    if heard_s is not None:
        view.listen_from(begin)
    end = START + silence_s
    for step in range(1, steps + 1):
        view.advance(begin + (end - begin) * step / steps)
    assert view.agents(EVERYONE).total == int(is_known)
    assert counts(view) == (0, 0, int(is_known), 0)
    assert [row.agents.lost for row in view.tags()] == [1] * is_known
    assert len(view.trust_graph().nodes) == int(is_known)
    if not is_known:
        view.take("fleet.health", health("me"), at=end)
        assert counts(view) == (1, 0, 0, 0)


def test_who_gave_way_is_not_forgotten_again() -> None:
    view = FleetView("batch", config=ViewConfig(max_agents=1))
    view.take("fleet.health", health("a"), at=START)
    view.advance(START + 60)
    view.take("fleet.health", health("b"), at=START + 60)
    view.advance(START + 100_000)
    assert counts(view) == (0, 0, 0, 0)
    assert view.agents(EVERYONE).total == 0
