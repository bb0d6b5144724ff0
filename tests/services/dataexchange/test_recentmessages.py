"""What was stored lately is known for ten minutes, and no longer."""

from __future__ import annotations

import asyncio

import pytest

from pilotfleet.services.dataexchange.recentmessages import (
    MAX_REMEMBERED,
    REMEMBERED_S,
    Outcome,
    RecentMessages,
)
from pilotfleet.testing.clock import FakeClock


class Storage:
    """Counts what it stores."""

    def __init__(self, recent: RecentMessages, *, works: bool = True) -> None:
        self.recent = recent
        self.works = works
        self.stored = 0

    async def __call__(self) -> Outcome:
        await asyncio.sleep(0)
        self.stored += 1
        return Outcome(self.works, f"answer {self.stored}")

    async def deliver(self, key: bytes, owner: str = "agent") -> str | None:
        """Deliver a message; return the answer of an earlier copy."""
        answer, is_first = await self.recent.once(owner, key, self)
        assert not is_first or answer == f"answer {self.stored}"
        return None if is_first else answer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def storage(clock: FakeClock) -> Storage:
    return Storage(RecentMessages(clock))


async def test_second_copy_gets_the_first_answer(storage: Storage) -> None:
    assert await storage.deliver(b"a") is None
    assert await storage.deliver(b"a") == "answer 1"
    assert await storage.deliver(b"b") is None
    assert await storage.deliver(b"a", owner="other") is None


async def test_second_copy_waits_for_the_first(storage: Storage) -> None:
    answers = await asyncio.gather(*(storage.deliver(b"a") for _ in range(3)))
    assert answers == [None, "answer 1", "answer 1"]
    assert storage.stored == 1


async def test_second_copy_is_stored_when_the_first_fails(storage: Storage) -> None:
    storage.works = False
    copies = (storage.deliver(b"a") for _ in range(2))
    assert await asyncio.gather(*copies) == [None, None]
    assert storage.stored == 2


async def test_second_copy_is_stored_when_the_first_is_cancelled(
    storage: Storage,
) -> None:
    first = asyncio.ensure_future(storage.deliver(b"a"))
    second = asyncio.ensure_future(storage.deliver(b"a"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is None
    assert first.cancelled()


async def test_old_message_is_forgotten(storage: Storage, clock: FakeClock) -> None:
    await storage.deliver(b"a")
    clock.advance(REMEMBERED_S - 1)
    assert await storage.deliver(b"a") == "answer 1"
    clock.advance(2)
    assert await storage.deliver(b"a") is None


async def test_table_has_a_bound_and_the_oldest_goes_first(storage: Storage) -> None:
    for number in range(MAX_REMEMBERED + 1):
        await storage.deliver(number.to_bytes(4, "big"))
    assert len(storage.recent) == MAX_REMEMBERED
    assert await storage.deliver((1).to_bytes(4, "big")) == "answer 2"
    assert await storage.deliver((0).to_bytes(4, "big")) is None


async def test_tables_of_quiet_agents_go(storage: Storage, clock: FakeClock) -> None:
    for number in range(100):
        await storage.deliver(b"a", owner=f"agent-{number}")
    clock.advance(REMEMBERED_S)
    await storage.deliver(b"b")
    assert len(storage.recent) == 1
