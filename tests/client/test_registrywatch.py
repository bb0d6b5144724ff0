"""The shell of a watch against a registry that a test scripts."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.registry import RegistryClient
from pilotfleet.client.registrywatch import Pace, RegistryWatch, WatchLink
from pilotfleet.client.watching import Change, RowBudget, TooManyRows, WatchQuery
from pilotfleet.errors import Busy, ConnectionFailed, PilotError, RegistryError
from tests.client.test_registry import FAST, TIMEOUT_S, Scripted, scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

QUICK = Pace(retry_s=0.02, longest_retry_s=0.05, poll_s=0.02, idle_s=0.05)
SLOW = Pace(retry_s=0.02, longest_retry_s=0.05, poll_s=0.02, idle_s=60.0)


class Source:
    """Asks a scripted registry."""

    def __init__(self, registry: Scripted, pace: Pace, *, offers: bool) -> None:
        self.link = WatchLink(registry.endpoint, tls=None, pace=pace)
        self.client = RegistryClient(registry.endpoint, config=FAST)
        self.offers = offers

    def offers_watch(self) -> bool:
        return self.offers

    async def ask(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return await self.link.ask({"type": "watch", **fields})

    async def search(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return await self.client.request({"type": "search", **fields})


class Following:
    """A watch that runs, and what it has told."""

    def __init__(self, watch: RegistryWatch) -> None:
        self.watch = watch
        self.task = asyncio.create_task(watch.run(self.note))
        self.changes: list[tuple[str, int]] = []
        self.told = asyncio.Event()

    def note(self, changes: list[Change]) -> None:
        self.changes += [(str(each.kind), each.row.node_id) for each in changes]
        self.told.set()

    async def until(self, *changes: tuple[str, int]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while self.changes != list(changes):
                self.told.clear()
                await self.told.wait()


@contextlib.asynccontextmanager
async def following(
    registry: Scripted, *, pace: Pace = QUICK, offers: bool = True, rows: int = 99
) -> AsyncIterator[Following]:
    source = Source(registry, pace, offers=offers)
    query = WatchQuery.of(["a"])
    watch = RegistryWatch(query, source, RowBudget(rows), pace=pace)
    made = Following(watch)
    try:
        yield made
    finally:
        made.task.cancel()
        await asyncio.wait([made.task])
        source.link.close()
        await source.client.aclose()


def answer(seq: int, *added: int, name: str = "w", **fields: Any) -> dict[str, Any]:
    rows = [{"node_id": node} for node in added]
    return {"type": "watch_ok", "watch": name, "seq": seq, "added": rows, **fields}


def plays(*answers: Any) -> Any:
    """Return an answerer that plays a list, then waits by repeating the last seq."""
    left = list(answers)

    def reply(request: dict[str, Any]) -> Any:
        if left:
            return left.pop(0)
        return answer(request["seq"], name=request["watch"])

    return reply


async def test_first_question_does_not_wait_and_later_ones_do() -> None:
    play = plays(answer(1, 1, reset=True, more=True), answer(2, 2), answer(3, 3))
    async with scripted(play) as registry, following(registry) as user:
        await user.until(("added", 1), ("added", 2), ("added", 3))
        assert user.watch.is_live
        asked = [(r["watch"], r["seq"], r["wait_s"]) for r in registry.requests[:3]]
        assert asked == [("", 0, 0), ("w", 1, 0), ("w", 2, 30.0)]
        assert registry.requests[0]["tags"] == ["a"]
        assert registry.connections == 1


async def test_lost_reply_is_asked_for_again_with_the_same_place() -> None:
    play = plays(answer(1, 1, reset=True), None, answer(2, 2))
    async with scripted(play) as registry, following(registry) as user:
        await user.until(("added", 1), ("added", 2))
        asked = [(r["watch"], r["seq"]) for r in registry.requests[:3]]
        assert asked == [("", 0), ("w", 1), ("w", 1)]
        assert registry.connections == 2


async def test_registry_that_restarts_causes_no_noise() -> None:
    play = plays(
        answer(1, 1, 2, reset=True),
        None,
        answer(1, 1, name="x", reset=True, more=True),
        answer(2, 2, 3, name="x"),
    )
    async with scripted(play) as registry, following(registry) as user:
        await user.until(("added", 1), ("added", 2), ("added", 3))


async def test_registry_without_watch_is_searched() -> None:
    rows = {1, 2}

    def search(request: dict[str, Any]) -> dict[str, Any]:
        assert request["type"] == "search"
        after = int(request["cursor"] or 0)
        page = sorted(node for node in rows if node > after)[:1]
        more = str(page[0]) if page and page[0] < max(rows) else ""
        agents = [{"node_id": node} for node in page]
        return {"type": "search_ok", "agents": agents, "next_cursor": more}

    async with (
        scripted(search) as registry,
        following(registry, offers=False) as user,
    ):
        await user.until(("added", 1), ("added", 2))
        assert not user.watch.is_live
        rows.add(3)
        rows.remove(1)
        await user.until(("added", 1), ("added", 2), ("added", 3), ("removed", 1))


async def test_registry_that_forgot_the_extension_is_searched() -> None:
    def old(request: dict[str, Any]) -> dict[str, Any]:
        if request["type"] == "watch":
            return {"type": "error", "error": 'unknown message type: "watch"'}
        return {"type": "search_ok", "agents": [{"node_id": 4}], "next_cursor": ""}

    async with scripted(old) as registry, following(registry) as user:
        await user.until(("added", 4))
        assert not user.watch.is_live


async def test_refusal_of_the_first_question_is_raised() -> None:
    refusal = {"type": "error", "error": "too many tags (max 10)"}
    async with scripted(lambda _: refusal) as registry, following(registry) as user:
        with pytest.raises(RegistryError, match="too many tags"):
            await user.task


async def test_later_refusal_is_tried_again() -> None:
    refusal = {"type": "error", "error": "node 1: node not found"}
    play = plays(answer(1, 1, reset=True), refusal, refusal, answer(2, 2))
    async with scripted(play) as registry, following(registry) as user:
        await user.until(("added", 1), ("added", 2))


async def test_registry_that_is_full_is_asked_when_it_says() -> None:
    full = {"type": "error", "error": "too many watches", "retry_after": 0.01}
    play = plays(full, full, answer(1, 1, reset=True))
    async with scripted(play) as registry, following(registry) as user:
        await user.until(("added", 1))


async def test_registry_that_stays_full_is_an_error() -> None:
    full = {"type": "error", "error": "too many watches", "retry_after": 0.01}
    async with scripted(lambda _: full) as registry, following(registry) as user:
        with pytest.raises(Busy, match="too many watches"):
            await user.task
        assert len(registry.requests) == 6


async def test_registry_that_is_away_at_first_is_an_error(
    unused_tcp_port: int,
) -> None:
    registry = Scripted()
    registry.endpoint = "127.0.0.1", unused_tcp_port
    async with following(registry) as user:
        with pytest.raises(ConnectionFailed):
            await user.task


async def test_too_many_agents_end_the_watch() -> None:
    play = plays(answer(1, 1, reset=True), answer(2, 2, 3))
    async with scripted(play) as registry, following(registry, rows=2) as user:
        with pytest.raises(TooManyRows):
            await user.task


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"type": "watch_ok"},
        answer(2, 9, name="other"),
        answer(1, 9, name="", reset=True),
        {"seq": "x"},
    ],
)
async def test_strange_reply_begins_anew(strange: Any) -> None:
    again = answer(1, 1, 2, name="x", reset=True)
    play = plays(answer(1, 1, reset=True), strange, again)
    async with scripted(play) as registry, following(registry) as user:
        await user.until(("added", 1), ("added", 2))
        assert [r["watch"] for r in registry.requests[:3]] == ["", "w", ""]


async def test_registry_that_answers_nothing_at_once_is_not_asked_in_a_loop() -> None:
    play = plays(answer(1, 1, reset=True))
    async with scripted(play) as registry, following(registry, pace=SLOW) as user:
        await user.until(("added", 1))
        await registry.arrivals(2)
        await asyncio.sleep(0.1)
        assert len(registry.requests) == 2


@pytest.mark.parametrize("reset", [False, True])
async def test_registry_that_has_ever_more_is_not_asked_in_a_loop(
    *, reset: bool
) -> None:
    def more(request: dict[str, Any]) -> dict[str, Any]:
        return answer(request["seq"] + 1, reset=reset or not request["seq"], more=True)

    async with scripted(more) as registry, following(registry, pace=SLOW):
        await registry.arrivals(1)
        await asyncio.sleep(0.1)
        assert len(registry.requests) == 1


async def test_registry_that_tells_ever_new_things_is_asked_at_a_pace() -> None:
    def flap(request: dict[str, Any]) -> dict[str, Any]:
        seq = request["seq"] + 1
        if seq % 2:
            return answer(seq, 1, reset=seq == 1)
        return answer(seq, removed=[1])

    pace = Pace(least_s=60.0)
    async with scripted(flap) as registry, following(registry, pace=pace) as user:
        await user.until(("added", 1), ("removed", 1))
        await asyncio.sleep(0.1)
        assert len(registry.requests) == 2


async def test_silent_registry_is_given_up_and_asked_again() -> None:
    pace = Pace(wait_s=0.05, reply_slack_s=0.5, retry_s=0.02)
    play = plays(answer(1, 1, reset=True))
    async with scripted(play) as registry, following(registry, pace=pace) as user:
        await user.until(("added", 1))
        registry.gate.clear()
        seen = len(registry.requests)
        await registry.arrivals(seen + 2)
        assert registry.connections >= 2


def test_ten_thousand_watchers_come_back_over_seconds() -> None:
    """After the first failure; and after more failures over longer."""
    pauses = []
    for seed in range(10_000):
        watch = RegistryWatch(
            WatchQuery(), _Nobody(), RowBudget(1), rng=random.Random(seed)
        )
        pauses.append([watch._retry_pause() for _ in range(6)])
    first = sorted(each[0] for each in pauses)
    assert first[0] >= 0.5
    assert first[-1] > 4.9
    # No tenth of a second gets more than twice its share of them.
    slots = [sum(at <= p < at + 0.1 for p in first) for at in _steps(0.5, 5.0, 0.1)]
    assert max(slots) < 2 * 10_000 / 45
    assert max(each[5] for each in pauses) <= 60.0
    assert min(each[5] for each in pauses) >= 6.0


def _steps(begin: float, end: float, step: float) -> list[float]:
    return [begin + step * number for number in range(round((end - begin) / step))]


class _Nobody:
    def offers_watch(self) -> bool:
        return True

    async def ask(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        raise PilotError("nobody")

    async def search(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        raise PilotError("nobody")
