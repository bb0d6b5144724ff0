"""The watch extension as a message, over real connections where something waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.core import CollectorRegistry
from prometheus_client.exposition import generate_latest

from pilotfleet.protocol.registry.messages import encode_reply
from pilotfleet.registry import watching
from pilotfleet.registry.beacon_table import BeaconCounters
from pilotfleet.registry.context import PeerContext
from pilotfleet.registry.dashboard.metrics import RendezvousCollector
from pilotfleet.registry.dashboard.view import RendezvousView
from pilotfleet.registry.directory.watches import WatchLimits
from pilotfleet.registry.metrics import ServerStats
from pilotfleet.registry.server import RegistryServer, ServerConfig
from pilotfleet.registry.store.memory import MemoryStore
from tests.registry.support import eventually, raw_client
from tests.registry.test_service_replicas import replicas
from tests.registry.world import World, error_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.registry.world import Agent

LONG_S = 60
"""A wait that a test must not wait for."""


async def public_world(count: int, **config: Any) -> tuple[World, list[Agent]]:
    world = World(**config)
    agents = await world.agents(count)
    for agent in agents:
        await agent.ask("set_visibility", public=True)
        await agent.ask("set_tags", tags=["gpu"])
    return world, agents


def ids(rows: list[dict[str, Any]]) -> list[int]:
    return [row["node_id"] for row in rows]


def follow_up(reply: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the next question of a watcher that got ``reply``."""
    return {
        "type": "watch",
        "tags": ["gpu"],
        "watch": reply["watch"],
        "seq": reply["seq"],
        **fields,
    }


@contextlib.asynccontextmanager
async def serving(
    count: int = 2, **config: Any
) -> AsyncIterator[tuple[World, list[Agent], RegistryServer]]:
    world, agents = await public_world(count, **config)
    try:
        async with RegistryServer(world.service, ("127.0.0.1", 0)) as server:
            yield world, agents, server
    finally:
        await world.service.aclose()


async def test_the_first_answer_has_the_rows_of_search() -> None:
    world, agents = await public_world(1)
    assert "watch" in (await agents[0].register())["extensions"]
    found = (await world.ask("search", tags=["gpu"]))["agents"]
    reply = await world.ask("watch", tags=["#gpu"])
    assert reply == {
        "type": "watch_ok",
        "watch": reply["watch"],
        "seq": 1,
        "reset": True,
        "added": found,
        "changed": [],
        "removed": [],
        "total": 1,
        "more": False,
    }
    again = await world.handle(follow_up(reply))
    assert (again["seq"], again["reset"], again["added"]) == (1, False, [])
    assert again["total"] == 1


async def test_what_changes_is_told_once() -> None:
    world, (one, two, three) = await public_world(3)
    await two.ask("set_tags", tags=["web"])
    first = await world.ask("watch", tags=["gpu"])
    assert ids(first["added"]) == [1, 3]
    await one.ask("set_hostname", hostname="alice")
    await two.ask("set_tags", tags=["gpu"])
    await three.ask("deregister")
    delta = await world.handle(follow_up(first))
    assert ids(delta["changed"]) == [1]
    assert delta["changed"][0]["hostname"] == "alice"
    assert ids(delta["added"]) == [2]
    assert (delta["removed"], delta["reset"]) == ([3], False)
    assert not (await world.handle(follow_up(delta)))["added"]


async def test_silence_is_a_change_and_a_heartbeat_is_none() -> None:
    world, (one, _) = await public_world(2)
    first = await world.ask("watch", tags=["gpu"], online=True)
    world.clock.time += 100
    await one.ask("heartbeat")
    quiet = await world.handle(follow_up(first, online=True))
    assert (quiet["changed"], quiet["removed"]) == ([], [])
    world.clock.time += 81
    delta = await world.handle(follow_up(quiet, online=True))
    assert (delta["changed"], delta["removed"]) == ([], [2])


