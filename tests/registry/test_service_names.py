"""Hostnames, tags, visibility and being found by name (6.7, 6.9)."""

from __future__ import annotations

from typing import Any

import pytest

from pilotfleet.protocol.registry.signatures import sign_request
from pilotfleet.registry.service import PeerContext
from tests.registry.world import World, error_of


async def test_a_hostname_has_one_holder() -> None:
    world = World()
    one, two = await world.agents(2)
    await one.ask("set_hostname", hostname="alice")
    taken = await two.ask("set_hostname", hostname="alice")
    assert error_of(taken) == 'hostname "alice" already in use by node 1'
    again = await one.ask("set_hostname", hostname="alice")
    assert again == {"type": "set_hostname_ok", "node_id": 1, "hostname": "alice"}
    await one.ask("set_hostname", hostname="")
    assert "hostname" not in await world.ask("lookup", node_id=1)
    assert (await two.ask("set_hostname", hostname="alice"))["hostname"] == "alice"


async def test_renaming_frees_the_old_name() -> None:
    world = World()
    one, two = await world.agents(2)
    await one.ask("set_hostname", hostname="alice")
    await one.ask("set_hostname", hostname="anna")
    assert (await two.ask("set_hostname", hostname="alice"))["hostname"] == "alice"
    keys = [entry.key for entry in await world.store.load()]
    assert sorted(key for key in keys if key.startswith("host.")) == [
        "host.alice",
        "host.anna",
    ]


@pytest.mark.parametrize(
    ("kind", "fields", "error"),
    [
        (
            "set_hostname",
            {"hostname": "x" * 64},
            "invalid hostname: hostname too long (max 63 chars)",
        ),
        (
            "set_hostname",
            {"hostname": "localhost"},
            'invalid hostname: hostname "localhost" is reserved',
        ),
        ("set_tags", {"tags": [f"t{n}" for n in range(11)]}, "too many tags (max 10)"),
        ("set_tags", {"tags": [""]}, "empty tag not allowed"),
    ],
)
async def test_the_form_is_checked_before_anything_else(
    kind: str, fields: dict[str, Any], error: str
) -> None:
    assert error_of(await World().ask(kind, node_id=9, **fields)) == error


@pytest.mark.parametrize("kind", ["set_hostname", "set_tags", "set_visibility"])
async def test_descriptions_take_a_signature_or_the_admin_token(kind: str) -> None:
    world = World()
    await world.agents(1)
    unknown = await world.admin(kind, node_id=9)
    assert error_of(unknown) == "node 9: node not found"
    unsigned = await world.ask(kind, node_id=1)
    assert error_of(unsigned) == "signature required for authenticated node"
    wrong = await world.ask(kind, node_id=1, admin_token="guess")
    assert error_of(wrong) == "signature required for authenticated node"
    assert (await world.admin(kind, node_id=1))["type"] == f"{kind}_ok"


async def test_without_a_token_on_the_server_none_is_right() -> None:
    world = World(admin_token="")
    await world.agents(1)
    assert error_of(await world.ask("set_tags", node_id=1, admin_token=""))


async def test_tags_are_replaced_in_their_order() -> None:
    world = World()
    (agent,) = await world.agents(1)
    reply = await agent.ask("set_tags", tags=["#gpu", "web", "gpu"])
    assert reply == {"type": "set_tags_ok", "node_id": 1, "tags": ["gpu", "web"]}
    await agent.ask("set_tags", tags=["web"])
    assert (await world.ask("lookup", node_id=1))["tags"] == ["web"]
    await agent.ask("set_tags")
    assert "tags" not in await world.ask("lookup", node_id=1)


async def test_task_exec_is_shown() -> None:
    world = World()
    (agent,) = await world.agents(1)
    reply = await agent.ask("set_task_exec", enabled=True)
    assert reply == {"type": "set_task_exec_ok", "node_id": 1, "task_exec": True}
    assert (await world.ask("lookup", node_id=1))["task_exec"] is True


async def test_repeating_a_description_writes_nothing() -> None:
    world = World()
    (agent,) = await world.agents(1)
    for kind, field in (
        ("set_hostname", {"hostname": "alice"}),
        ("set_tags", {"tags": ["a"]}),
        ("set_visibility", {"public": True}),
    ):
        await agent.ask(kind, **field)
        before = await world.store.load()
        assert (await agent.ask(kind, **field))["type"] == f"{kind}_ok"
        await agent.register()
        assert await world.store.load() == before


async def test_public_names_are_found_by_anybody() -> None:
    world = World()
    (agent,) = await world.agents(1)
    await agent.ask("set_hostname", hostname="alice")
    await agent.ask("set_visibility", public=True)
    reply = await world.ask("resolve_hostname", hostname="alice")
    assert reply == {
        "type": "resolve_hostname_ok",
        "node_id": 1,
        "address": "0:0000.0000.0001",
        "public": True,
        "hostname": "alice",
        "last_seen_unix": 1_795_355_487,
    }


async def test_private_names_are_found_by_friends_only() -> None:
    world = World()
    one, two, three = await world.agents(3)
    await one.ask("set_hostname", hostname="alice")

    async def finds(node: int) -> bool:
        fields = {"hostname": "alice", "requester_id": node}
        reply = await world.ask("resolve_hostname", **fields)
        if reply["type"] == "error":
            assert reply["error"] == 'hostname "alice" not found'
        return "node_id" in reply

    assert await finds(1)
    assert [await finds(node) for node in (0, 2, 3, 99)] == [False] * 4
    await two.ask("report_trust", peer_id=1)
    assert not await finds(2), "a friend is who is one in the other's eyes"
    await one.ask("report_trust", peer_id=2)
    await world.admin("create_network", node_id=1, name="n")
    await three.ask("join_network", network_id=1)
    assert [await finds(node) for node in (0, 2, 3, 99)] == [False, True, True, False]


async def test_the_requester_is_who_last_proved_himself_on_the_connection() -> None:
    world = World()
    one, two = await world.agents(2)
    await one.ask("set_hostname", hostname="alice")
    await one.ask("report_trust", peer_id=2)
    peer = PeerContext("198.51.100.7")
    question = {"type": "resolve_hostname", "hostname": "alice"}
    assert error_of(await world.handle(question, peer))
    forged = {"type": "heartbeat", "node_id": 2, "signature": "AAAA"}
    await world.handle(forged, peer)
    assert error_of(await world.handle(question, peer))
    beat = sign_request(two.identity, {"type": "heartbeat", "node_id": 2})
    await world.handle(beat, peer)
    assert (await world.handle(question, peer))["node_id"] == 1


async def test_questions_without_a_name_are_refused() -> None:
    reply = await World().ask("resolve_hostname")
    assert error_of(reply) == "hostname required"
