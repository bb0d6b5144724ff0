"""Batches of the client: against registries that a test scripts, and a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.registry import RegistryClient
from pilotfleet.errors import (
    InvalidArgument,
    NotSupported,
    ProtocolError,
    RegistryError,
)
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.registry.batches import MAX_BATCH_BYTES
from pilotfleet.protocol.registry.messages import encode_message
from pilotfleet.protocol.registry.signatures import sign_request
from pilotfleet.registry.rendezvous import Rendezvous, RendezvousConfig
from tests.client.test_registry import Scripted, client_of, scripted

if TYPE_CHECKING:
    from collections.abc import Callable

LOOKUP = {"type": "lookup", "node_id": 7}


def offering(registry: Scripted) -> RegistryClient:
    """Return a client that was told of batches."""
    client = client_of(registry)
    client.learn({"extensions": ["pipeline", "batch"]})
    return client


def echo(request: dict[str, Any]) -> dict[str, Any]:
    """Answer as a registry with batches that knows every node."""
    if request["type"] == "heartbeats":
        return {"type": "heartbeats_ok", "time": 1, "failed": {}}
    assert request["type"] == "batch"
    replies = [{**r, "type": f"{r['type']}_ok"} for r in request["requests"]]
    return {"type": "batch_ok", "replies": replies}


async def test_nothing_is_sent_to_a_registry_that_offers_none() -> None:
    async with scripted(echo) as registry, client_of(registry) as client:
        client.learn({"extensions": ["pipeline", "search"]})
        assert not client.offers("batch")
        assert client.offers("search")
        with pytest.raises(NotSupported, match="no batches"):
            await client.batch([LOOKUP])
        with pytest.raises(NotSupported, match="no batches"):
            await client.heartbeats([(7, "x")])
        assert registry.requests == []


async def test_a_registration_tells_what_is_offered_and_what_no_more() -> None:
    answers: list[list[str]] = [["batch"], []]

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "register_ok",
            "node_id": 1,
            "address": "0:0000.0000.0001",
            "extensions": answers.pop(0),
        }

    async with scripted(answer) as registry, client_of(registry) as client:
        for offered in (True, False):
            await client.register(Identity(bytes(32)), "127.0.0.1:4000")
            assert client.offers("batch") is offered


async def test_replies_come_as_they_are_and_in_order() -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        wait = {"type": "error", "error": "rate limited", "retry_after": 2.0}
        return {"type": "batch_ok", "replies": [{"type": "lookup_ok"}, wait]}

    async with scripted(answer) as registry, offering(registry) as client:
        replies = await client.batch([LOOKUP, LOOKUP])
        assert [reply["type"] for reply in replies] == ["lookup_ok", "error"]
        assert replies[1]["retry_after"] == 2.0
        assert len(registry.requests) == 1


async def test_no_request_takes_no_message() -> None:
    async with scripted(echo) as registry, offering(registry) as client:
        assert await client.batch([]) == []
        assert await client.heartbeats([]) == {}
        assert registry.requests == []


@pytest.mark.parametrize(
    ("count", "sizes"), [(1000, [1000]), (1001, [1000, 1]), (2500, [1000, 1000, 500])]
)
async def test_many_are_divided(count: int, sizes: list[int]) -> None:
    async with scripted(echo) as registry, offering(registry) as client:
        requests = [{"type": "lookup", "node_id": n} for n in range(count)]
        replies = await client.batch(requests)
        assert [reply["node_id"] for reply in replies] == list(range(count))
        assert [len(request["requests"]) for request in registry.requests] == sizes
        registry.requests.clear()
        await client.heartbeats([(n, "x") for n in range(1, count + 1)])
        assert [len(request["nodes"]) for request in registry.requests] == sizes


async def test_large_ones_are_divided_by_their_size() -> None:
    async with scripted(echo) as registry, offering(registry) as client:
        requests = [{"type": "lookup", "x": "x" * 1_000_000} for _ in range(9)]
        assert len(await client.batch(requests)) == 9
        assert [len(r["requests"]) for r in registry.requests] == [4, 4, 1]
        sizes = [len(encode_message(request)) for request in registry.requests]
        assert max(sizes) <= MAX_BATCH_BYTES
        with pytest.raises(InvalidArgument, match="request lookup of"):
            await client.batch([{"type": "lookup", "x": "x" * MAX_BATCH_BYTES}])


async def test_a_batch_that_is_refused_as_a_whole_is_an_error() -> None:
    def refuse(request: dict[str, Any]) -> dict[str, Any]:
        return {"type": "error", "error": 'unknown message type: "batch"'}

    async with scripted(refuse) as registry, offering(registry) as client:
        with pytest.raises(RegistryError, match="unknown message type"):
            await client.batch([LOOKUP])
        with pytest.raises(RegistryError, match="unknown message type"):
            await client.heartbeats([(7, "x")])


async def test_the_wait_of_a_whole_batch_is_kept() -> None:
    answers: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
        lambda _: {"type": "error", "error": "busy", "retry_after": 0.01},
        echo,
    ]
    async with (
        scripted(lambda request: answers.pop(0)(request)) as registry,
        offering(registry) as client,
    ):
        assert (await client.batch([LOOKUP]))[0]["type"] == "lookup_ok"
        assert len(registry.requests) == 2


@pytest.mark.parametrize(
    "reply",
    [
        {"type": "batch_ok"},
        {"type": "batch_ok", "replies": []},
        {"type": "batch_ok", "replies": {}},
        {"type": "batch_ok", "replies": [{}, {}]},
        {"type": "batch_ok", "replies": [5]},
        {"replies": [{}]},
    ],
)
async def test_strange_replies_to_a_batch_are_errors_of_ours(reply: Any) -> None:
    async with scripted(lambda _: reply) as registry, offering(registry) as client:
        with pytest.raises(ProtocolError):
            await client.batch([LOOKUP])


@pytest.mark.parametrize(
    "failed", [[], 5, {"x": "e"}, {"1": 5}, {"²": "e"}, {"9" * 5_000: "e"}]
)
async def test_strange_replies_to_heartbeats_are_errors_of_ours(failed: Any) -> None:
    reply = {"type": "heartbeats_ok", "failed": failed}
    async with scripted(lambda _: reply) as registry, offering(registry) as client:
        with pytest.raises(ProtocolError):
            await client.heartbeats([(1, "x")])


async def test_a_real_registry_takes_both() -> None:
    identities = [Identity(bytes([n]) * 32) for n in range(1, 6)]
    config = RendezvousConfig(registry=("127.0.0.1", 0), beacon=("127.0.0.1", 0))
    async with (
        Rendezvous(config) as rendezvous,
        RegistryClient(rendezvous.addresses.registry) as client,
    ):
        first = await client.register(identities[0], "127.0.0.1:4000")
        assert client.offers("batch")
        requests = [
            sign_request(
                identity,
                {
                    "type": "register",
                    "listen_addr": f"127.0.0.1:{4000 + number}",
                    "public_key": identity.public_key_text,
                },
            )
            for number, identity in enumerate(identities)
        ]
        replies = await client.batch(requests)
        nodes = [client.registered(reply).node_id for reply in replies]
        assert nodes[0] == first.node_id
        assert len(set(nodes)) == 5
        rows = [
            (node, identity.sign_text(f"heartbeat:{node}"))
            for node, identity in zip(nodes, identities, strict=True)
        ]
        wrong = (nodes[1], rows[0][1])
        failed = await client.heartbeats([rows[0], wrong, *rows[2:], (99, "x")])
        assert failed == {
            nodes[1]: "signature verification failed",
            99: "node 99: node not found",
        }