async def test_a_watch_is_of_the_node_that_signed_it() -> None:
    world = World()
    one, two = await world.agents(2)
    await world.admin("create_network", node_id=1, name="fleet")
    await two.ask("join_network", network_id=1)
    first = await one.ask("watch", requester_id=1)
    assert ids(first["added"]) == [1, 2]
    known = {"watch": first["watch"], "seq": first["seq"]}
    stolen = await world.ask("watch", **known)
    assert (stolen["reset"], stolen["added"]) == (True, [])
    other = await two.ask("watch", requester_id=2, **known)
    assert other["reset"]
    assert other["watch"] != first["watch"]
    mine = await one.ask("watch", requester_id=1, **known)
    assert not mine["reset"]
    await two.ask("leave_network", network_id=1)
    left = await one.ask("watch", requester_id=1, **known)
    assert left["removed"] == [2]
    forged = await world.ask("watch", requester_id=1, signature="AAAA")
    assert error_of(forged) == "signature verification failed"
    await one.ask("deregister")
    gone = await one.ask("watch", requester_id=1, **known)
    assert error_of(gone) == "node 1: node not found"


async def test_a_restarted_registry_begins_again() -> None:
    world, _ = await public_world(2)
    first = await world.ask("watch", tags=["gpu"])
    reopened = await world.reopened()
    again = await reopened.handle(follow_up(first))
    assert again["reset"]
    assert ids(again["added"]) == [1, 2]


async def test_a_replica_tells_what_another_one_wrote() -> None:
    store = MemoryStore()
    async with replicas(store, 2) as (one, two):
        agent = await one.agent(1)
        await agent.ask("set_visibility", public=True)
        await eventually(lambda: len(two.directory.nodes.public) == 1)
        first = await two.ask("watch", tags=["gpu"])
        assert first["total"] == 0
        await agent.ask("set_tags", tags=["gpu"])
        waiting = follow_up(first, wait_s=LONG_S)
        assert ids((await two.handle(waiting))["added"]) == [1]
    for world in (one, two):
        await world.service.aclose()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"tags": [f"t{n}" for n in range(11)]}, "too many tags (max 10)"),
        ({"requester_id": 9, "signature": "AAAA"}, "node 9: node not found"),
    ],
)
async def test_bad_watches_are_refused(fields: dict[str, Any], error: str) -> None:
    assert error_of(await World().ask("watch", **fields)) == error


@pytest.mark.parametrize(
    "fields",
    [
        {"watch": 7, "seq": "x", "limit": -1, "wait_s": "60", "tags": "gpu"},
        {"watch": "\0" * 1000, "seq": -1, "wait_s": -1},
        {"watch": "x", "seq": 2**70, "wait_s": True, "limit": 10**9},
        {"watch": None, "seq": 1.5, "wait_s": float("nan"), "online": 1},
    ],
)
async def test_fields_of_another_type_count_as_absent(fields: dict[str, Any]) -> None:
    world, _ = await public_world(1)
    reply = await world.ask("watch", **fields)
    assert (reply["reset"], reply["total"]) == (True, 1)
    follow = {**fields, "watch": reply["watch"], "seq": reply["seq"]}
    assert not (await world.ask("watch", **follow))["reset"]


@pytest.mark.parametrize(
    "fields", [{"tags": ["x" * 100_000]}, {"hostname_prefix": "Ü" * 100_000}]
)
async def test_what_no_node_can_have_is_not_kept(fields: dict[str, Any]) -> None:
    world, _ = await public_world(1)
    first = await world.ask("watch", **fields)
    assert (first["reset"], first["total"]) == (True, 0)
    (watch,) = world.service._desk.watching._watches._watches.values()
    assert len(repr(watch.query)) < 200


async def test_watches_are_bounded_and_the_refusal_says_what_to_do() -> None:
    world, _ = await public_world(1, watches=WatchLimits(most_per_ip=2))
    for _ in range(2):
        assert (await world.ask("watch"))["type"] == "watch_ok"
    refused = await world.ask("watch")
    assert error_of(refused) == (
        "too many watches from 198.51.100.7 (max 2): ask again later, or share one"
        " watch among those who ask the same"
    )
    assert refused["retry_after"] > 0
    world.clock.time += 121
    assert (await world.ask("watch"))["type"] == "watch_ok"
    world.clock.time += 121
    await world.service.maintain()
    assert world.service.watch_stats.kept == 0


