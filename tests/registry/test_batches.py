"""Many requests in one message: each is answered as if it had come alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.registry import signatures
from pilotfleet.protocol.registry.messages import decode_request, encode_message
from pilotfleet.protocol.registry.signatures import (
    VerificationCache,
    sign_request,
    verify_all,
)
from pilotfleet.registry.handlers import batch as batching
from pilotfleet.registry.server import RegistryServer, ServerConfig
from pilotfleet.registry.service import PeerContext
from pilotfleet.registry.turns import Turns
from tests.registry.support import eventually, raw_client
from tests.registry.test_service_fuzz import values
from tests.registry.test_turns import Stopwatch
from tests.registry.world import Agent, GatedStore, World, error_of


async def ask_many(world: World, *requests: Any, **peer: Any) -> list[dict[str, Any]]:
    """Send a batch and return the replies in it."""
    reply = await send(world, {"type": "batch", "requests": list(requests)}, **peer)
    assert reply["type"] == "batch_ok", reply
    replies: list[dict[str, Any]] = reply["replies"]
    assert len(replies) == len(requests)
    return replies


async def send(
    world: World, request: dict[str, Any], *, ip: str = "198.51.100.7"
) -> dict[str, Any]:
    """Send a request as it goes over the wire."""
    wired = decode_request(encode_message(request))
    reply = await world.service.handle(wired, PeerContext(ip, port=40_000))
    return decode_request(encode_message(reply))


def registration(seed: int, **fields: Any) -> dict[str, Any]:
    """Return a signed registration."""
    identity = Identity(seed.to_bytes(32, "big"))
    request = {
        "type": "register",
        "listen_addr": "203.0.113.5:4000",
        "public_key": identity.public_key_text,
        **fields,
    }
    return sign_request(identity, request)


def beat(agent: Agent) -> tuple[int, str]:
    """Return a node's row in a message of heartbeats."""
    return agent.node, agent.identity.sign_text(f"heartbeat:{agent.node}")


# Batches


async def test_replies_are_those_of_the_requests_alone_in_their_order() -> None:
    world, alone = World(), World()
    requests = [
        registration(1, hostname="alice"),
        {"type": "beacon_list"},
        registration(2, hostname="bob"),
        {"type": "lookup", "node_id": 99},
        {"type": "no_such_thing"},
        {"type": "poll_handshakes", "node_id": 99},
        {},
    ]
    replies = await ask_many(world, *requests)
    assert replies == [await send(alone, request) for request in requests]
    assert [reply["type"] for reply in replies[:3]] == [
        "register_ok",
        "beacon_list_ok",
        "register_ok",
    ]


async def test_a_thousand_are_answered_and_more_refused() -> None:
    world = World()
    await world.agents(1)
    lookup = {"type": "lookup", "node_id": 1}
    replies = await ask_many(world, *[lookup] * 1000)
    assert {reply["type"] for reply in replies} == {"lookup_ok"}
    reply = await send(world, {"type": "batch", "requests": [lookup] * 1001})
    assert error_of(reply) == "too many requests in a batch (max 1000)"


@pytest.mark.parametrize("requests", [None, [], {}, "x", 5])
async def test_a_batch_without_requests_is_refused(requests: Any) -> None:
    reply = await send(World(), {"type": "batch", "requests": requests})
    assert error_of(reply) == "batch requires requests field"


@pytest.mark.parametrize(
    "kind", ["batch", "heartbeats", "watch", "subscribe_replication", "subscribe_x"]
)
async def test_what_needs_a_message_for_itself_is_refused_in_its_place(
    kind: str,
) -> None:
    world = World()
    before, reply, after = await ask_many(
        world,
        {"type": "beacon_list"},
        {"type": kind, "requests": [{"type": "beacon_list"}], "nodes": [[1, "x"]]},
        {"type": "beacon_list"},
    )
    assert error_of(reply) == f'not in a batch: "{kind}"'
    assert before == after == await world.ask("beacon_list")


