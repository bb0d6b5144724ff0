"""Health events as the launcher of a batch hears them, from a real broker."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from pilotfleet.cli.programs import open_host
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import PilotError
from pilotfleet.fleet import healthwatch
from pilotfleet.fleet.healthwatch import HealthWatch
from tests.node.support import eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def socket(tmp_path: Path) -> AsyncIterator[Path]:
    """Yield the socket of a daemon that is its own broker."""
    (tmp_path / "hub").mkdir()
    async with open_world(tmp_path) as world:
        config = world.config("hub", "hub", socket=tmp_path / "hub" / "s")
        async with open_host(config):
            yield tmp_path / "hub" / "s"


async def publish(client: DaemonClient, data: str, topic: str = "fleet.health") -> None:
    await client.call("publish", topic=topic, data=data)


async def test_last_health_of_each_agent_is_kept(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healthwatch, "MAX_AGENTS", 2)
    watch = HealthWatch()
    async with (
        await DaemonClient.connect(socket) as events,
        await DaemonClient.connect(socket) as client,
    ):
        running = asyncio.ensure_future(watch.run(events))
        while not watch.events:
            await publish(client, '{"agent": "a", "status": "idle"}')
        heard = watch.events
        await publish(client, '{"agent": "other"}', topic="fleet.task")
        await publish(client, "no JSON")
        await publish(client, "[1]")
        for data in ('{"agent": "b"}', '{"agent": "c"}', '{"agent":"a","status":"x"}'):
            await publish(client, data)
        await eventually(lambda: watch.states.get("a") == "x", what="the last one")
        assert watch.events >= heard + 3
        # Of too many, who was not heard for longest is forgotten.
        assert watch.states == {"c": "", "a": "x"}
        runs = '{"tasks": [{"status": "SUCCEEDED"}, {"status": "FAILED"}, 7]}'
        for data in (runs, '{"tasks": 7}', '{"agent": "a", "status": "idle"}'):
            await publish(client, data, topic="fleet.task")
        await publish(client, '{"agent": "b", "status": "busy"}')
        await eventually(
            lambda: watch.status()["agents"].get("busy") == 1, what="its state"
        )
        assert (watch.status()["runs"], watch.status()["failed_runs"]) == (2, 1)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


@pytest.mark.parametrize(
    "payload",
    [
        b'{"agent": "\xff"}',
        b'{"agent": "\\ud800"}',
        b'{"agent": ' * 90_000,
        b'{"agent": "a", "status": ' + b"[" * 90_000 + b"]" * 90_000 + b"}",
        b'{"agent": {"a": 1}, "status": "idle"}',
        b'{"agent": "a", "status": ["[/b]"]}',
        b'{"agent": "%s"}' % (b"a" * 100_000),
        b'{"agent": "a", "n": 1e999}',
        b"7",
        b"",
    ],
)
@pytest.mark.parametrize("topic", ["fleet.health", "fleet.task"])
def test_nothing_that_a_member_says_ends_the_watch(topic: str, payload: bytes) -> None:
    watch = HealthWatch()
    watch.take(topic, payload)
    assert watch.states == {}
    assert watch.status()["runs"] == 0
    watch.take("fleet.health", b'{"agent": "a", "status": "%s"}' % (b"s" * 9_000))
    assert watch.status()["agents"] == {"s" * 32: 1}


async def test_daemon_that_goes_away_ends_the_watch(socket: Path) -> None:
    async with await DaemonClient.connect(socket) as events:
        running = asyncio.ensure_future(HealthWatch().run(events))
        await asyncio.sleep(0)
        await events.close()
        with contextlib.suppress(PilotError):
            await running
    assert running.done()
