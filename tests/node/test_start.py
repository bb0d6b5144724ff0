"""The start of a host with many agents: files, order, progress, failures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import ConfigError, NotFound, PilotError, Unavailable
from pilotfleet.node import opening
from pilotfleet.node.filelimit import require_open_files
from pilotfleet.node.parallel import for_each
from pilotfleet.node.progress import StartLog
from pilotfleet.testing.clock import FakeClock
from tests.node.support import World, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


def test_the_error_of_too_few_files_says_how_many_are_missing() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with pytest.raises(Unavailable) as caught:
        require_open_files(hard + 10_256)
    assert str(caught.value).startswith(
        f"this host needs {hard + 10_256} open files, the system allows {hard}:"
        " 10256 too few"
    )


async def test_agents_are_opened_in_the_order_of_the_configuration(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SLICE", 2)
    names = [f"w{number}" for number in range(11)]
    async with world.host("a", *names) as host:
        assert list(host.agents) == names
        assert host.default_agent.name == "w0"
        assert all(agent.registered_at for agent in host.agents.values())


async def test_agents_are_found_by_name_when_they_are_registered(
    world: World,
) -> None:
    names = [f"w{number}" for number in range(200)]
    host = world.host("a", *names)
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def door() -> AsyncIterator[None]:
        # As whoever finds the local socket when it opens.
        assert host.find_agent("w0") is host.default_agent
        for name in ("w1", "w199", "nobody"):
            with pytest.raises(PilotError) as caught:
                host.find_agent(name)
            seen.append(f"{type(caught.value).__name__}: {caught.value}")
        yield

    host.doors.append(door)
    async with host:
        assert seen == [
            "Unavailable: agent 'w1' is still starting",
            "Unavailable: agent 'w199' is still starting",
            "NotFound: no agent 'nobody' on this daemon",
        ]
        assert [host.find_agent(name).name for name in names] == names
        with pytest.raises(NotFound):
            host.find_agent("nobody")


async def test_a_damaged_key_stops_the_start_whoever_has_registered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SLICE", 1)
    path = world.folder / "a" / "w9" / "identity.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"w9/identity\.json is damaged"):
        async with world.host("a", *(f"w{number}" for number in range(20))):
            pass
    # Those of the rendezvous, in the same process, may go on.
    own = ("start of agents", "gathered requests", "load of identities")
    assert not [t for t in asyncio.all_tasks() if t.get_name().startswith(own)]


def test_progress_is_logged_by_number_and_by_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    clock = FakeClock()
    log = StartLog(clock)
    for done in range(1, 2501):
        log(done, 2500)
    assert caplog.messages == [
        "started 1,000 of 2,500 agents",
        "started 2,000 of 2,500 agents",
        "started 2,500 of 2,500 agents",
    ]
    caplog.clear()
    for done in range(1, 13):
        clock.advance(1.0)
        log(done, 20)
    assert caplog.messages == ["started 5 of 20 agents", "started 10 of 20 agents"]


async def test_work_in_parallel_is_bounded_and_in_order() -> None:
    begun: list[int] = []
    running = peak = 0

    async def act(item: int) -> None:
        nonlocal running, peak
        begun.append(item)
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1

    await for_each(range(20), act, workers=3)
    assert begun == list(range(20))
    assert peak == 3


async def test_the_first_failure_in_parallel_is_raised_as_it_is() -> None:
    async def act(item: int) -> None:
        await asyncio.sleep(0)
        if item == 2:
            raise KeyError(item)

    with pytest.raises(KeyError, match="2"):
        await for_each(range(9), act, workers=3)
