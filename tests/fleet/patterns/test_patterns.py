"""Hub and mesh with real agents of one network."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.orchestrator import OrchestratorConfig
from pilotfleet.fleet.patterns.hub import Hub
from pilotfleet.fleet.patterns.mesh import Mesh, measure_mesh
from pilotfleet.fleet.taskfile import TaskLine
from tests.fleet.crewsupport import start_crew, start_hub
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pilotfleet.fleet.patterns import PatternRun
    from pilotfleet.fleet.schedule import TaskResult
    from pilotfleet.fleet.worker.job import Job
    from tests.support.programs import World

COUNT = 5
WORKERS = OrchestratorConfig(tags=("text",))


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    """Yield a hub and five agents of its network."""
    with world() as made:
        start_crew(made, start_hub(made), COUNT)
        yield made


@pytest.fixture
async def agents(net: World) -> AsyncIterator[list[Agent]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                await Agent.connect(net.socket("crew"), name=f"a-{number}")
            )
            for number in range(1, COUNT + 1)
        ]


@pytest.fixture
async def working(agents: list[Agent]) -> AsyncIterator[None]:
    """Have all agents do tasks."""
    served = [asyncio.ensure_future(agent.serve(shout)) for agent in agents]
    try:
        yield
    finally:
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)


async def shout(job: Job) -> str:
    return job.text.upper()


async def lines(count: int) -> AsyncIterator[TaskLine]:
    for number in range(count):
        yield TaskLine(str(number), f"t{number}")


async def gather(run: PatternRun, count: int) -> list[TaskResult]:
    async with aclosing(run.run(lines(count))) as results:
        return [result async for result in results]


@pytest.mark.usefixtures("working")
async def test_a_hub_collects_from_whom_it_finds(net: World) -> None:
    async with (
        await Agent.connect(net.socket("hub")) as agent,
        Hub.open(agent, WORKERS) as hub,
    ):
        results = await gather(hub, 30)
        assert hub.status()["workers"] == COUNT
    assert {r.result for r in results} == {f"T{number}" for number in range(30)}
    assert {r.agent for r in results} == {f"a-{number}" for number in range(1, 6)}


@pytest.mark.usefixtures("working")
async def test_the_entries_of_a_mesh_share_a_batch(agents: list[Agent]) -> None:
    async with Mesh.open(agents[:3], WORKERS) as mesh:
        results = await gather(mesh, 60)
        assert mesh.status()["workers"] == COUNT
        assert mesh.status()["entries"] == 3
        mesh.lost("a-5")
    assert sorted(int(r.id) for r in results) == list(range(60))
    assert {r.status for r in results} == {"SUCCEEDED"}
    assert {r.agent for r in results} == {f"a-{number}" for number in range(1, 6)}


async def test_a_mesh_needs_an_entry() -> None:
    with pytest.raises(InvalidArgument):
        await Mesh.open([], WORKERS).__aenter__()


async def test_a_source_that_fails_ends_the_run(agents: list[Agent]) -> None:
    async def failing() -> AsyncIterator[TaskLine]:
        raise ValueError("the source")
        yield

    async with Mesh.open(agents[:2], WORKERS) as mesh:
        with pytest.raises(ValueError, match="the source"):
            await anext(mesh.run(failing()))


async def test_everybody_reaches_everybody_with_one_join_each(
    agents: list[Agent],
) -> None:
    measure = await measure_mesh(agents)
    assert (measure.agents, measure.pairs) == (COUNT, COUNT * (COUNT - 1))
    assert measure.joins == COUNT
    assert measure.handshakes == 0
    assert 0 < measure.dial_p50_ms <= measure.dial_max_ms
    assert (await measure_mesh(agents, pairs=7)).pairs == 7
    with pytest.raises(InvalidArgument):
        await measure_mesh(agents[:1])
