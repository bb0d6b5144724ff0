"""Old receipts become a sum: the score never changes by it, whatever happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfleet.protocol.services.polo import reward
from pilotfleet.registry.directory.folding import GRACE_S, KEEP_S
from pilotfleet.registry.directory.receipts import newest
from pilotfleet.registry.store.memory import MemoryStore
from tests.registry.receipts import receipt, row, statuses
from tests.registry.test_service_replicas import PieceStore, replicas, settled
from tests.registry.world import World, error_of

if TYPE_CHECKING:
    from tests.registry.world import Agent

HOUR_S = 3600
MINUTE_CPU = 60_000
PATIENT: dict[str, Any] = {"stale_after_s": 1e10, "flush_interval_s": 1e10}
"""Maintenance does nothing else meanwhile."""


def scores(world: World) -> list[int]:
    return [world.directory.polo_score(node) for node in (1, 2, 3)]


async def deliver(agent: Agent, other: Agent, task: str, **fields: float) -> str:
    """Deliver a receipt; return what became of it, or the error."""
    signed = receipt(agent, other, task, **fields)
    reply = await agent.world.ask("polo_receipts", receipts=[row(signed)])
    (status,) = statuses(reply) if "results" in reply else [error_of(reply)]
    return status


async def filled(store: MemoryStore | None = None) -> tuple[World, list[Agent]]:
    """Return a registry with three nodes that have receipts of several hours."""
    world = World(store, **PATIENT)
    agents = await world.agents(3)
    hub, one, two = agents
    for number in range(4):
        await deliver(hub, one, f"a-{number}", cpu_ms=MINUTE_CPU)
        await deliver(one, two, f"b-{number}")
        world.clock.time += HOUR_S
    assert scores(world) == [-4, 4 * reward(time_cpu_ms=MINUTE_CPU) - 4, 4]
    return world, agents


def audited(world: World) -> list[int]:
    """Return the scores as the receipts that are shown, and the sums, make them."""
    ledger = world.directory.ledger
    totals = []
    for node in (1, 2, 3):
        shown = [row for _, row in newest(ledger, node, before=0, limit=1_000)]
        effects = [row["reward"] if row["worker"] == node else -1 for row in shown]
        record = ledger.standing(node).record
        totals.append(record.score + record.folded_sum + sum(effects))
    return totals


async def opened(first: World, **config: float) -> World:
    """Return a replica that knows what is stored now, and follows nothing."""
    world = World(first.store, clock=first.clock, **PATIENT, **config)
    await world.service.load()
    return world


async def receipt_keys(world: World) -> list[str]:
    keys = [entry.key for entry in await world.store.load()]
    return [key for key in keys if key.startswith("receipt.")]


async def test_old_receipts_are_folded_and_forgotten() -> None:
    world, (hub, one, _) = await filled()
    before = scores(world)
    old = world.clock.time - 4 * HOUR_S
    first = row(receipt(hub, one, "a-0", cpu_ms=MINUTE_CPU, completed_at=old))
    assert statuses(await world.ask("polo_receipts", receipts=[first])) == ["known"]
    world.clock.time += KEEP_S - 2 * HOUR_S
    await deliver(hub, one, "young")
    after = [before[0] - 1, before[1] + 1, before[2]]
    await world.service.maintain()
    # Closed, and not folded before every replica knows it.
    assert world.directory.ledger.closed.hour
    assert len(await receipt_keys(world)) == 9
    world.clock.time += GRACE_S - 1
    await world.service.maintain()
    assert len(await receipt_keys(world)) == 9
    world.clock.time += 1
    await world.service.maintain()
    assert len(await receipt_keys(world)) == 5
    assert scores(world) == after
    listed = await one.ask("list_receipts")
    assert listed["folded"] == {"count": 4, "sum": before[1] // 2}
    assert len(listed["receipts"]) == 5
    assert listed["score"] == after[1]
    # What was forgotten cannot be counted again.
    reply = await world.ask("polo_receipts", receipts=[first])
    assert statuses(reply) == ["the receipt is too old"]
    again = await opened(world)
    assert scores(again) == after
    world.clock.time += 2 * KEEP_S
    for _ in range(2):
        await world.service.maintain()
        world.clock.time += GRACE_S
    assert await receipt_keys(world) == []
    assert scores(world) == after == scores(await opened(world))


async def test_folding_that_is_cut_short_anywhere_counts_nothing_twice() -> None:
    for count in range(16):
        store = PieceStore()
        world, _ = await filled(store)
        before = scores(world)
        world.clock.time += 2 * KEEP_S
        await world.service.maintain()
        world.clock.time += GRACE_S
        store.left = count
        await world.service.maintain()
        store.left = 1_000
        # As it would be after a crash at this moment, and as it is without one.
        again = await opened(world)
        assert scores(again) == audited(again) == before, count
        for survivor in (again, await opened(again)):
            await survivor.service.maintain()
            await survivor.service.maintain()
            assert scores(survivor) == before, count
        assert await receipt_keys(again) == []


async def test_replicas_that_fold_at_once_fold_once() -> None:
    async with replicas(MemoryStore(), 3) as worlds:
        first = worlds[0]
        hub, one = await first.agents(2)
        for number in range(20):
            await deliver(hub, one, f"t-{number}", cpu_ms=MINUTE_CPU)
        await settled(worlds)
        before = scores(first)
        for later in (2 * KEEP_S, GRACE_S, 0, 0):
            for world in worlds:
                world.clock.time += later
            await asyncio.gather(*(world.service.maintain() for world in worlds))
            await settled(worlds)
            assert [scores(world) for world in worlds] == [before] * 3
        assert await receipt_keys(first) == []
        record = first.directory.ledger.standings[2].record
        assert (record.folded_count, record.folded_sum) == (20, before[1])


async def test_too_many_receipts_make_the_oldest_a_sum_early() -> None:
    world = World(max_receipts=8)
    hub, one = await world.agents(2)
    for number in range(10):
        assert await deliver(hub, one, f"t-{number}") == "counted"
        world.clock.time += HOUR_S
    late = world.clock.time - 9 * HOUR_S
    await world.service.maintain()
    assert await deliver(hub, one, "late", completed_at=late) == (
        "the receipt is too old"
    )
    world.clock.time += GRACE_S
    await world.service.maintain()
    assert len(await receipt_keys(world)) == 6
    assert scores(world)[:2] == [-10, 10] == scores(await opened(world))[:2]


async def test_the_last_hours_stay_open_however_many_there_are() -> None:
    world = World(max_receipts=2)
    hub, one = await world.agents(2)
    for number in range(3):
        await deliver(hub, one, f"t-{number}")
    for _ in range(2):
        await world.service.maintain()
        world.clock.time += GRACE_S
    assert world.directory.ledger.closed.hour == 0
    assert await deliver(hub, one, "t-4") == "counted"


async def test_a_score_that_is_set_while_receipts_are_folded_is_kept() -> None:
    world, _ = await filled()
    world.clock.time += 2 * KEEP_S
    await world.service.maintain()
    world.clock.time += GRACE_S
    await asyncio.gather(
        world.admin("set_polo_score", node_id=2, polo_score=50),
        world.service.maintain(),
        world.admin("update_polo_score", node_id=3, delta=3),
    )
    assert scores(world)[1:] == [50, 7] == scores(await opened(world))[1:]


async def test_a_replica_that_folds_late_does_not_undo_what_was_added() -> None:
    world, _ = await filled()
    before = scores(world)
    world.clock.time += 2 * KEEP_S
    await world.service.maintain()
    world.clock.time += GRACE_S
    late = await opened(world)
    await world.admin("update_polo_score", node_id=2, delta=5)
    await late.service.maintain()
    assert scores(await opened(world)) == [before[0], before[1] + 5, before[2]]


STEPS = st.one_of(
    st.tuples(st.just("deliver"), st.integers(0, 5), st.integers(0, 30)),
    st.tuples(st.just("maintain"), st.just(0), st.integers(0, 8)),
    st.tuples(st.just("add"), st.integers(-9, 9), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 3), st.just(0)),
)
WAITS = (GRACE_S, HOUR_S, 10 * 86_400, KEEP_S)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 1), STEPS), max_size=40))
async def test_two_replicas_that_know_each_other_late_count_each_receipt_once(
    steps: list[tuple[int, tuple[str, int, int]]],
) -> None:
    """Deliveries, folding that is cut short, and restarts, in whatever order.

    Neither replica sees what the other one does before some time passes.
    """
    store = PieceStore()
    first = World(store)
    hub, one = await first.agents(2)
    worlds = [await opened(first, max_receipts=6) for _ in range(2)]
    counted = added = 0
    for side, (kind, number, amount) in steps:
        if kind == "deliver":
            hub.world = one.world = worlds[side]
            hour = int(first.clock.time) // HOUR_S - amount
            fields = {"completed_at": hour * HOUR_S}
            status = await deliver(hub, one, f"t-{number}-{hour}", **fields)
            counted += status == "counted"
        elif kind == "maintain":
            store.left = amount
            await worlds[side].service.maintain()
            store.left = 1_000
        elif kind == "add":
            fields = {"node_id": 2, "delta": number}
            reply = await worlds[side].admin("update_polo_score", **fields)
            added += number if "polo_score" in reply else 0
        elif kind == "restart":
            worlds[side] = await opened(first, max_receipts=6)
        else:
            first.clock.time += WAITS[number]
            worlds = [await opened(first, max_receipts=6) for _ in range(2)]
        assert scores(await opened(first)) == [-counted, counted + added, 0]
