"""Receipts on every store: two replicas, restarts, folding."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.protocol.services.polo import reward
from pilotfleet.registry.directory.folding import GRACE_S, KEEP_S
from tests.registry.receipts import receipt, row, statuses
from tests.registry.support import eventually
from tests.registry.test_directory import picture
from tests.registry.world import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pilotfleet.registry.store.base import Store

PATIENT: dict[str, Any] = {"stale_after_s": 1e10, "flush_interval_s": 1e10}
RETRY = "changed concurrently, retry"


@pytest.fixture
async def worlds(store: Store, other: Store) -> AsyncIterator[list[World]]:
    """Two replicas that follow each other."""
    first = World(store, **PATIENT)
    second = World(other, clock=first.clock, **PATIENT)
    both = [first, second]
    for world in both:
        await world.service.load()
    watches = [asyncio.create_task(world.service.run_watch()) for world in both]
    yield both
    for watch in watches:
        watch.cancel()
    await asyncio.gather(*watches, return_exceptions=True)


async def agree(worlds: list[World]) -> None:
    """Wait until both replicas know the same."""

    def is_same() -> bool:
        one, other = (picture(world.directory) for world in worlds)
        return one == other

    await eventually(is_same)


async def deliver(world: World, rows: list[dict[str, Any]]) -> list[str]:
    """Deliver receipts as a client does: again, if the registry asks for it."""
    while True:
        reply = await world.ask("polo_receipts", receipts=rows)
        if "results" in reply:
            return statuses(reply)
        assert RETRY in reply["error"], reply


def scores(world: World) -> list[int]:
    return [world.directory.polo_score(node) for node in (1, 2)]


async def test_replicas_that_get_the_same_receipts_at_once_count_them_once(
    worlds: list[World],
) -> None:
    hub, worker = await worlds[0].agents(2)
    await agree(worlds)
    rows = [row(receipt(hub, worker, f"t-{n}", cpu_ms=60_000)) for n in range(60)]
    # In different batches, so that they meet in every way.
    asked = [deliver(worlds[0], rows[n : n + 20]) for n in (0, 20, 40)]
    asked += [deliver(worlds[1], rows[n : n + 15]) for n in (0, 15, 30, 45)]
    replies = await asyncio.gather(*asked)
    found = [status for reply in replies for status in reply]
    assert sorted(found) == ["counted"] * 60 + ["known"] * 60
    await agree(worlds)
    expected = [-60, 60 * reward(time_cpu_ms=60_000)]
    assert scores(worlds[0]) == expected
    assert scores(await worlds[0].reopened()) == expected


async def test_who_opens_the_store_later_finds_every_receipt(
    store: Store, other: Store
) -> None:
    world = World(store)
    hub, worker = await world.agents(2)
    rows = [row(receipt(hub, worker, f"t-{n}")) for n in range(5)]
    await deliver(world, rows)
    listed = await worker.ask("list_receipts")
    assert len(listed["receipts"]) == 5
    worker.world = again = World(other, clock=world.clock)
    await again.service.load()
    assert await worker.ask("list_receipts") == listed
    assert await deliver(again, rows) == ["known"] * 5


async def test_replicas_fold_together(worlds: list[World]) -> None:
    hub, worker = await worlds[0].agents(2)
    rows = [row(receipt(hub, worker, f"t-{n}")) for n in range(10)]
    await deliver(worlds[0], rows)
    await agree(worlds)
    clock = worlds[0].clock
    for step in (2 * KEEP_S, GRACE_S, 1, 1):
        clock.time += step
        await asyncio.gather(*(world.service.maintain() for world in worlds))
        await agree(worlds)
        assert scores(worlds[0]) == [-10, 10]
    assert worlds[0].directory.ledger.by_key == {}
    assert scores(await worlds[1].reopened()) == [-10, 10]
    assert await deliver(worlds[1], rows) == ["the receipt is too old"] * 10
