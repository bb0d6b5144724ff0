"""Answers to searches that are kept for a moment."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from pilotfleet.errors import ConnectionFailed, PilotError
from pilotfleet.node import discovery
from pilotfleet.node.discovery import Discovery
from pilotfleet.node.supervisor import Supervisor
from tests.node.support import open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

QUERY = {"tags": ["a"], "limit": 50}


@dataclass
class Clock:
    """What a search needs of a host: time, chance and tasks."""

    time: float = 100.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    tasks: Supervisor = field(default_factory=Supervisor)

    def now(self) -> float:
        return self.time

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        return self.tasks.spawn(coro, name=name)


@dataclass
class Asker:
    """An agent whose registry knows one agent."""

    name: str = "one"
    node_id: int = 1
    asked: list[dict[str, Any]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    rows: int = 1
    error: PilotError | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    async def registry(self, type: str, /, **fields: Any) -> dict[str, Any]:
        self.asked.append(fields)
        number = len(self.asked)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return {"agents": [{"node_id": n} for n in range(self.rows)], "total": number}


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    made = Clock()
    yield made
    await made.tasks.aclose()


@pytest.fixture
def kept(clock: Clock) -> Discovery:
    return Discovery(cast("Host", clock))


async def ask(kept: Discovery, asker: Asker, **fields: Any) -> dict[str, Any]:
    cached = fields.pop("cached", True)
    query = {**QUERY, **fields}
    return await kept.search(cast("Agent", asker), query, cached=cached)


async def test_equal_question_is_answered_from_memory(
    kept: Discovery, clock: Clock
) -> None:
    asker = Asker()
    first = await ask(kept, asker)
    assert "age_s" not in first
    clock.time += 1.0
    assert await ask(kept, asker) == {**first, "age_s": 1.0}
    assert len(asker.asked) == 1


async def test_answer_holds_for_two_seconds_at_most(
    kept: Discovery, clock: Clock
) -> None:
    asker = Asker()
    for count in range(1, 30):
        await ask(kept, asker)
        assert len(asker.asked) == count
        clock.time += 2.0


async def test_answers_end_at_different_times(clock: Clock) -> None:
    ages = set()
    for _ in range(20):
        kept, asker = Discovery(cast("Host", clock)), Asker()
        await ask(kept, asker)
        age = 0.0
        while len(asker.asked) == 1:
            age += 0.05
            clock.time += 0.05
            await ask(kept, asker)
        ages.add(round(age, 2))
    assert min(ages) >= 1.5
    assert max(ages) <= 2.05
    assert len(ages) > 3


async def test_other_question_or_agent_is_asked(kept: Discovery) -> None:
    one, two = Asker(), Asker(name="two")
    await ask(kept, one)
    await ask(kept, one, tags=["b"])
    await ask(kept, two)
    assert len(one.asked) == 2
    assert len(two.asked) == 1


async def test_order_of_fields_does_not_matter(kept: Discovery) -> None:
    asker = Asker()
    await kept.search(cast("Agent", asker), {"tags": ["a"], "limit": 5}, cached=True)
    await kept.search(cast("Agent", asker), {"limit": 5, "tags": ["a"]}, cached=True)
    assert len(asker.asked) == 1


async def test_fresh_asks_and_is_kept(kept: Discovery) -> None:
    asker = Asker()
    await ask(kept, asker)
    assert (await ask(kept, asker, cached=False))["total"] == 2
    assert (await ask(kept, asker))["total"] == 2


async def test_own_change_forgets(kept: Discovery) -> None:
    asker = Asker()
    await ask(kept, asker)
    kept.clear()
    await ask(kept, asker)
    assert len(asker.asked) == 2


async def test_answer_from_before_an_own_change_is_not_kept(kept: Discovery) -> None:
    asker = Asker()
    asker.gate.clear()
    early = asyncio.ensure_future(ask(kept, asker))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    kept.clear()
    late = asyncio.ensure_future(ask(kept, asker))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asker.gate.set()
    assert (await early)["total"] == 1
    assert (await late)["total"] == 2
    assert (await ask(kept, asker))["total"] == 2


async def test_answer_without_a_match_is_not_kept(kept: Discovery) -> None:
    asker = Asker(rows=0)
    await ask(kept, asker)
    await ask(kept, asker)
    assert len(asker.asked) == 2


@pytest.mark.parametrize("rows", [True, 5, "abc", {"a": 1}])
async def test_answer_of_another_form_is_passed_on_and_not_kept(
    kept: Discovery, rows: Any
) -> None:
    asker = Asker()

    async def registry(type: str, /, **fields: Any) -> dict[str, Any]:
        asker.asked.append(fields)
        return {"type": "search_ok", "agents": rows}

    asker.registry = registry  # type: ignore[method-assign]
    for cached in (True, False, True):
        found = await kept.search(cast("Agent", asker), QUERY, cached=cached)
        assert found["agents"] == rows
    assert len(asker.asked) == 3


async def test_long_answer_is_not_kept(kept: Discovery) -> None:
    asker = Asker(rows=discovery.MAX_ROWS + 1)
    await ask(kept, asker)
    await ask(kept, asker)
    assert len(asker.asked) == 2


async def test_questions_at_the_same_time_are_one(kept: Discovery) -> None:
    asker = Asker()
    asker.gate.clear()
    asking = [asyncio.ensure_future(ask(kept, asker)) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()
    asker.gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(a, dict) and a["total"] == 1 for a in answers[1:])
    assert len(asker.asked) == 1


async def test_fresh_does_not_join_an_older_question(kept: Discovery) -> None:
    asker = Asker()
    asker.gate.clear()
    older = asyncio.ensure_future(ask(kept, asker))
    await asyncio.sleep(0)
    fresh = asyncio.ensure_future(ask(kept, asker, cached=False))
    await asyncio.sleep(0)
    asker.gate.set()
    assert (await fresh)["total"] != (await older)["total"]


async def test_older_question_does_not_replace_a_fresh_answer(kept: Discovery) -> None:
    asker, late = Asker(), asyncio.Event()
    asker.gate = late
    older = asyncio.ensure_future(ask(kept, asker))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asker.gate = asyncio.Event()
    asker.gate.set()
    assert (await ask(kept, asker, cached=False))["total"] == 2
    late.set()
    assert (await older)["total"] == 1
    assert (await ask(kept, asker))["total"] == 2


async def test_fresh_answer_without_a_match_replaces_one_with_it(
    kept: Discovery,
) -> None:
    asker = Asker()
    await ask(kept, asker)
    asker.rows = 0
    await ask(kept, asker, cached=False)
    assert (await ask(kept, asker))["agents"] == []


async def test_failure_reaches_all_and_is_not_kept(
    kept: Discovery, clock: Clock
) -> None:
    asker = Asker(error=ConnectionFailed("away"))
    asking = [ask(kept, asker) for _ in range(3)]
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(each, ConnectionFailed) for each in answers)
    assert len(asker.asked) == 1
    asker.error = None
    assert "agents" in await ask(kept, asker)
    assert clock.tasks.failures == 0


async def test_number_of_answers_is_bounded(kept: Discovery) -> None:
    asker = Asker()
    for number in range(3 * discovery.MAX_ANSWERS):
        await ask(kept, asker, limit=number + 1)
    assert len(kept._answers) == discovery.MAX_ANSWERS


async def test_agents_see_what_their_host_changes(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.host("a", "one", "two") as host,
    ):
        one, two = host.agents["one"], host.agents["two"]
        found = await two.search(hostname_prefix="one", cached=True)
        assert found["agents"][0]["tags"] == []
        await one.registry("set_tags", node_id=one.node_id, tags=["new"])
        found = await two.search(hostname_prefix="one", cached=True)
        assert found["agents"][0]["tags"] == ["new"]
        assert "age_s" not in found
        assert "age_s" in await two.search(hostname_prefix="one", cached=True)
        assert "age_s" not in await two.search(hostname_prefix="one")
