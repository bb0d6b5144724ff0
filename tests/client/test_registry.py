"""The registry client against registries that a test scripts, and a real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.links import LinkConfig
from pilotfleet.client.registry import Authorization, RegistryClient, Resolution
from pilotfleet.errors import (
    Busy,
    Closed,
    ConnectionFailed,
    ConnectionRefused,
    PilotError,
    ProtocolError,
    RegistryError,
    TimedOut,
)
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.identity import Identity
from pilotfleet.registry.rendezvous import Rendezvous, RendezvousConfig
from pilotfleet.registry.service import ServiceConfig
from tests.registry.receipts import make_receipt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pilotfleet.protocol.address import Endpoint

TIMEOUT_S = 10.0
FAST = LinkConfig(first_wait_s=0.01, max_wait_s=0.02)
ALICE = Identity(bytes(range(32)))
BOB = Identity(bytes(range(32, 64)))


class Scripted:
    """A registry whose answers a test gives."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any] | None = None) -> None:
        self.answer = answer or (lambda request: {"type": f"{request['type']}_ok"})
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.endpoint: Endpoint = ("", 0)

    async def on_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = struct.unpack("!I", await reader.readexactly(4))
                request = json.loads(await reader.readexactly(length))
                self.requests.append(request)
                self.arrived.set()
                await self.gate.wait()
                answer = self.answer(request)
                if answer is None:
                    break
                if not isinstance(answer, bytes):
                    body = json.dumps(answer).encode()
                    answer = struct.pack("!I", len(body)) + body
                writer.write(answer)
        writer.close()

    async def arrivals(self, count: int) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.requests) < count:
                self.arrived.clear()
                await self.arrived.wait()


@contextlib.asynccontextmanager
async def scripted(
    answer: Callable[[dict[str, Any]], Any] | None = None,
) -> AsyncIterator[Scripted]:
    registry = Scripted(answer)
    server = await asyncio.start_server(registry.on_client, "127.0.0.1", 0)
    registry.endpoint = server.sockets[0].getsockname()
    try:
        yield registry
    finally:
        registry.gate.set()
        server.close()
        # The connections' tasks end with their connections.
        await asyncio.sleep(0.01)


def client_of(registry: Scripted, config: LinkConfig = FAST) -> RegistryClient:
    return RegistryClient(registry.endpoint, config=config)


# Requests and errors


async def test_reply_is_returned() -> None:
    async with scripted() as registry, client_of(registry) as client:
        assert await client.lookup(7) == {"type": "lookup_ok"}
        assert registry.requests == [{"type": "lookup", "node_id": 7}]


async def test_refusal_has_the_text_of_the_registry() -> None:
    def refuse(request: dict[str, Any]) -> dict[str, Any]:
        return {"type": "error", "error": "node 7: node not found"}

    async with scripted(refuse) as registry, client_of(registry) as client:
        with pytest.raises(RegistryError, match=r"^node 7: node not found$"):
            await client.lookup(7)
        assert len(registry.requests) == 1


@pytest.mark.parametrize(
    "answer", [{}, {"type": 7}, b"\0\0\0\4nope", b"\0\0\0\2[]", {"error": 5}]
)
async def test_strange_reply_is_an_error_of_ours(answer: Any) -> None:
    async with scripted(lambda _: answer) as registry, client_of(registry) as client:
        with pytest.raises(PilotError):
            await client.lookup(7)


async def test_reply_without_type_is_a_protocol_error() -> None:
    async with scripted(lambda _: {"a": 1}) as registry, client_of(registry) as client:
        with pytest.raises(ProtocolError, match="no type"):
            await client.lookup(7)


async def test_program_that_is_no_registry_is_named() -> None:
    banner = b"SSH-2.0-OpenSSH_9.2\r\n"
    async with scripted(lambda _: banner) as registry, client_of(registry) as client:
        with pytest.raises(ConnectionFailed, match="is no registry"):
            await client.lookup(7)


async def test_reply_that_nobody_asked_for_closes_the_connection() -> None:
    body = b'{"type":"x_ok"}'
    twice = (struct.pack("!I", len(body)) + body) * 2
    async with scripted(lambda _: twice) as registry, client_of(registry) as client:
        assert (await client.lookup(7))["type"] == "x_ok"
        assert (await client.lookup(7))["type"] == "x_ok"
        assert registry.connections == 2


# Connections


