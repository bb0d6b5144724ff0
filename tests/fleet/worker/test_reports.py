"""What a worker publishes, against a daemon whose ``publish`` the test plays."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import NotSupported, TimedOut
from tests.fleet.worker.support import Desk, serving
from tests.fleet.worker.test_runner import Pair
from tests.node.support import eventually

if TYPE_CHECKING:
    from tests.services.tasks.support import TaskWorld

MODULE = "pilotfleet.fleet.worker.reports"


class Bus:
    """Takes what is published; fails as often as it is told to."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.health: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.failures: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def publish(
        self, _: Any, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Be the operation of the daemon."""
        event = json.loads(params["data"])
        if params["topic"] == "fleet.health":
            self.health.append(event)
            return {}
        self.calls.append(params)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.rows += event["tasks"]
        return {}

    def ids(self) -> list[str]:
        """Return the tasks that were told."""
        return [row["task_id"] for row in self.rows]


@pytest.fixture
async def pair(nodes: TaskWorld, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(f"{MODULE}.RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(f"{MODULE}.RETRY_MAX_S", 0.05)
    boss, bob = await nodes.node("boss"), await nodes.node("bob", "eve")
    program = await boss.program()
    await program.call("watch")
    return Pair(boss, bob, program)


@pytest.fixture
def bus(pair: Pair) -> Bus:
    bus = Bus()
    pair.bob.host.extensions["publish"] = bus.publish
    return bus


async def done(pair: Pair, desk: Desk, text: str) -> str:
    """Have a task done; return its id."""
    task_id = await pair.submit(text)
    await eventually(lambda: text in desk.open, what="the task")
    desk.finish(text, f"<b>{text}</b>")
    await pair.ended(task_id)
    return task_id


async def test_ends_are_published_with_confirmation(pair: Pair, bus: Bus) -> None:
    desk = Desk()
    async with serving(pair.bob, desk, health_interval_s=0.5) as served:
        task_id = await done(pair, desk, "one")
        await eventually(lambda: bus.rows, what="the row")
        [row] = bus.rows
        assert (row["task_id"], row["text"]) == (task_id, "<b>one</b>")
        assert bus.calls[0]["confirm"] is True
        assert bus.health[0]["interval_s"] == 0.5
        await served.end()


async def test_ends_that_were_not_confirmed_are_told_again(
    pair: Pair, bus: Bus
) -> None:
    desk = Desk()
    bus.failures = [TimedOut("broker hub did not confirm")] * 3
    async with serving(pair.bob, desk, health_interval_s=0.5) as served:
        ids = [await done(pair, desk, f"t{number}") for number in range(3)]
        await eventually(lambda: len(bus.rows) >= 3, what="all rows")
        assert bus.ids() == ids
        assert not bus.failures
        assert served.worker._reports.dropped == 0
        await served.end()


async def test_ends_outlive_the_connection_to_the_daemon(
    nodes: TaskWorld, pair: Pair, bus: Bus
) -> None:
    desk = Desk()
    bus.gate.clear()
    async with serving(pair.bob, desk, health_interval_s=0.5) as served:
        task_id = await done(pair, desk, "kept")
        await eventually(lambda: bus.calls, what="an attempt")
        await pair.bob.close()
        # What asks for the operation may still be under way when it is closed.
        pair.bob = await nodes.node("bob", "eve")
        again = Bus()
        pair.bob.host.extensions["publish"] = again.publish
        await served.connected(times=2)
        await eventually(lambda: again.rows, what="the row")
        assert again.ids() == [task_id]
        await eventually(lambda: again.health, what="its health")
        assert again.health[0]["status"] == "idle"
        await served.end()


async def test_broker_that_cannot_confirm_gets_them_unconfirmed(
    pair: Pair, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.UNCONFIRMED_S", 1_000.0)
    desk = Desk()
    bus.failures = [NotSupported("broker hub does not confirm events")]
    async with serving(pair.bob, desk, health_interval_s=0.5) as served:
        first = await done(pair, desk, "one")
        await eventually(lambda: len(bus.rows) == 1, what="the first row")
        second = await done(pair, desk, "two")
        await eventually(lambda: len(bus.rows) == 2, what="the second row")
        assert bus.ids() == [first, second]
        asked = [call.get("confirm", False) for call in bus.calls]
        assert asked == [True, False, False]
        await served.end()


async def test_broker_is_asked_to_confirm_again_later(
    pair: Pair, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.UNCONFIRMED_S", 0.0)
    desk = Desk()
    bus.failures = [NotSupported("broker hub does not confirm events")]
    async with serving(pair.bob, desk, health_interval_s=0.5) as served:
        await done(pair, desk, "one")
        await eventually(lambda: len(bus.rows) == 1, what="the first row")
        await done(pair, desk, "two")
        await eventually(lambda: len(bus.rows) == 2, what="the second row")
        asked = [call.get("confirm", False) for call in bus.calls]
        assert asked[:3] == [True, False, True]
        await served.end()


async def test_worker_that_stops_tells_the_rest_and_leaves(
    pair: Pair, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would have gathered for long.
    monkeypatch.setattr(f"{MODULE}.GATHER_S", 1_000.0)
    desk = Desk()
    async with serving(pair.bob, desk, "bob", "eve", health_interval_s=0.5) as served:
        task_id = await done(pair, desk, "one")
        await served.end()
    assert bus.ids() == [task_id]
    last = {event["agent"]: event for event in bus.health}
    assert {event["status"] for event in last.values()} == {"stopped"}
    assert last["bob"]["tasks_completed"] == 1
    # One farewell each, and nothing after it.
    assert [event["status"] for event in bus.health].count("stopped") == 2


async def test_ends_that_give_way_are_counted_and_logged(
    pair: Pair,
    bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("pilotfleet.fleet.worker.ends.MAX_ROWS", 2)
    desk = Desk()
    bus.failures = [TimedOut("broker hub is away")]
    bus.gate.clear()
    async with serving(pair.bob, desk, health_interval_s=0.5) as served:
        ids = [await done(pair, desk, f"t{number}") for number in range(5)]
        bus.gate.set()
        await eventually(lambda: "too many waited" in caplog.text, what="the warning")
        assert bus.ids() == ids[-2:]
        assert served.worker._reports.dropped == 3
        await served.end()


async def test_cancelled_worker_leaves_too(pair: Pair, bus: Bus) -> None:
    desk = Desk()
    async with serving(pair.bob, desk, health_interval_s=0.5) as served:
        served.task.cancel()
        await asyncio.gather(served.task, return_exceptions=True)
    assert bus.health[-1]["status"] == "stopped"


async def test_worker_without_events_says_nothing(pair: Pair, bus: Bus) -> None:
    desk = Desk()
    async with serving(pair.bob, desk, health_interval_s=0.0) as served:
        await done(pair, desk, "one")
        await served.end()
    assert not bus.health
    assert not bus.calls


async def test_end_does_not_wait_for_ever_for_a_broker(
    pair: Pair,
    bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(f"{MODULE}.LAST_WORDS_S", 0.1)
    desk = Desk()
    bus.gate.clear()
    async with serving(pair.bob, desk, health_interval_s=0.5) as served:
        await done(pair, desk, "one")
        async with asyncio.timeout(10):
            await served.end()
    assert bus.health[-1]["status"] == "stopped"
    assert "the ends of 1 tasks were not told" in caplog.text
