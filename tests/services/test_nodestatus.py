"""``fleet.node``: what a daemon tells of its agents, on real hosts."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import NotFound
from pilotfleet.node.host import Host
from pilotfleet.protocol.services.fleetevents import MAX_EVENT_BYTES, MAX_EVENT_ROWS
from pilotfleet.services.nodestatus import FULL_EVERY, NodeStatus
from tests.node.support import World, echo, eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.protocol.services.events import Event

WALL = 1_795_355_487.5


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


class Bus:
    """Takes what is published."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        self.speakers: list[str] = []
        self.is_away = False

    async def publish(self, agent: Agent, event: Event, /, *, wait: bool) -> None:
        """Take an event, unless the broker is away."""
        if self.is_away:
            raise NotFound("hub: no such name")
        assert event.topic == "fleet.node"
        # Nobody waits: the next one says more.
        assert not wait
        self.events.append(json.loads(event.payload))
        self.sizes.append(len(event.payload))
        self.speakers.append(agent.name)

    def take(self) -> dict[str, Any]:
        """Return the only event since the last call."""
        [event] = self.events
        self.events.clear()
        return event


def rows(event: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of an event by agent."""
    return {row["agent"]: row for row in event["agents"]}


@contextlib.asynccontextmanager
async def reporting(host: Host, bus: Bus, **settings: Any) -> AsyncIterator[NodeStatus]:
    settings = {"interval_s": 0.0, "wall": lambda: WALL, **settings}
    async with NodeStatus(host, bus.publish, **settings) as status:
        yield status


async def test_first_report_has_all_agents_and_the_next_what_changed(
    net: World,
) -> None:
    bus = Bus()
    async with (
        net.host("a", "a1", "a2", "a3") as host,
        net.host("b", "b1") as other,
        reporting(host, bus) as status,
    ):
        await status.report()
        event = bus.take()
        assert event == {
            "host": "a1",
            "version": event["version"],
            "interval_s": 0.0,
            "started": WALL,
            "agents": [
                {
                    "agent": name,
                    "node_id": host.agents[name].node_id,
                    "tunnels": 0,
                    "bytes_sent": 0,
                    "bytes_received": 0,
                    "peers": [],
                }
                for name in ("a1", "a2", "a3")
            ],
            "totals": {
                "agents": 3,
                "tunnels": 0,
                "bytes_sent": 0,
                "bytes_received": 0,
            },
        }
        await status.report()
        quiet = bus.take()
        assert quiet["agents"] == []
        assert quiet["totals"] == event["totals"]
        a2, b1 = host.agents["a2"], other.agents["b1"]
        await echo(a2, b1, b"x" * 10_000)
        await status.report()
        [row] = bus.take()["agents"]
        assert (row["agent"], row["tunnels"]) == ("a2", 1)
        assert row["peers"] == [str(b1.address)]
        assert row["bytes_sent"] > 10_000
        assert row["bytes_received"] > 10_000


async def test_two_daemons_tell_of_both_ends_and_of_what_grows(net: World) -> None:
    one, two = Bus(), Bus()
    async with (
        net.host("a", "a1", "a2") as host,
        net.host("b", "b1", "b2") as other,
        reporting(host, one) as status,
        reporting(other, two) as theirs,
    ):
        a1, b1, b2 = host.agents["a1"], other.agents["b1"], other.agents["b2"]
        sent = 0
        for size in (1_000, 50_000):
            await echo(a1, b1, b"x" * size)
            await status.report()
            event = one.take()
            assert rows(event)["a1"]["bytes_sent"] >= sent + size
            sent = rows(event)["a1"]["bytes_sent"]
            assert event["totals"]["bytes_sent"] == sent
        await echo(a1, b2)
        for each in (status, theirs):
            await each.report()
        near, far = one.take(), two.take()
        assert set(rows(near)["a1"]["peers"]) == {str(b1.address), str(b2.address)}
        assert near["totals"]["tunnels"] == far["totals"]["tunnels"] == 2
        assert rows(far)["b1"]["peers"] == rows(far)["b2"]["peers"] == [str(a1.address)]
        for event in (near, far):
            for key in ("tunnels", "bytes_sent", "bytes_received"):
                known = sum(row[key] for row in event["agents"])
                assert event["totals"][key] == known


async def test_tunnel_that_ends_is_told(net: World) -> None:
    bus = Bus()
    async with (
        net.host("a", "a1") as host,
        net.host("b", "b1") as other,
        reporting(host, bus) as status,
    ):
        a1, b1 = host.agents["a1"], other.agents["b1"]
        await echo(a1, b1)
        await status.report()
        assert rows(bus.take())["a1"]["tunnels"] == 1
        a1.tunnels.drop(b1.node_id, host.now())
        await status.report()
        event = bus.take()
        assert rows(event)["a1"]["tunnels"] == 0
        assert rows(event)["a1"]["peers"] == []
        assert event["totals"]["tunnels"] == 0


async def test_all_agents_are_told_again_now_and_then(net: World) -> None:
    bus = Bus()
    async with net.host("a", "a1", "a2") as host, reporting(host, bus) as status:
        for _ in range(2 * FULL_EVERY + 1):
            await status.report()
    full = [len(event["agents"]) for event in bus.events]
    assert [index for index, count in enumerate(full) if count == 2] == [0, 30, 60]
    assert sum(full) == 6


async def test_what_could_not_be_told_is_told_later(net: World) -> None:
    bus = Bus()
    bus.is_away = True
    async with net.host("a", "a1") as host, reporting(host, bus, interval_s=0.02):
        await eventually(lambda: host.agents["a1"].node_id, what="a start")
        assert not bus.events
        bus.is_away = False
        await eventually(lambda: len(bus.events) >= 2, what="two reports")
        assert [len(event["agents"]) for event in bus.events[:2]] == [1, 0]
        assert bus.events[0]["interval_s"] == 0.02


async def test_restarted_daemon_begins_again_under_the_same_name(net: World) -> None:
    bus = Bus()
    async with net.host("b", "b1") as other:
        for wall in (WALL, WALL + 60):
            async with (
                net.host("a", "a1") as host,
                reporting(host, bus, wall=lambda wall=wall: wall) as status,
            ):
                await echo(host.agents["a1"], other.agents["b1"], b"x" * 5_000)
                await status.report()
                await echo(host.agents["a1"], other.agents["b1"])
                await status.report()
    assert Counter(event["host"] for event in bus.events) == {"a1": 4}
    assert [event["started"] for event in bus.events[1:3]] == [WALL, WALL + 60]
    sent = [event["totals"]["bytes_sent"] for event in bus.events]
    assert sent[0] < sent[1]
    assert sent[2] < sent[1]


async def test_many_agents_are_told_in_events_of_bounded_size(net: World) -> None:
    bus = Bus()
    names = [f"worker-{number}" for number in range(450)]
    async with net.host("a", *names) as host, reporting(host, bus) as status:
        await status.report()
    assert [len(event["agents"]) for event in bus.events] == [200, 200, 50]
    assert [row["agent"] for event in bus.events for row in event["agents"]] == names
    assert all(event["totals"]["agents"] == 450 for event in bus.events)


async def test_rows_with_many_peers_are_cut_and_split(
    net: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{'n' * 50}-{number}" for number in range(250)]
    bus = Bus()
    async with net.host("a", *names) as host, reporting(host, bus) as status:
        # Tunnels by the thousand would take a while to open.
        peers = list(range(0xFFFF_0000, 0xFFFF_0000 + 40))
        monkeypatch.setattr(
            "pilotfleet.protocol.tunnel.endpoint.TunnelEndpoint.connected_peers",
            lambda _: peers,
        )
        await status.report()
    assert max(bus.sizes) <= MAX_EVENT_BYTES
    told = [row for event in bus.events for row in event["agents"]]
    assert [row["agent"] for row in told] == names
    assert {len(row["peers"]) for row in told} == {32}
    assert {row["tunnels"] for row in told} == {40}
    assert max(len(event["agents"]) for event in bus.events) < MAX_EVENT_ROWS


async def test_names_and_tags_of_odd_form_are_told_as_they_are(net: World) -> None:
    config = net.config("a", "a1", "a2")
    odd = 'w"\\\n<script>é\u2028🙂'
    tags = ("a b", "ü,;", '"', "", "<b>")
    second = replace(config.agents[1], name=odd, hostname="", tags=tags)
    host = Host(replace(config, agents=(config.agents[0], second)))
    bus = Bus()
    async with host, reporting(host, bus) as status:
        await status.report()
    assert set(rows(bus.take())) == {"a1", odd}


async def test_broker_that_is_hosted_here_speaks(net: World) -> None:
    bus = Bus()
    async with net.host("a", "a1", "hub") as host:
        for brokers in ((), ("elsewhere",), ("elsewhere", "hub"), ("a1", "hub")):
            async with reporting(host, bus, brokers=brokers) as status:
                await status.report()
    assert bus.speakers == ["a1", "a1", "hub", "a1"]


async def test_daemon_without_a_name_is_called_after_its_process(net: World) -> None:
    config = net.config("a", "a1")
    nameless = replace(config.agents[0], hostname="")
    bus = Bus()
    host = Host(replace(config, agents=(nameless,)))
    async with host, reporting(host, bus) as status:
        await status.report()
    assert bus.take()["host"].rpartition(":")[2].isdigit()


async def test_no_interval_is_no_report(net: World) -> None:
    bus = Bus()
    async with net.host("a", "a1") as host, reporting(host, bus):
        await echo(host.agents["a1"], host.agents["a1"])
    assert not bus.events