@pytest.mark.parametrize("member", [None, 5, "text", [], [{"type": "lookup"}]])
async def test_what_is_no_request_gets_an_error_in_its_place(member: Any) -> None:
    reply, good = await ask_many(World(), member, {"type": "beacon_list"})
    assert error_of(reply) == "message is not a JSON object"
    assert good["type"] == "beacon_list_ok"


async def test_a_bug_costs_one_reply(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    real = world.service.handle

    async def handle(request: Any, peer: PeerContext) -> dict[str, Any]:
        if request["type"] == "lookup":
            raise RuntimeError("a bug")
        return await real(request, peer)

    monkeypatch.setattr(world.service._desk, "answer", handle)
    wrong, good = await ask_many(world, {"type": "lookup"}, {"type": "beacon_list"})
    assert error_of(wrong) == "request failed"
    assert good["type"] == "beacon_list_ok"
    assert "in a batch failed" in caplog.text


async def test_writes_of_a_batch_are_under_way_together() -> None:
    store = GatedStore()
    world = World(store)
    store.gate.clear()
    requests = [registration(seed) for seed in range(1, 101)]
    asked = asyncio.create_task(ask_many(world, *requests))
    await eventually(lambda: store.writes == batching.WORKERS)
    assert not asked.done()
    store.gate.set()
    replies = await asked
    assert sorted(reply["node_id"] for reply in replies) == list(range(1, 101))
    assert store.writes == 100


async def test_a_name_that_two_of_a_batch_want_is_given_once() -> None:
    replies = await ask_many(
        World(), *(registration(seed, hostname="alice") for seed in range(1, 9))
    )
    assert sum("hostname" in reply for reply in replies) == 1
    assert sum("hostname_error" in reply for reply in replies) == 7


async def test_a_wrong_signature_costs_its_own_request_only() -> None:
    world = World()
    requests = [registration(seed) for seed in range(1, 5)]
    requests[1]["signature"] = requests[0]["signature"]
    requests[2]["signature"] = "?"
    types = [reply["type"] for reply in await ask_many(world, *requests)]
    assert types == ["register_ok", "error", "error", "register_ok"]


async def test_new_signatures_are_verified_once_and_not_in_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ahead: list[int] = []

    def watched(claims: Any) -> list[bool]:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        ahead.append(len(claims))
        return verify_all(claims)

    monkeypatch.setattr("pilotfleet.registry.desk.verify_all", watched)
    requests = [registration(seed) for seed in range(1, 101)]
    requests[7]["signature"] = requests[0]["signature"]
    monkeypatch.setattr(VerificationCache, "_verify", None)  # Would be in the loop.
    replies = await ask_many(World(), *requests)
    assert [reply["type"] for reply in replies].count("error") == 1
    assert sum(ahead) == 100
    assert max(ahead) <= 64


async def test_replies_that_are_too_large_together_are_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "MAX_REPLY_BYTES", 1_000)
    world = World()
    await world.agents(1)
    replies = await ask_many(world, *[{"type": "lookup", "node_id": 1}] * 50)
    types = [reply["type"] for reply in replies]
    assert types == ["lookup_ok"] * types.count("lookup_ok") + ["error"] * types.count(
        "error"
    )
    assert 2 <= types.count("lookup_ok") <= 10
    assert "too large" in error_of(replies[-1])


# Rates


async def test_registrations_in_a_batch_are_counted_one_by_one() -> None:
    world = World(new_nodes_per_second_per_ip=10.0, new_nodes_burst_per_ip=3.0)
    replies = await ask_many(world, *(registration(seed) for seed in range(1, 7)))
    assert [reply["type"] for reply in replies] == ["register_ok"] * 3 + ["error"] * 3
    assert [reply["retry_after"] for reply in replies[3:]] == [0.1, 0.2, 0.3]
    # Nothing else of the batch is held up by it.
    again = await ask_many(world, registration(9), {"type": "beacon_list"})
    assert [reply["type"] for reply in again] == ["error", "beacon_list_ok"]


