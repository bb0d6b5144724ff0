"""Who lives, and who is under whom for now."""

from __future__ import annotations

from typing import Any

import pytest

from pilotfleet.fleet.patterns.hierarchy import Topology
from pilotfleet.fleet.patterns.tree import (
    DEAF_S,
    HEARTBEAT_S,
    LATE_S,
    LOST_S,
    SILENT_S,
    Tree,
)


class Fleet:
    """A tree, and a clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.dead: list[str] = []
        self.tree = Tree(
            Topology.of("f", 150, cluster_size=50, fanout=50),
            on_change=lambda dead: self.dead.extend(sorted(dead)),
            clock=lambda: self.now,
        )

    def hear(self, *numbers: int, **fields: Any) -> None:
        for number in numbers:
            self.tree.take({"agent": f"f-sub-{number}", **fields})

    def parents(self) -> list[str]:
        parents = sorted(self.tree.parents.items())
        return [parent.removeprefix("f-sub-") for _, parent in parents]


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_in_the_beginning_everybody_is_at_home(fleet: Fleet) -> None:
    assert fleet.parents() == ["1", "2", "3"]
    assert fleet.dead == []
    assert (fleet.tree.epoch, fleet.tree.reparented) == (1, 0)


def test_who_is_silent_loses_its_cluster_and_gets_it_back(fleet: Fleet) -> None:
    for _ in range(int(SILENT_S / HEARTBEAT_S)):
        fleet.now += HEARTBEAT_S
        fleet.hear(1, 3)
    assert fleet.parents() == ["1", "1", "3"]
    assert fleet.dead == ["f-sub-2"]
    assert fleet.tree.reparented == 1
    fleet.hear(2)
    assert fleet.parents() == ["1", "2", "3"]
    assert fleet.tree.epoch == 3
    assert fleet.tree.reparented == 1


def test_last_words_are_no_sign_of_life(fleet: Fleet) -> None:
    for _ in range(int(SILENT_S / HEARTBEAT_S)):
        fleet.now += HEARTBEAT_S
        fleet.hear(1, 3)
        fleet.hear(2, status="stopped")
    assert fleet.dead == ["f-sub-2"]


def test_most_are_not_given_up_as_soon_as_one(fleet: Fleet) -> None:
    fleet.now += HEARTBEAT_S
    fleet.hear(1)
    fleet.now += SILENT_S - HEARTBEAT_S / 2
    fleet.tree.update()
    assert fleet.dead == []
    # What is known, not only not heard, counts.
    fleet.tree.lost("f-sub-2")
    assert fleet.dead == ["f-sub-2"]
    fleet.now += DEAF_S - SILENT_S - HEARTBEAT_S / 2
    fleet.tree.update()
    assert fleet.dead == ["f-sub-2", "f-sub-3"]
    fleet.hear(1, 2, 3)
    assert fleet.parents() == ["1", "2", "3"]


def test_a_known_death_counts_at_once(fleet: Fleet) -> None:
    fleet.tree.lost("f-sub-2")
    assert fleet.parents() == ["1", "1", "3"]
    assert fleet.dead == ["f-sub-2"]
    # Published before it died.
    fleet.now += LATE_S / 2
    fleet.hear(2)
    assert fleet.parents() == ["1", "1", "3"]
    fleet.now += LATE_S
    fleet.hear(2)
    assert fleet.parents() == ["1", "2", "3"]


def test_what_was_on_its_way_does_not_raise_the_dead(fleet: Fleet) -> None:
    fleet.tree.lost("f-sub-2")
    fleet.now += 5 * LATE_S
    fleet.hear(2, connected_s=60.0)
    assert fleet.parents() == ["1", "1", "3"]
    fleet.hear(2, connected_s=4.0)
    assert fleet.parents() == ["1", "2", "3"]


def test_deaths_are_told_for_some_seconds(fleet: Fleet) -> None:
    fleet.tree.lost("worker-7")
    fleet.tree.lost("worker-7")
    event = fleet.tree.event()
    assert event["lost"] == {"worker-7": 2}
    assert event["parents"] == fleet.tree.parents
    fleet.now += LOST_S
    assert fleet.tree.event()["lost"] == {}


def test_the_status_has_the_last_health(fleet: Fleet) -> None:
    fleet.hear(1, workers=50, workers_busy=7, tasks_completed=3)
    fleet.tree.take({"agent": "worker-1", "workers": 9})
    fleet.tree.take({})
    fleet.tree.lost("f-sub-3")
    rows = fleet.tree.status()
    assert rows[0] == {
        "name": "f-sub-1",
        "cluster": "c1",
        "level": 1,
        "state": "up",
        "parent": "f-sub-1",
        "members": 50,
        "workers": 50,
        "workers_busy": 7,
        "tasks_completed": 3,
        "tasks_failed": 0,
    }
    assert (rows[2]["state"], rows[2]["parent"]) == ("down", "f-sub-1")


@pytest.mark.parametrize(
    "value", ["9", None, -1, 1e9, True, [7], {"a": {}}, 10**300, "\x1b[2J"]
)
def test_what_is_no_count_counts_as_none(fleet: Fleet, value: object) -> None:
    fleet.hear(1, workers=value, tasks_failed=value, connected_s=value, extra=value)
    row = fleet.tree.status()[0]
    assert (row["workers"], row["tasks_failed"]) == (0, 0)
    for name in (value, ["f-sub-1"], {"f-sub-1": 1}):
        fleet.tree.take({"agent": name})
    assert fleet.parents() == ["1", "2", "3"]