async def test_lost_connection_is_redialled_and_the_request_repeated() -> None:
    answers: list[Any] = [None, {"type": "lookup_ok"}]
    async with (
        scripted(lambda _: answers.pop(0)) as registry,
        client_of(registry) as client,
    ):
        assert await client.lookup(7) == {"type": "lookup_ok"}
        assert registry.connections == 2
        assert len(registry.requests) == 2


async def test_request_is_repeated_only_once() -> None:
    async with scripted(lambda _: None) as registry, client_of(registry) as client:
        with pytest.raises(ConnectionFailed):
            await client.lookup(7)
        assert len(registry.requests) == 2


async def test_registry_that_is_away_is_dialled_some_times(
    unused_tcp_port: int,
) -> None:
    async with RegistryClient(("127.0.0.1", unused_tcp_port), config=FAST) as client:
        with pytest.raises(ConnectionRefused, match=str(unused_tcp_port)):
            await client.lookup(7)


async def test_registry_that_comes_back_is_found(unused_tcp_port: int) -> None:
    registry = Scripted()
    config = replace(FAST, first_wait_s=0.05, max_wait_s=0.1)
    async with RegistryClient(("127.0.0.1", unused_tcp_port), config=config) as client:
        waiting = asyncio.create_task(client.lookup(7))
        await asyncio.sleep(0.02)
        server = await asyncio.start_server(
            registry.on_client, "127.0.0.1", unused_tcp_port
        )
        assert await waiting == {"type": "lookup_ok"}
    server.close()
    await asyncio.sleep(0.01)


async def test_silent_registry_times_out_and_later_requests_go_on() -> None:
    config = replace(FAST, reply_s=0.1, connections=1)
    async with scripted() as registry, client_of(registry, config) as client:
        registry.gate.clear()
        with pytest.raises(TimedOut, match=str(registry.endpoint[1])):
            await client.lookup(7)
        registry.gate.set()
        assert await client.lookup(8) == {"type": "lookup_ok"}
        assert registry.connections == 2


async def test_cancelled_request_does_not_confuse_the_next_one() -> None:
    def echo(request: dict[str, Any]) -> dict[str, Any]:
        return {"type": "lookup_ok", "node_id": request["node_id"]}

    config = replace(FAST, connections=1)
    async with scripted(echo) as registry, client_of(registry, config) as client:
        registry.gate.clear()
        first = asyncio.create_task(client.lookup(1))
        await registry.arrivals(1)
        second = asyncio.create_task(client.lookup(2))
        third = asyncio.create_task(client.lookup(3))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        registry.gate.set()
        assert (await third)["node_id"] == 3
        assert (await client.lookup(4))["node_id"] == 4
        assert registry.connections == 1
        assert [r["node_id"] for r in registry.requests] == [1, 3, 4]


async def test_one_request_is_out_on_each_connection() -> None:
    config = replace(FAST, connections=2)
    async with scripted() as registry, client_of(registry, config) as client:
        registry.gate.clear()
        requests = [asyncio.create_task(client.lookup(n)) for n in range(5)]
        await registry.arrivals(2)
        await asyncio.sleep(0.05)
        assert len(registry.requests) == 2
        registry.gate.set()
        await asyncio.gather(*requests)
        assert registry.connections == 2


async def test_waiting_callers_are_bounded() -> None:
    config = replace(FAST, connections=1, max_waiting=3)
    async with scripted() as registry, client_of(registry, config) as client:
        registry.gate.clear()
        requests = [asyncio.create_task(client.lookup(n)) for n in range(4)]
        await registry.arrivals(1)
        with pytest.raises(Busy):
            await client.lookup(9)
        registry.gate.set()
        await asyncio.gather(*requests)


async def test_pipelining_where_the_registry_offers_it() -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        reply = {"type": f"{request['type']}_ok", "node_id": 1}
        if request["type"] == "register":
            reply |= {"address": "0:0000.0000.0001", "extensions": ["pipeline"]}
        return reply

    config = replace(FAST, connections=2, pipeline=3)
    async with scripted(answer) as registry, client_of(registry, config) as client:
        await client.register(ALICE, "127.0.0.1:1")
        assert client.extensions == {"pipeline"}
        registry.gate.clear()
        requests = [asyncio.create_task(client.lookup(n)) for n in range(10)]
        await registry.arrivals(3)
        pool = client._pool
        assert sorted(link.load for link in pool._links) == [3, 3]
        assert len(pool._waiters) == 4
        registry.gate.set()
        await asyncio.gather(*requests)
        assert [link.load for link in pool._links] == [0, 0]