async def test_registrations_that_are_not_taken_on_are_not_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ahead: list[int] = []

    def watched(claims: Any) -> list[bool]:
        ahead.append(len(claims))
        return verify_all(claims)

    monkeypatch.setattr("pilotfleet.registry.desk.verify_all", watched)
    world = World(new_nodes_per_second_per_ip=1.0, new_nodes_burst_per_ip=3.0)
    await ask_many(world, *(registration(seed) for seed in range(1, 50)))
    assert sum(ahead) == 3


async def test_requests_in_a_batch_count_for_the_rate_of_their_address() -> None:
    world = World()
    # More than the burst at once, so the time that it takes does not matter.
    config = ServerConfig(requests_per_second_per_ip=500.0)
    async with (
        RegistryServer(world.service, ("127.0.0.1", 0), config=config) as server,
        raw_client(server.address) as client,
    ):
        requests = [{"type": "beacon_list"}] * 600
        reply = await client.ask({"type": "batch", "requests": requests})
        assert reply["type"] == "batch_ok"
        await eventually(lambda: server.stats.rate_limited == 1)
        assert server.stats.batched == 600


async def test_a_batch_has_a_limit_of_its_own_on_its_size() -> None:
    async with (
        RegistryServer(World().service, ("127.0.0.1", 0)) as server,
        raw_client(server.address) as client,
    ):
        padded = [{"type": "beacon_list", "x": "x" * 5_000_000}]
        reply = await client.ask({"type": "batch", "requests": padded})
        assert error_of(reply).startswith("batch of 50000")
        assert error_of(reply).endswith("limit 4194304")
        # The connection is still of use, and other messages may be larger.
        assert (await client.ask(padded[0]))["type"] == "beacon_list_ok"


async def test_batches_that_are_worked_on_take_a_bounded_memory() -> None:
    store = GatedStore()
    world = World(store)
    config = ServerConfig(batch_bytes=1_000_000)
    async with (
        RegistryServer(world.service, ("127.0.0.1", 0), config=config) as server,
        raw_client(server.address) as slow,
        raw_client(server.address) as client,
    ):
        store.gate.clear()
        padded = {"type": "beacon_list", "x": "x" * 600_000}
        slow.send({"type": "batch", "requests": [registration(1), padded]})
        await eventually(lambda: store.writes == 1)
        refused = await client.ask({"type": "batch", "requests": [padded]})
        assert error_of(refused) == "too many bytes of batches at once"
        assert refused["retry_after"] == 1.0
        # Small ones find room in any case.
        small = {"type": "batch", "requests": [{"type": "beacon_list"}]}
        assert (await client.ask(small))["type"] == "batch_ok"
        store.gate.set()
        assert (await slow.receive())["type"] == "batch_ok"
        again = await client.ask({"type": "batch", "requests": [padded]})
        assert again["type"] == "batch_ok"


# Fairness


async def test_a_search_is_answered_while_a_batch_is_worked_on() -> None:
    world = World()
    async with (
        RegistryServer(world.service, ("127.0.0.1", 0)) as server,
        raw_client(server.address) as busy,
        raw_client(server.address) as other,
    ):
        registrations = [registration(seed) for seed in range(1, 1001)]
        busy.send({"type": "batch", "requests": registrations})
        await busy.writer.drain()
        live = world.directory.nodes.live
        await eventually(lambda: len(live) > 0)
        turns = 0
        while len(live) < 1000:
            reply = await other.ask({"type": "search"})
            assert reply["type"] == "search_ok"
            turns += 1
        # Each was answered between two pieces of the batch.
        assert turns > 10
        assert len((await busy.receive())["replies"]) == 1000


async def test_a_turn_of_the_loop_has_one_long_request_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, clock = World(), Stopwatch()
    desk, real = world.service._desk, world.service.handle
    desk.turns = Turns(clock)
    turns: list[int] = []
    turn = 0

    async def slow(request: Any, peer: PeerContext) -> dict[str, Any]:
        clock.time += 1.0
        turns.append(turn)
        return await real(request, peer)

    monkeypatch.setattr(desk, "answer", slow)
    asked = asyncio.create_task(ask_many(world, *[{"type": "search"}] * 20))
    while not asked.done():
        await asyncio.sleep(0)
        turn += 1
    assert {reply["type"] for reply in await asked} == {"search_ok"}
    assert len(turns) == len(set(turns)) == 20


