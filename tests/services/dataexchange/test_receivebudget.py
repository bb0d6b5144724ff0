"""Connections share the memory for unfinished frames, and never all stand still."""

from __future__ import annotations

import asyncio

from pilotfleet.services.dataexchange.receivebudget import FREE_BYTES, ReceiveBudget

LIMIT = 10 * FREE_BYTES


async def turn() -> None:
    """Let every task go on as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_small_frames_are_free() -> None:
    budget = ReceiveBudget(LIMIT)
    for owner in range(100):
        await budget.hold(owner, FREE_BYTES)
    assert budget.total == 0


async def test_over_the_limit_only_the_oldest_goes_on() -> None:
    budget = ReceiveBudget(LIMIT)
    await budget.hold("old", LIMIT // 2)
    waiting = asyncio.ensure_future(budget.hold("new", LIMIT))
    await turn()
    assert not waiting.done()
    await budget.hold("old", LIMIT * 2)
    budget.release("old")
    await waiting
    assert budget.total == LIMIT


async def test_room_is_given_on_while_its_owner_still_holds_some() -> None:
    budget = ReceiveBudget(LIMIT)
    await budget.hold("old", LIMIT)
    waiting = asyncio.ensure_future(budget.hold("new", LIMIT // 2))
    await turn()
    await budget.hold("old", LIMIT // 2)
    await waiting
    assert budget.total == LIMIT


async def test_one_after_the_other_gets_its_turn() -> None:
    budget = ReceiveBudget(LIMIT)
    done = []

    async def receive(owner: int) -> None:
        for size in range(0, 2 * LIMIT, LIMIT // 2):
            await budget.hold(owner, size)
            await asyncio.sleep(0)
        done.append(owner)
        budget.release(owner)

    async with asyncio.timeout(5):
        await asyncio.gather(*map(receive, range(8)))
    assert sorted(done) == list(range(8))
    assert budget.total == 0


async def test_cancelled_one_leaves_nothing_behind() -> None:
    budget = ReceiveBudget(LIMIT)
    await budget.hold("old", LIMIT)
    waiting = asyncio.ensure_future(budget.hold("new", LIMIT))
    await turn()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    budget.release("new")
    budget.release("old")
    budget.release("never there")
    assert budget.total == 0
