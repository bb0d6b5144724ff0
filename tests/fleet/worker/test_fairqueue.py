"""Whose turn it is when many wait."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.fleet.worker.fairqueue import FairPlaces, FairQueue


def test_owners_take_turns_and_keep_their_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.push(item[0], item)
    taken = [queue.pop() for _ in range(len(queue))]
    assert taken == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_nothing_comes_from_an_empty_queue() -> None:
    with pytest.raises(IndexError):
        FairQueue[str]().pop()


def test_what_waits_no_longer_is_left_out() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "b1"):
        queue.push(item[0], item)
    queue.discard("a", "a1")
    queue.discard("b", "b1")
    queue.discard("b", "b1")
    queue.discard("nobody", "x")
    assert len(queue) == 1
    assert queue.pop() == "a2"


@given(st.lists(st.sampled_from("abcd")))
def test_no_owner_waits_longer_than_a_round(owners: list[str]) -> None:
    queue: FairQueue[str] = FairQueue()
    for owner in owners:
        queue.push(owner, owner)
    left = list(owners)
    skipped = dict.fromkeys("abcd", 0)
    while len(queue):
        owner = queue.pop()
        left.remove(owner)
        for other in set(left) - {owner}:
            skipped[other] += 1
            assert skipped[other] <= 3
        skipped[owner] = 0
    assert not left


async def test_one_agent_with_many_tasks_does_not_hold_up_another() -> None:
    places = FairPlaces(1)
    await places.acquire("first")
    order: list[str] = []

    async def work(agent: str) -> None:
        await places.acquire(agent)
        order.append(agent)
        places.release()

    async with asyncio.TaskGroup() as group:
        for agent in ("greedy",) * 50 + ("modest",):
            group.create_task(work(agent))
        await asyncio.sleep(0)
        places.release()
    assert order.index("modest") == 1


async def test_places_are_never_more_than_there_are() -> None:
    places, running, most = FairPlaces(3), 0, 0

    async def work(number: int) -> None:
        nonlocal running, most
        await places.acquire(f"agent-{number % 5}")
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        places.release()

    async with asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(work(number))
    assert most == 3


async def test_a_place_that_comes_as_its_owner_is_cancelled_is_not_lost() -> None:
    places = FairPlaces(1)
    await places.acquire("a")
    waiting = [asyncio.create_task(places.acquire(name)) for name in "bcd"]
    await asyncio.sleep(0)
    waiting[0].cancel()
    places.release()  # The first is cancelled, but is in its line still.
    waiting[1].cancel()  # The second was given the place and cannot use it.
    async with asyncio.timeout(5):
        await waiting[2]
    for task in waiting[:2]:
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
    places.release()
    await places.acquire("e")