# Heartbeats


async def test_heartbeats_refresh_all_and_name_those_that_failed() -> None:
    world = World()
    agents = await world.agents(3)
    world.clock.time += 500
    rows = [beat(agents[0]), (77, beat(agents[0])[1]), beat(agents[2])]
    rows.append((2, beat(agents[0])[1]))
    reply = await send(world, {"type": "heartbeats", "nodes": rows})
    assert reply == {
        "type": "heartbeats_ok",
        "time": int(world.clock.wall()),
        "failed": {
            "77": "node 77: node not found",
            "2": "signature verification failed",
        },
    }
    nodes = world.directory.nodes.by_id
    seen = {number: node.last_seen for number, node in nodes.items()}
    assert seen[1] == seen[3] == world.clock.wall()
    assert seen[2] == world.clock.wall() - 500


@pytest.mark.parametrize("signature", ["", "?", "AAAA", "ü" * 88, "A" * 88])
async def test_failed_heartbeats_have_the_texts_of_a_heartbeat(signature: str) -> None:
    world, other = World(), World()
    for each in (world, other):
        await each.agents(1)
    # The other one has never verified it ahead.
    alone = await other.ask("heartbeat", node_id=1, signature=signature)
    for _ in range(2):
        reply = await send(world, {"type": "heartbeats", "nodes": [[1, signature]]})
        assert reply["failed"] == {"1": error_of(alone)}


async def test_a_signature_is_worth_nothing_once_the_key_was_replaced() -> None:
    world = World()
    (agent,) = await world.agents(1)
    row = beat(agent)
    message = {"type": "heartbeats", "nodes": [row]}
    for _ in range(2):
        assert (await send(world, message))["failed"] == {}
    new = Identity(bytes(range(32)))
    await agent.ask("rotate_key", new_public_key=new.public_key_text)
    assert (await send(world, message))["failed"] == {
        "1": "signature verification failed"
    }
    agent.identity = new
    message["nodes"] = [beat(agent)]
    assert (await send(world, message))["failed"] == {}


async def test_a_key_that_is_replaced_during_the_verification_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    (agent,) = await world.agents(1)
    new = Identity(bytes(range(32)))
    begun, go_on = asyncio.Event(), asyncio.Event()
    real = world.service._desk.verify_ahead

    async def slow(claims: Any) -> None:
        await real(claims)
        begun.set()
        await go_on.wait()

    monkeypatch.setattr(world.service._desk, "verify_ahead", slow)
    message = {"type": "heartbeats", "nodes": [beat(agent)]}
    asked = asyncio.create_task(send(world, message))
    await begun.wait()
    await agent.ask("rotate_key", new_public_key=new.public_key_text)
    go_on.set()
    assert (await asked)["failed"] == {"1": "signature verification failed"}


async def test_an_expired_key_has_no_heartbeat() -> None:
    world = World()
    (agent,) = await world.agents(1)
    reply = await world.admin(
        "create_network", node_id=1, name="n", enterprise=True, join_rule="open"
    )
    assert reply["type"] == "create_network_ok"
    expires = "2026-12-31T00:00:00Z"
    assert "error" not in await agent.ask("set_key_expiry", expires_at=expires)
    message = {"type": "heartbeats", "nodes": [beat(agent)]}
    assert (await send(world, message))["failed"] == {}
    world.clock.time += 365 * 86_400
    assert (await send(world, message))["failed"] == {
        "1": f"node 1: key expired at {expires}"
    }


