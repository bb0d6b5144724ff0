"""The timer wheel, on a real loop with a clock under control."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from pilotfleet.transport.wheel import TimerWheel

if TYPE_CHECKING:
    from collections.abc import Iterator


class ManualLoop:
    """Holds the one handle that the wheel may arm; fires it when told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: float | None = None
        self.armed = 0
        self._callback: object = None

    def call_later(self, delay: float, callback: object) -> ManualLoop:
        assert self.due is None, "the wheel armed a second timer"
        self.due = self.now + delay
        self.armed += 1
        self._callback = callback
        return self

    def cancel(self) -> None:
        self.due = None

    def advance(self, to: float) -> None:
        """Let time pass, firing whatever comes due."""
        while self.due is not None and self.due <= to:
            self.now = self.due
            self.due = None
            assert callable(self._callback)
            self._callback()
        self.now = to


class Owner:
    def __init__(self, name: str, log: list[tuple[str, float]]) -> None:
        self.name = name
        self._log = log

    def handle_timer(self, now: float) -> None:
        self._log.append((self.name, round(now, 6)))


@pytest.fixture
def loop() -> ManualLoop:
    return ManualLoop()


@pytest.fixture
def wheel(loop: ManualLoop) -> Iterator[TimerWheel]:
    made = TimerWheel(loop, clock=lambda: loop.now)  # type: ignore[arg-type]
    yield made
    made.close()
    assert loop.due is None


@pytest.fixture
def log() -> list[tuple[str, float]]:
    return []


def test_owners_are_called_in_order_of_their_deadlines(
    wheel: TimerWheel, loop: ManualLoop, log: list[tuple[str, float]]
) -> None:
    for name, at in (("c", 103.0), ("a", 101.0), ("b", 102.0)):
        wheel.schedule(Owner(name, log), at)
    loop.advance(110)
    assert log == [("a", 101.0), ("b", 102.0), ("c", 103.0)]
    assert len(wheel) == 0


def test_a_later_deadline_replaces_an_earlier_one(
    wheel: TimerWheel, loop: ManualLoop, log: list[tuple[str, float]]
) -> None:
    owner = Owner("a", log)
    wheel.schedule(owner, 101.0)
    wheel.schedule(owner, 105.0)
    loop.advance(104)
    assert log == []
    loop.advance(106)
    assert log == [("a", 105.0)]


def test_an_earlier_deadline_replaces_a_later_one(
    wheel: TimerWheel, loop: ManualLoop, log: list[tuple[str, float]]
) -> None:
    owner = Owner("a", log)
    wheel.schedule(owner, 105.0)
    wheel.schedule(owner, 101.0)
    assert wheel.deadline(owner) == 101.0
    loop.advance(110)
    assert log == [("a", 101.0)]


def test_a_cancelled_owner_is_not_called(
    wheel: TimerWheel, loop: ManualLoop, log: list[tuple[str, float]]
) -> None:
    owner = Owner("a", log)
    wheel.schedule(owner, 101.0)
    wheel.cancel(owner)
    wheel.cancel(owner)
    loop.advance(110)
    assert log == []
    wheel.schedule(owner, 111.0)
    loop.advance(112)
    assert log == [("a", 111.0)]


def test_a_deadline_in_the_past_is_served_in_the_next_round(
    wheel: TimerWheel, loop: ManualLoop, log: list[tuple[str, float]]
) -> None:
    wheel.schedule(Owner("a", log), 50.0)
    assert log == []
    loop.advance(100.01)
    assert log == [("a", 100.001)]


def test_an_owner_may_schedule_itself_again(
    wheel: TimerWheel, loop: ManualLoop, log: list[tuple[str, float]]
) -> None:
    class Ticker(Owner):
        def handle_timer(self, now: float) -> None:
            super().handle_timer(now)
            if now < 105:
                wheel.schedule(self, now + 1)

    wheel.schedule(Ticker("t", log), 101.0)
    loop.advance(120)
    assert [at for _, at in log] == [101, 102, 103, 104, 105]


def test_one_owner_s_failure_does_not_reach_the_others(
    wheel: TimerWheel,
    loop: ManualLoop,
    log: list[tuple[str, float]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def handle_timer(self, now: float) -> None:
            raise ZeroDivisionError

    wheel.schedule(Broken(), 101.0)
    wheel.schedule(Owner("a", log), 101.0)
    with caplog.at_level(logging.ERROR):
        loop.advance(110)
    assert log == [("a", 101.0)]
    assert "timer handler" in caplog.text


def test_a_deadline_that_moves_with_every_packet_costs_no_memory(
    wheel: TimerWheel, loop: ManualLoop, log: list[tuple[str, float]]
) -> None:
    owner = Owner("a", log)
    for step in range(10_000):
        wheel.schedule(owner, 101.0 + (step * 7919 % 1000) / 10)
    assert len(wheel._heap) < 600
    wheel.schedule(owner, 150.0)
    loop.advance(300)
    assert log == [("a", 150.0)]


async def test_it_works_on_a_real_loop() -> None:
    loop = asyncio.get_running_loop()
    wheel = TimerWheel(loop, clock=loop.time)
    fired: asyncio.Future[float] = loop.create_future()

    class Waiter:
        def handle_timer(self, now: float) -> None:
            fired.set_result(now)

    deadline = loop.time() + 0.01
    wheel.schedule(Waiter(), deadline)
    assert await fired >= deadline - 0.001
