"""A view that follows real brokers, over their restarts and its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.cli.programs import open_host
from pilotfleet.errors import NotRunning, PilotError
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.monitor.feed import FeedConfig, FleetFeed, ForwardClock
from pilotfleet.fleet.monitor.view.fleetview import FleetView
from tests.node.support import eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.node.support import World

LANES = 4
"""Connections that publish at a time."""


@dataclass
class Fleet:
    """A broker that can be stopped, and a daemon beside it."""

    world: World
    folder: Path
    count: int = 0
    _hub: asyncio.Task[None] | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def socket(self) -> Path:
        """That of the daemon beside the broker."""
        return self.folder / "side" / "s"

    async def start_hub(self) -> None:
        """Start the broker; what it logged before is there again."""
        up = asyncio.Event()
        self._stop = asyncio.Event()

        async def run() -> None:
            config = self.world.config(
                *("hub", "hub"), socket=self.folder / "hub" / "s", brokers=("hub",)
            )
            async with open_host(config):
                up.set()
                await self._stop.wait()

        self._hub = asyncio.create_task(run())
        await up.wait()

    async def stop_hub(self) -> None:
        """Stop it, if it runs."""
        if self._hub is not None:
            self._stop.set()
            await self._hub
            self._hub = None

    async def publish(self, number: int, *, failed: int = 0, text: str = "") -> None:
        """Publish that so many more tasks ended, each in an event of its own."""
        rows: list[dict[str, Any]] = []
        for each in range(number):
            self.count += 1
            rows.append(
                {
                    "agent": "worker-1",
                    "task_id": f"t{self.count}",
                    "status": "FAILED" if each < failed else "SUCCEEDED",
                    "ms": 5,
                    "at": float(self.count),
                    "text": text,
                }
            )
        await asyncio.gather(*(self._publish(rows[n::LANES]) for n in range(LANES)))

    async def _publish(self, rows: list[dict[str, Any]]) -> None:
        async with await Agent.connect(self.socket) as agent:
            for row in rows:
                await publish(agent, "fleet.task", {"tasks": [row]})


async def publish(agent: Agent, topic: str, data: object) -> None:
    """Publish until a broker has confirmed it."""
    while True:
        try:
            await agent.publish(topic, data, confirm=True)
        except PilotError:
            await asyncio.sleep(0.05)
        else:
            return


@pytest.fixture
async def fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Fleet]:
    """Yield a fleet whose broker runs."""
    monkeypatch.setattr("pilotfleet.fleet.brokerfeed.FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("pilotfleet.fleet.brokerfeed.LONGEST_PAUSE_S", 0.2)
    for name in ("hub", "side"):
        (tmp_path / name).mkdir()
    async with open_world(tmp_path) as world:
        made = Fleet(world, tmp_path)
        side = world.config("side", "side", socket=made.socket, brokers=("hub",))
        async with open_host(side):
            await made.start_hub()
            try:
                yield made
            finally:
                await made.stop_hub()


@asynccontextmanager
async def following(feed: FleetFeed) -> AsyncIterator[FleetFeed]:
    """Run a feed, from its first connection on."""
    running = asyncio.create_task(feed.run())
    try:
        await feed.wait_following()
        yield feed
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def ended(view: FleetView) -> tuple[int, int]:
    """Return the tasks that completed and failed."""
    tasks = view.figures().tasks
    return tasks.completed, tasks.failed


async def test_every_event_counts_once_over_a_restart_of_the_broker(
    fleet: Fleet,
) -> None:
    view, seen = FleetView("batch"), list[bytes]()
    feed = FleetFeed(
        view,
        FeedConfig(socket=fleet.socket),
        on_event=lambda broker, topic, payload, at: seen.append(payload),
    )
    async with following(feed):
        await fleet.publish(50, failed=5)
        # Some of these come before the restart, some wait for it.
        publishing = asyncio.create_task(fleet.publish(150, failed=15))
        await eventually(lambda: sum(ended(view)) > 70, what="half of them")
        await fleet.stop_hub()
        await fleet.start_hub()
        await publishing
        await eventually(lambda: sum(ended(view)) >= 200, what="all of them")
        await fleet.publish(1)
        await eventually(lambda: sum(ended(view)) >= 201, what="the last one")
    assert ended(view) == (181, 20)
    assert view.figures().events_lost == 0
    # Only what was confirmed too late may have been sent twice.
    assert len(set(seen)) >= 201


async def test_stored_view_and_positions_belong_together(fleet: Fleet) -> None:
    """A monitor is killed again and again; it begins with what it stored last."""
    stored = (FleetView("batch").save(), dict[str, tuple[str, int]]())
    config = FeedConfig(socket=fleet.socket, since_s=60)
    for round_number in range(3):
        view = FleetView.load(stored[0], at=2e9)
        marks = asyncio.Queue[int]()

        async def store(
            positions: dict[str, tuple[str, int]],
            view: FleetView = view,
            marks: asyncio.Queue[int] = marks,
        ) -> None:
            nonlocal stored
            stored = (view.save(), positions)
            marks.put_nowait(sum(ended(view)))

        feed = FleetFeed(view, config, positions=stored[1], on_mark=store)
        async with following(feed):
            await fleet.publish(40, failed=4)
            while await marks.get() < 40 * (round_number + 1):
                pass
        assert feed.positions["hub"] == stored[1]["hub"]
    # While nobody follows.
    await fleet.publish(7)
    view = FleetView.load(stored[0], at=2e9)
    async with following(FleetFeed(view, config, positions=stored[1])):
        await eventually(lambda: sum(ended(view)) >= 127, what="what was missed")
        await fleet.publish(1)
        await eventually(lambda: sum(ended(view)) >= 128, what="the next one")
    assert ended(view) == (116, 12)
    # Confirmed once each, so that even the events are as many.
    assert view.figures().events == 128


async def test_what_was_lost_is_read_from_the_log(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """A monitor whose disk is slow reads nothing for a while."""
    caplog.set_level("INFO", "pilotfleet.fleet.monitor.feed")
    view = FleetView("batch")
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def block(positions: dict[str, tuple[str, int]]) -> None:
        # From when there is a place to begin again.
        if positions:
            entered.set()
            await go_on.wait()

    feed = FleetFeed(view, FeedConfig(socket=fleet.socket), on_mark=block)
    async with following(feed):
        await fleet.publish(1)
        await entered.wait()
        await fleet.publish(400, text="x" * 60_000)
        go_on.set()
        await eventually(lambda: sum(ended(view)) >= 401, what="all", limit_s=60)
    assert "broker hub lost events; reading its log" in caplog.text
    assert ended(view) == (401, 0)
    assert view.figures().events_lost == 0


async def test_directory_and_trust_are_read(fleet: Fleet) -> None:
    view = FleetView("batch")
    config = FeedConfig(socket=fleet.socket, directory_s=0.1, trust_s=0.1)
    async with (
        following(FleetFeed(view, config)),
        await Agent.connect(fleet.socket) as side,
        await Agent.connect(fleet.folder / "hub" / "s") as hub,
    ):
        await publish(side, "fleet.health", {"agent": "side", "status": "idle"})
        await eventually(lambda: view.figures().agents.alive == 1, what="health")
        await eventually(lambda: view.figures().polo.agents == 1, what="polo")
        await side.handshake("hub")
        await eventually_pending(hub)
        await hub.approve("side")
        await eventually(lambda: view.figures().trust_links == 1, what="trust")
        assert view.agent("side").trusted == ("hub",)
        await hub.untrust("side")
        await eventually(lambda: view.figures().trust_revoked, what="revocation")
    assert view.agent("side").row.node_id == side.node_id
    changes = [(row.change, row.one, row.other) for row in view.trust_changes()]
    assert [row[0] for row in changes] == ["revoked", "linked"]
    assert {*changes[0][1:]} == {"hub", "side"}


async def eventually_pending(agent: Agent) -> None:
    """Wait until somebody asks for trust."""
    while not await agent.pending():  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0.05)


async def test_time_stands_still_while_nothing_is_heard(fleet: Fleet) -> None:
    view = FleetView("batch")
    feed = FleetFeed(view, FeedConfig(socket=fleet.socket))
    async with following(feed):
        async with await Agent.connect(fleet.socket) as side:
            row = {"agent": "side", "status": "idle", "interval_s": 0.5}
            await publish(side, "fleet.health", row)
        await eventually(lambda: view.figures().agents.alive, what="health")
        await eventually(lambda: view.figures().agents.late, what="silence")
        await fleet.stop_hub()
        await eventually(lambda: not view.is_following, what="the loss")
        now = view.now
        # As each second does it.
        await feed.save()
        assert view.now == now
        await fleet.start_hub()
        await eventually(lambda: view.is_following and view.now > now, what="a return")
        await eventually(lambda: view.figures().agents.lost, what="silence")


async def test_first_failure_is_told_and_tried_again(tmp_path: Path) -> None:
    feed = FleetFeed(FleetView("batch"), FeedConfig(socket=tmp_path / "s"))
    running = asyncio.create_task(feed.run())
    with pytest.raises(NotRunning):
        await feed.wait_following()
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("walls", "elapsed", "expected"),
    [
        ((100, 101, 102), (5, 6, 7), (100, 101, 102)),
        # Set back: on from where it was.
        ((100, 50, 51), (5, 6, 7), (100, 101, 102)),
        # Set forward.
        ((100, 500, 501), (5, 6, 7), (100, 500, 501)),
    ],
)
def test_clock_never_goes_back(
    walls: tuple[int, ...], elapsed: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    wall, passed = iter(walls), iter(elapsed)
    clock = ForwardClock(lambda: float(next(wall)), lambda: float(next(passed)))
    assert [clock() for _ in expected] == list(expected)
