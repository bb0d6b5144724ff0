"""States of agents by what they say, and by their silence."""

from __future__ import annotations

from typing import Any

import pytest

from pilotfleet.fleet.monitor.figures import AgentCounts, AgentQuery, AgentState
from pilotfleet.fleet.monitor.view.fleetview import FleetView, ViewConfig
from tests.fleet.monitor.events import START, health


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
        (None, 100_000, "lost"),
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