# Waiting


async def test_a_wait_ends_with_the_change() -> None:
    async with serving() as (world, agents, server):
        async with raw_client(server.address) as client:
            first = await client.ask({"type": "watch", "tags": ["gpu"]})
            client.send(follow_up(first, wait_s=LONG_S))
            await eventually(lambda: world.service.watch_stats.kept == 1)
            await eventually(lambda: bool(world.service._desk.watching._waiting))
            await agents[0].ask("set_hostname", hostname="alice")
            delta = await client.receive()
            assert ids(delta["changed"]) == [1]
        stats = world.service.watch_stats
        await eventually(lambda: stats.waiting == 0)
        assert (stats.resets, stats.deltas, stats.refused) == (1, 1, 0)


async def test_a_wait_without_news_ends_empty() -> None:
    async with serving() as (_, _, server), raw_client(server.address) as client:
        first = await client.ask({"type": "watch", "tags": ["gpu"]})
        empty = await client.ask(follow_up(first, wait_s=0.3))
        assert (empty["seq"], empty["reset"]) == (first["seq"], False)
        assert empty["added"] == empty["changed"] == empty["removed"] == []


async def test_a_wait_shorter_than_the_gathering_misses_nothing() -> None:
    world, agents = await public_world(1)
    first = await world.ask("watch", tags=["gpu"])
    await agents[0].ask("set_hostname", hostname="alice")
    delta = await world.handle(follow_up(first, wait_s=0.001))
    assert ids(delta["changed"]) == [1]
    await world.service.aclose()


async def test_waits_that_end_together_do_not_fill_one_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "SLICE_S", 0.0)
    world, _ = await public_world(1)
    turn = 0
    ended: list[int] = []

    async def wait(first: dict[str, Any]) -> None:
        await world.handle(follow_up(first, wait_s=0.001))
        ended.append(turn)

    firsts = [await world.handle({"type": "watch", "tags": ["gpu"]}) for _ in range(5)]
    async with asyncio.TaskGroup() as group:
        for first in firsts:
            group.create_task(wait(first))
        await asyncio.sleep(0)
        # The loop is busy meanwhile, and finds all times over in one turn.
        time.sleep(0.002)  # noqa: ASYNC251
        while len(ended) < len(firsts):
            turn += 1
            await asyncio.sleep(0)
    assert len(set(ended)) == len(firsts)
    await world.service.aclose()


async def test_what_follows_quickly_is_gathered() -> None:
    async with (
        serving(8) as (world, agents, server),
        raw_client(server.address) as client,
    ):
        first = await client.ask({"type": "watch", "tags": ["gpu"]})
        client.send(follow_up(first, wait_s=LONG_S))
        await eventually(lambda: bool(world.service._desk.watching._waiting))
        for agent in agents:
            await agent.ask("set_hostname", hostname=f"w-{agent.node}")
        deltas = [await client.receive()]
        while sum(len(delta["changed"]) for delta in deltas) < len(agents):
            deltas.append(await client.ask(follow_up(deltas[-1], wait_s=LONG_S)))
        told = [node for delta in deltas for node in ids(delta["changed"])]
        assert sorted(told) == list(range(1, 9))
        # One, unless the machine stood still in the middle.
        assert len(deltas) < len(agents) / 2


async def test_there_is_no_task_when_nobody_waits() -> None:
    async with serving() as (world, _, server):
        watching = world.service._desk.watching
        async with raw_client(server.address) as client:
            first = await client.ask({"type": "watch", "tags": ["gpu"]})
            assert watching._task is None
            client.send(follow_up(first, wait_s=LONG_S))
            await eventually(lambda: watching._task is not None)
        # The connection is closed, and nobody waits on it.
        await eventually(lambda: not watching._waiting)
        await eventually(lambda: watching._task is None)


