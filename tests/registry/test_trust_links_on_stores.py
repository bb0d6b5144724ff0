"""Trust links on every store: two replicas, restarts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.registry.support import eventually
from tests.registry.test_trust_links import generation, link, shown
from tests.registry.world import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pilotfleet.registry.store.base import Store
    from tests.registry.world import Agent

PATIENT: dict[str, Any] = {"stale_after_s": 1e10, "flush_interval_s": 1e10}


@pytest.fixture
async def worlds(store: Store, other: Store) -> AsyncIterator[list[World]]:
    """Two replicas that follow each other."""
    first = World(store, **PATIENT)
    both = [first, World(other, clock=first.clock, **PATIENT)]
    for world in both:
        await world.service.load()
    watches = [asyncio.create_task(world.service.run_watch()) for world in both]
    yield both
    for watch in watches:
        watch.cancel()
    await asyncio.gather(*watches, return_exceptions=True)


async def settled(worlds: list[World], pairs: int, members: int) -> None:
    """Wait until both replicas know so many links, and members of network 1."""

    def is_there() -> bool:
        tables = [world.directory for world in worlds]
        return all(
            table.trust.pairs == pairs
            and (not members or len(table.networks.by_id[1].members) == members)
            for table in tables
        )

    await eventually(is_there)


async def fleet(world: World) -> list[Agent]:
    """Return three members of a network and a stranger."""
    agents = await world.agents(4)
    await world.admin("create_network", node_id=1, name="fleet")
    for agent in agents[1:3]:
        await agent.ask("join_network", network_id=1)
    return agents


async def test_replicas_show_the_same_and_count_by_themselves(
    worlds: list[World],
) -> None:
    one, two, three, stranger = await fleet(worlds[0])
    await link(two, three)
    await link(two, stranger)
    await settled(worlds, pairs=2, members=3)
    numbers = []
    for world in worlds:
        one.world = stranger.world = world
        assert await shown(one) == [(2, 3)]
        assert await shown(stranger) == [(2, 4)]
        numbers.append(await generation(one))
    assert numbers[0] != numbers[1]
    three.world = worlds[1]
    await three.ask("revoke_trust", peer_id=2)
    await settled(worlds, pairs=1, members=3)
    for world, number in zip(worlds, numbers, strict=True):
        one.world = world
        reply = await one.ask("list_trust", generation=number)
        assert reply["links"] == []
        assert reply["generation"] != number


async def test_links_survive_a_restart(store: Store, other: Store) -> None:
    world = World(store, **PATIENT)
    one, two, three, _ = await fleet(world)
    await link(one, two)
    await link(three, two)
    again = World(other, clock=world.clock, **PATIENT)
    await again.service.load()
    three.world = again
    assert await shown(three) == [(1, 2), (2, 3)]
