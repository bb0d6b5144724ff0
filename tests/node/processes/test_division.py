"""Who hosts which agent."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.node.config import AgentSpec, HostConfig
from pilotfleet.node.processes.division import (
    divide,
    process_homes,
    process_of,
    sort_key,
)

HOME = Path("/home/pilot")


def config(*names: str) -> HostConfig:
    specs = tuple(
        AgentSpec(name=name, home=HOME / name, identity_path=HOME / name / "id")
        for name in names
    )
    return HostConfig(home=HOME, agents=specs, socket=Path("/tmp/x.sock"))


@given(st.text(), st.integers(1, 64))
def test_every_name_has_one_process(name: str, count: int) -> None:
    assert 1 <= process_of(name, count) <= count
    sort_key(name)


def test_places_are_written_down_by_agents_on_disk_so_they_never_change() -> None:
    assert [process_of(f"worker-{n}", 4) for n in range(1, 7)] == [1, 2, 3, 4, 1, 2]
    assert [process_of(name, 4) for name in ("hub", "agent", "", "é")] == [2, 2, 1, 3]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 64])
@pytest.mark.parametrize("first", [1, 41])
def test_numbered_agents_are_spread_evenly(count: int, first: int) -> None:
    names = [f"w-{n}" for n in range(first, first + 128)]
    sizes = Counter(process_of(name, count) for name in names)
    assert len(sizes) == count
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_parts_together_are_the_whole() -> None:
    names = ["hub", *(f"w-{n}" for n in range(1, 9))]
    parts = divide(config(*names), 3)
    assert sorted(s.name for p in parts.values() for s in p.agents) == sorted(names)
    for number, part in parts.items():
        assert part.home == HOME / "processes" / f"{number}-of-3"
        # The parent owns the socket.
        assert part.socket is None
    # In the order of the whole: the first of all is the first of its process.
    assert parts[process_of("hub", 3)].agents[0].name == "hub"


def test_a_process_without_agents_is_left_out() -> None:
    assert set(divide(config("w-1", "w-4", "w-7"), 3)) == {1}


def test_one_process_has_the_home_for_itself() -> None:
    assert process_homes(HOME, 1) == {1: HOME}


def test_agents_are_listed_by_number() -> None:
    names = ["w-10", "hub", "w-2", "w-1", "v-3"]
    assert sorted(names, key=sort_key) == ["hub", "v-3", "w-1", "w-2", "w-10"]