async def test_a_stopping_server_answers_those_who_wait() -> None:
    world, _ = await public_world(1)
    now = asyncio.get_running_loop().time
    async with contextlib.AsyncExitStack() as stack:
        async with RegistryServer(world.service, ("127.0.0.1", 0)) as server:
            client = await stack.enter_async_context(raw_client(server.address))
            first = await client.ask({"type": "watch", "tags": ["gpu"]})
            client.send(follow_up(first, wait_s=LONG_S))
            await eventually(lambda: bool(world.service._desk.watching._waiting))
            begin = now()
        assert now() - begin < ServerConfig().drain_s
        assert (await client.receive())["seq"] == first["seq"]
        assert await client.is_closed()
    await world.service.aclose()


async def test_the_same_watch_waits_in_one_place_only() -> None:
    async with (
        serving() as (world, agents, server),
        raw_client(server.address) as lost,
        raw_client(server.address) as client,
    ):
        first = await lost.ask({"type": "watch", "tags": ["gpu"]})
        lost.send(follow_up(first, wait_s=LONG_S))
        await eventually(lambda: bool(world.service._desk.watching._waiting))
        client.send(follow_up(first, wait_s=LONG_S))
        assert (await lost.receive())["seq"] == first["seq"]
        await agents[0].ask("set_hostname", hostname="alice")
        assert ids((await client.receive())["changed"]) == [1]


async def test_an_answer_at_once_ends_the_wait_of_the_same_watch() -> None:
    async with (
        serving() as (world, agents, server),
        raw_client(server.address) as lost,
        raw_client(server.address) as client,
    ):
        first = await lost.ask({"type": "watch", "tags": ["gpu"]})
        lost.send(follow_up(first, wait_s=LONG_S))
        await eventually(lambda: bool(world.service._desk.watching._waiting))
        delta = await client.ask(follow_up(first))
        assert (await lost.receive())["seq"] == first["seq"]
        await agents[0].ask("set_hostname", hostname="alice")
        delta = await client.ask(follow_up(delta, wait_s=LONG_S))
        assert (delta["reset"], ids(delta["changed"])) == (False, [1])


async def test_a_watcher_that_goes_is_told_while_it_waits() -> None:
    world, (one, _) = await public_world(2)
    first = await one.ask("watch", tags=["gpu"], requester_id=1)
    known = {"watch": first["watch"], "seq": first["seq"], "wait_s": LONG_S}
    waiting = asyncio.create_task(
        one.ask("watch", tags=["gpu"], requester_id=1, **known)
    )
    await eventually(lambda: bool(world.service._desk.watching._waiting))
    await world.admin("deregister", node_id=1)
    assert error_of(await waiting) == "node 1: node not found"
    await world.service.aclose()


async def test_a_connection_that_is_over_does_not_begin_to_wait() -> None:
    world, _ = await public_world(1)
    peer = PeerContext("198.51.100.7")
    first = await world.ask("watch", tags=["gpu"])
    peer.end_waits()
    reply = await world.handle(follow_up(first, wait_s=LONG_S), peer)
    assert reply["seq"] == first["seq"]


async def test_a_watch_is_refused_in_a_batch() -> None:
    reply = await World().ask("batch", requests=[{"type": "watch"}])
    (refused,) = json.loads(encode_reply(reply))["replies"]
    assert error_of(refused) == 'not in a batch: "watch"'


async def test_metrics_show_watches() -> None:
    world, _ = await public_world(1)
    await world.ask("watch")
    view = RendezvousView(
        world.directory,
        ServerStats(),
        BeaconCounters(),
        lambda: 0,
        lambda: 0,
        world.clock,
        0.0,
        world.service.watch_stats,
    )
    registry = CollectorRegistry()
    registry.register(RendezvousCollector(view))
    text = generate_latest(registry).decode()
    assert "pilot_watches 1.0" in text
    assert 'pilot_watch_answers_total{kind="reset"} 1.0' in text
