"""The search extension as a message."""

from __future__ import annotations

from typing import Any

import pytest

from tests.registry.world import World, error_of


async def found(world: World, **query: Any) -> list[int]:
    reply = await world.ask("search", **query)
    return [row["node_id"] for row in reply["agents"]]


async def test_a_row_tells_what_is_needed_to_choose() -> None:
    world = World()
    (agent,) = await world.agents(1)
    await agent.ask("set_hostname", hostname="alice")
    await agent.ask("set_tags", tags=["gpu"])
    await agent.ask("set_visibility", public=True)
    await world.admin("set_polo_score", node_id=1, polo_score=7)
    assert await world.ask("search", tags=["#gpu"]) == {
        "type": "search_ok",
        "agents": [
            {
                "node_id": 1,
                "address": "0:0000.0000.0001",
                "hostname": "alice",
                "tags": ["gpu"],
                "polo": 7,
                "online": True,
                "last_seen": "2026-11-22T13:51:27Z",
            }
        ],
        "total": 1,
        "next_cursor": "",
    }


async def test_only_a_signature_opens_what_is_private() -> None:
    world = World()
    one, two = await world.agents(2)
    await one.ask("set_visibility", public=True)
    assert await found(world) == [1]
    assert await found(world, requester_id=2) == [1]
    signed = await two.ask("search", requester_id=2)
    assert [row["node_id"] for row in signed["agents"]] == [1, 2]
    forged = await world.ask("search", requester_id=2, signature="AAAA")
    assert error_of(forged) == "signature verification failed"
    unknown = await two.ask("search", requester_id=9)
    assert error_of(unknown) == "node 9: node not found"


async def test_a_private_fleet_finds_its_own_and_those_it_trusts() -> None:
    world = World()
    agents = await world.agents(120)
    await world.admin("create_network", node_id=1, name="fleet")
    for agent in agents[1:100]:
        await agent.ask("join_network", network_id=1)
    await agents[110].ask("report_trust", peer_id=1)
    await agents[111].ask("report_trust", peer_id=2)
    await agents[50].ask("deregister")
    mine = await agents[0].ask("search", requester_id=1, limit=200)
    assert mine["total"] == 100
    expected = [*range(1, 51), *range(52, 101), 111]
    assert [row["node_id"] for row in mine["agents"]] == expected
    outside = await agents[115].ask("search", requester_id=116)
    assert [row["node_id"] for row in outside["agents"]] == [116]


async def test_silent_nodes_are_offline_and_can_be_left_out() -> None:
    world = World()
    one, two = await world.agents(2)
    for agent in (one, two):
        await agent.ask("set_visibility", public=True)
    world.clock.time += 181
    await two.ask("heartbeat")
    rows = (await world.ask("search"))["agents"]
    assert [row["online"] for row in rows] == [False, True]
    assert await found(world, online=True) == [2]


async def test_pages_follow_each_other_while_nodes_come_and_go() -> None:
    world = World()
    for agent in await world.agents(5):
        await agent.ask("set_visibility", public=True)
    first = await world.ask("search", limit=2)
    assert [row["node_id"] for row in first["agents"]] == [1, 2]
    assert first["total"] == 5
    await world.admin("deregister", node_id=2)
    await world.admin("deregister", node_id=3)
    second = await world.ask("search", limit=2, cursor=first["next_cursor"])
    assert [row["node_id"] for row in second["agents"]] == [4, 5]
    assert (second["total"], second["next_cursor"]) == (3, "")


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"cursor": "!"}, "invalid cursor"),
        ({"tags": [f"t{n}" for n in range(11)]}, "too many tags (max 10)"),
    ],
)
async def test_bad_queries_are_refused(query: dict[str, Any], error: str) -> None:
    assert error_of(await World().ask("search", **query)) == error


async def test_what_no_hostname_begins_with_finds_nothing() -> None:
    world = World()
    (agent,) = await world.agents(1)
    await agent.ask("set_visibility", public=True)
    assert await found(world, hostname_prefix="Ü") == []
    assert await found(world, limit=5000) == [1]
    assert await found(world, limit=-3) == [1]