async def test_registry_that_is_busy_is_asked_again_later() -> None:
    busy = {"type": "error", "error": "rate limited", "retry_after": 0.01}
    answers: list[Any] = [busy, busy, {"type": "lookup_ok"}]
    async with (
        scripted(lambda _: answers.pop(0)) as registry,
        client_of(registry) as client,
    ):
        assert await client.lookup(7) == {"type": "lookup_ok"}
        assert len(registry.requests) == 3


async def test_closed_client_fails_what_is_out_and_what_comes() -> None:
    async with scripted() as registry:
        client = client_of(registry, replace(FAST, connections=1))
        registry.gate.clear()
        requests = [asyncio.create_task(client.lookup(n)) for n in range(3)]
        await registry.arrivals(1)
        await client.aclose()
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(result) for result in results] == [Closed] * 3
        with pytest.raises(Closed):
            await client.lookup(7)


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "register_ok"},
        {"type": "register_ok", "node_id": 1},
        {"type": "register_ok", "node_id": "1", "address": "0:0000.0000.0001"},
        {"type": "register_ok", "node_id": 1, "address": "nowhere"},
    ],
)
async def test_registration_without_its_fields_is_an_error(answer: Any) -> None:
    async with scripted(lambda _: answer) as registry, client_of(registry) as client:
        with pytest.raises(ProtocolError):
            await client.register(ALICE, "127.0.0.1:1")


@pytest.mark.parametrize("age", ["old", [1], -1, 1 << 40])
async def test_key_age_that_is_none_is_left_out(age: Any) -> None:
    answer = {"type": "resolve_ok", "node_id": 2, "key_age_days": age}
    async with scripted(lambda _: answer) as registry, client_of(registry) as client:
        assert (await client.resolve(ALICE, 1, 2)).key_age_days == 0


@pytest.mark.parametrize("network", [None, "1", 1 << 16])
async def test_network_without_its_number_is_an_error(network: Any) -> None:
    answer = {"type": "create_network_ok", "network_id": network}
    async with scripted(lambda _: answer) as registry, client_of(registry) as client:
        with pytest.raises(ProtocolError, match="no network_id"):
            await client.create_network(1, "fleet", admin_token="secret")


@pytest.mark.parametrize("score", [None, "1", 1.5, True])
async def test_score_that_is_none_is_an_error(score: Any) -> None:
    answer = {"type": "get_polo_score_ok", "polo_score": score}
    async with scripted(lambda _: answer) as registry, client_of(registry) as client:
        with pytest.raises(ProtocolError, match="no polo_score"):
            await client.get_polo_score(1)


@pytest.mark.parametrize("results", [None, {}, [], [1], [{}, {}]])
async def test_receipts_without_one_result_each_are_an_error(results: Any) -> None:
    answer = {"type": "polo_receipts_ok", "results": results}
    async with scripted(lambda _: answer) as registry, client_of(registry) as client:
        with pytest.raises(ProtocolError, match="one result per receipt"):
            await client.polo_receipts([make_receipt((1, ALICE), (2, BOB), "t")])


# All helpers against our own registry


@contextlib.asynccontextmanager
async def real() -> AsyncIterator[RegistryClient]:
    config = RendezvousConfig(
        registry=("127.0.0.1", 0),
        beacon=("127.0.0.1", 0),
        service=ServiceConfig(admin_token="secret"),
    )
    async with (
        Rendezvous(config) as rendezvous,
        RegistryClient(rendezvous.addresses.registry) as client,
    ):
        yield client


async def refused(action: Awaitable[Any]) -> str:
    with pytest.raises(RegistryError) as caught:
        await action
    return str(caught.value)


async def test_life_of_a_node() -> None:
    async with real() as client:
        registered = await client.register(
            ALICE, "127.0.0.1:4000", owner="a@example.test", version="1", hostname="al"
        )
        assert registered.node_id == 1
        assert registered.address == Address(0, 1)
        assert registered.observed_addr == "127.0.0.1:4000"
        assert registered.hostname == "al"
        assert "pipeline" in client.extensions
        assert (await client.heartbeat(ALICE, 1))["time"] > 0
        assert (await client.set_hostname(ALICE, 1, "alice"))["hostname"] == "alice"
        assert await client.set_tags(ALICE, 1, ["#text", "text", "gpu"]) == [
            "text",
            "gpu",
        ]
        assert not (await client.lookup(1))["public"]
        await client.set_visibility(ALICE, 1, public=True)
        assert (await client.lookup(1))["public"]
        assert (await client.resolve_hostname("alice"))["node_id"] == 1
        found = await client.search(tags=["gpu"])
        assert [agent["hostname"] for agent in found["agents"]] == ["alice"]
        found = await client.search(ALICE, 1, hostname_prefix="al", online=True)
        assert found["total"] == 1
        assert [b["id"] for b in await client.beacon_list()] == [1]
        await client.rotate_key(ALICE, 1, BOB)
        assert "signature" in await refused(client.heartbeat(ALICE, 1))
        await client.heartbeat(BOB, 1)
        await client.deregister(BOB, 1)
        assert "node not found" in await refused(client.lookup(1))


