"""Work that takes long gets a share of each turn: on a clock of the test."""

from __future__ import annotations

import asyncio

from pilotfleet.registry.turns import SHARE_S, WOKEN_AT_ONCE, Turns


class Stopwatch:
    """Tells the time that the test's work says to take."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


async def loop_turn() -> None:
    """Let the event loop do what is ready now."""
    await asyncio.sleep(0)


async def crowd(turns: Turns, clock: Stopwatch, count: int, cost_s: float) -> list[int]:
    """Let many work at the same time; return how many did in each turn of the loop."""
    done: list[int] = []
    turn = 0

    async def work() -> None:
        await turns.take()
        clock.time += cost_s
        done.append(turn)

    tasks = [asyncio.create_task(work()) for _ in range(count)]
    while len(done) < count:
        await loop_turn()
        turn += 1
    await asyncio.gather(*tasks)
    return [done.count(each) for each in sorted(set(done))]


async def test_nobody_waits_in_quiet_times() -> None:
    clock = Stopwatch()
    turns = Turns(clock)
    for _ in range(100):
        taken = turns.take()
        try:
            taken.send(None)
        except StopIteration:
            pass
        else:
            raise AssertionError("it waited")


async def test_a_crowd_has_its_share_of_each_turn() -> None:
    clock = Stopwatch()
    counts = await crowd(Turns(clock), clock, 100, SHARE_S / 4)
    assert sum(counts) == 100
    assert max(counts) <= WOKEN_AT_ONCE
    assert len(counts) > 10


async def test_they_work_in_the_order_in_which_they_came() -> None:
    clock = Stopwatch()
    turns = Turns(clock)
    order: list[int] = []

    async def work(number: int) -> None:
        await turns.take()
        clock.time += SHARE_S
        order.append(number)

    await asyncio.gather(*(work(number) for number in range(50)))
    assert order == list(range(50))


async def test_who_works_keeps_its_turn_and_then_waits_behind_the_others() -> None:
    clock = Stopwatch()
    turns = Turns(clock)
    done: list[str] = []

    async def work(name: str, cost_s: float, pieces: int) -> None:
        await turns.take()
        for _ in range(pieces):
            clock.time += cost_s
            done.append(name)
            await turns.keep()

    await asyncio.gather(work("a", SHARE_S / 2.5, 6), work("b", SHARE_S / 2.5, 6))
    # Both have come in the same turn, and each works until its share is over.
    assert sorted(done) == ["a"] * 6 + ["b"] * 6
    assert done[:3] == ["a"] * 3
    assert "b" in done[:7]


async def test_one_who_was_cancelled_takes_no_turn() -> None:
    clock = Stopwatch()
    turns = Turns(clock)

    async def work() -> None:
        await turns.take()
        clock.time += SHARE_S

    busy = asyncio.create_task(work())
    waiting = [asyncio.create_task(turns.take()) for _ in range(3)]
    await loop_turn()
    await busy
    waiting[0].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [None, None]
    assert not turns._waiting


async def test_it_is_known_how_long_one_waits() -> None:
    clock = Stopwatch()
    turns = Turns(clock)

    async def work() -> None:
        await turns.take()
        clock.time += SHARE_S

    assert turns.waited_s == 0.0
    tasks = [asyncio.create_task(work()) for _ in range(3)]
    await loop_turn()
    clock.time += 3.0
    assert turns.waited_s >= 3.0
    await asyncio.gather(*tasks)
    assert turns.waited_s == 0.0


async def test_long_pieces_have_one_in_each_turn() -> None:
    clock = Stopwatch()
    assert max(await crowd(Turns(clock, woken=1), clock, 20, SHARE_S * 2)) == 1