@pytest.mark.parametrize(
    ("nodes", "error"),
    [
        (None, "heartbeats requires nodes field"),
        ([], "heartbeats requires nodes field"),
        ([[1, "x"]] * 1001, "too many nodes in a heartbeats (max 1000)"),
        ([[1, "x"], 5], "heartbeats: a row is not a node ID and a signature"),
        ([[True, "x"]], "heartbeats: a row is not a node ID and a signature"),
        ([[0, "x"]], "heartbeats: a row is not a node ID and a signature"),
        ([[1 << 32, "x"]], "heartbeats: a row is not a node ID and a signature"),
        ([["1", "x"]], "heartbeats: a row is not a node ID and a signature"),
        ([[1, None]], "heartbeats: a row is not a node ID and a signature"),
        ([[1, "x", 2]], "heartbeats: a row is not a node ID and a signature"),
    ],
)
async def test_heartbeats_of_another_form_are_refused(nodes: Any, error: str) -> None:
    reply = await send(World(), {"type": "heartbeats", "nodes": nodes})
    assert error_of(reply) == error


async def test_a_thousand_heartbeats_of_a_thousand_nodes() -> None:
    world = World()
    replies = await ask_many(world, *(registration(s) for s in range(1, 1001)))
    agents = {reply["public_key"]: reply["node_id"] for reply in replies}
    rows = []
    for seed in range(1, 1001):
        identity = Identity(seed.to_bytes(32, "big"))
        node = agents[identity.public_key_text]
        rows.append((node, identity.sign_text(f"heartbeat:{node}")))
    world.clock.time += 500
    for _ in range(2):
        reply = await send(world, {"type": "heartbeats", "nodes": rows})
        assert reply["failed"] == {}
    assert len(world.directory.online.nodes) == 1000


# Hostile input


requests_in_batch = st.lists(
    values
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["lookup", "search", "register", "batch", "resolve"])},
        optional={
            "node_id": values,
            "signature": values,
            "public_key": values,
            "requester_id": st.integers(0, 3),
        },
    ),
    max_size=8,
)


@given(requests=requests_in_batch)
async def test_any_member_gets_a_reply(requests: list[Any]) -> None:
    world = World()
    await world.agents(2)
    reply = await send(world, {"type": "batch", "requests": requests})
    if not requests:
        assert reply["type"] == "error"
        return
    assert len(reply["replies"]) == len(requests)
    for each in reply["replies"]:
        assert ("error" in each) == (each["type"] == "error")


@given(nodes=st.lists(values | st.tuples(st.integers(1, 3), values), max_size=8))
async def test_any_rows_get_a_reply(nodes: list[Any]) -> None:
    world = World()
    await world.agents(2)
    reply = await send(world, {"type": "heartbeats", "nodes": nodes})
    assert reply["type"] in {"heartbeats_ok", "error"}
    seen = {node.last_seen for node in world.directory.nodes.by_id.values()}
    assert seen == {float(int(world.clock.wall()))}


# The memory of signatures


def test_what_was_found_bad_is_remembered_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signatures, "MAX_BAD", 3)
    cache, key = VerificationCache(), Identity(bytes(32)).public_key
    for number in range(10):
        claim = (key, f"text {number}", "A" * 88)
        assert cache.unknown([claim, claim]) == [claim]
        cache.learn([claim], verify_all([claim]))
        assert cache.unknown([claim]) == []
        assert not cache.verify_text(*claim)
        assert len(cache._bad) <= 3
    assert len(cache) == 0


def test_a_good_signature_is_known_for_its_own_key_and_text_only() -> None:
    one, other = Identity(bytes(32)), Identity(bytes(range(32)))
    cache = VerificationCache()
    claim = (one.public_key, "heartbeat:1", one.sign_text("heartbeat:1"))
    cache.learn([claim], verify_all([claim]))
    assert cache.knows(*claim)
    assert not cache.knows(other.public_key, *claim[1:])
    assert not cache.knows(one.public_key, "heartbeat:2", claim[2])
    # Nobody can have another's good signature remembered as bad.
    crooked = (one.public_key, "1", f"{claim[2]}\0heartbeat:")
    assert cache.unknown([crooked]) == []