async def test_two_nodes_make_trust() -> None:
    async with real() as client:
        alice = (await client.register(ALICE, "127.0.0.1:4000")).node_id
        bob = (await client.register(BOB, "127.0.0.1:5000")).node_id
        assert "private" in await refused(client.resolve(ALICE, alice, bob))
        await client.request_handshake(ALICE, alice, bob, justification="please")
        polled = await client.poll_handshakes(BOB, bob)
        assert [r["from_node_id"] for r in polled["requests"]] == [alice]
        await client.respond_handshake(BOB, bob, alice, accept=True)
        polled = await client.poll_handshakes(ALICE, alice)
        assert [r["accept"] for r in polled["responses"]] == [True]
        assert await client.check_trust(alice, bob)
        assert await client.resolve(ALICE, alice, bob) == Resolution(
            bob, "127.0.0.1:5000", relay_only=False
        )
        await client.revoke_trust(ALICE, alice, bob)
        assert not await client.check_trust(alice, bob)
        await client.report_trust(ALICE, alice, bob)
        assert await client.check_trust(alice, bob)


async def test_networks() -> None:
    async with real() as client:
        alice = (await client.register(ALICE, "127.0.0.1:4000")).node_id
        bob = (await client.register(BOB, "127.0.0.1:5000")).node_id
        assert "invalid admin token" in await refused(
            client.create_network(alice, "fleet", admin_token="wrong")
        )
        network = await client.create_network(
            alice, "fleet", admin_token="secret", join_rule="token", token="t"
        )
        joined = await client.join_network(BOB, bob, network, token="t")
        assert joined["network_id"] == network
        names = [n["name"] for n in await client.list_networks(admin_token="secret")]
        assert names == ["backbone", "fleet"]
        nodes = await client.list_nodes(network)
        assert [node["node_id"] for node in nodes] == [alice, bob]
        assert await client.check_trust(alice, bob)
        await client.leave_network(BOB, bob, network)
        assert len(await client.list_nodes(network)) == 1
        assert len(await client.list_nodes(0, admin_token="secret")) == 2


async def test_many_requests_at_once() -> None:
    async with real() as client:
        await client.register(ALICE, "127.0.0.1:4000")
        replies = await asyncio.gather(*(client.lookup(1) for _ in range(2_000)))
        assert all(reply["node_id"] == 1 for reply in replies)


async def test_scores_come_from_receipts() -> None:
    async with real() as client:
        alice = (await client.register(ALICE, "127.0.0.1:4000")).node_id
        bob = (await client.register(BOB, "127.0.0.1:5000")).node_id
        sides = (alice, ALICE), (bob, BOB)
        now = time.time()
        receipts = [make_receipt(*sides, f"t-{n}", completed_at=now) for n in range(3)]
        for status in ("counted", "known"):
            assert await client.polo_receipts(receipts) == [
                {"task_id": f"t-{n}", "status": status} for n in range(3)
            ]
        assert await client.get_polo_score(bob) == 3
        page = await client.list_receipts(BOB, bob, limit=2)
        assert [row["task_id"] for row in page["receipts"]] == ["t-2", "t-1"]
        page = await client.list_receipts(
            None, bob, cursor=page["next_cursor"], admin_token="secret"
        )
        assert [row["task_id"] for row in page["receipts"]] == ["t-0"]
        assert "signature" in await refused(client.list_receipts(ALICE, bob))
        gate = {"submitter": alice, "receiver": bob}
        assert await client.authorize_task_submit(BOB, bob, **gate) == Authorization(
            authorized=False,
            reason="submitter's polo score is lower than the receiver's",
        )
        lower = client.authorize_task_submit(ALICE, alice, **gate, min_polo=-3)
        assert await lower == Authorization(authorized=True)
