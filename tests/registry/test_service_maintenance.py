"""What the registry does as time passes."""

from __future__ import annotations

import asyncio

from tests.registry.support import eventually
from tests.registry.world import World, error_of


async def test_stale_nodes_are_swept_step_by_step() -> None:
    world = World(stale_after_s=100, sweep_step=3, sweep_interval_s=10)
    agents = await world.agents(8)
    await world.service.load()
    world.clock.time += 95
    for agent in agents[::2]:
        await agent.ask("heartbeat")
    live = []
    for _ in range(4):
        world.clock.time += 10
        await world.service.maintain()
        live.append(len(world.directory.nodes.live))
    assert live == [7, 5, 4, 4]
    assert list(world.directory.nodes.live) == [1, 3, 5, 7]


async def test_nobody_is_stale_because_the_registry_was_away() -> None:
    world = World()
    (agent,) = await world.agents(1)
    world.clock.time += 100_000
    agent.world = again = await world.reopened()
    await again.service.maintain()
    again.clock.time += 1799
    await again.service.maintain()
    assert (await agent.ask("heartbeat"))["type"] == "heartbeat_ok"


async def test_a_heartbeat_in_time_saves_the_node() -> None:
    world = World(stale_after_s=100)
    (agent,) = await world.agents(1)
    await world.service.load()
    for _ in range(5):
        world.clock.time += 99
        await agent.ask("heartbeat")
        await world.service.maintain()
    assert list(world.directory.nodes.live) == [1]


async def test_times_are_written_once_for_many_heartbeats() -> None:
    world = World()
    agents = await world.agents(3)
    before = {entry.key for entry in await world.store.load()}
    for _ in range(5):
        world.clock.time += 61
        for agent in agents:
            await agent.ask("heartbeat")
        await world.service.maintain()
    after = {entry.key for entry in await world.store.load()}
    assert after - before == {"seen.0"}


async def test_maintenance_runs_until_it_is_cancelled() -> None:
    world = World(stale_after_s=1)
    await world.agents(1)
    await world.service.load()
    world.clock.time += 10
    task = asyncio.create_task(world.service.run_maintenance())
    await eventually(lambda: len(world.directory.nodes.live) == 0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_beacons_are_listed_for_a_minute() -> None:
    world = World()
    own = {"id": 1, "addr": "127.0.0.1:9001"}
    fields = {"beacon_id": 2, "addr": "203.0.113.9:9001"}
    reply = await world.admin("beacon_register", **fields)
    assert reply == {"type": "beacon_register_ok", "beacon_id": 2}
    other = {"id": 2, "addr": "203.0.113.9:9001"}
    assert (await world.ask("beacon_list"))["beacons"] == [own, other]
    world.clock.time += 60
    assert (await world.ask("beacon_list"))["beacons"] == [own]
    world.service.beacon_addr = ""
    assert (await world.ask("beacon_list"))["beacons"] == []


async def test_beacon_problems_have_their_texts() -> None:
    world = World()
    assert error_of(await world.ask("beacon_register")) == "invalid admin token"
    for fields, error in (
        ({}, "beacon_id required"),
        ({"beacon_id": 2}, "addr required"),
        ({"beacon_id": 2, "addr": "x"}, "beacon addr invalid: "),
        ({"beacon_id": 2, "addr": ":9001"}, "beacon addr invalid: "),
    ):
        reply = await world.admin("beacon_register", **fields)
        assert error_of(reply).startswith(error)
    for beacon in range(1, 257):
        fields = {"beacon_id": beacon, "addr": "h:1"}
        await world.admin("beacon_register", **fields)
    late = await world.admin("beacon_register", beacon_id=300, addr="h:1")
    assert "too many beacons" in error_of(late)
