"""Binary mode: the same rules, literal errors (registry.md section 2.4)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.registry.binary import (
    BinaryType,
    HeartbeatReply,
    HeartbeatRequest,
    LookupReply,
    LookupRequest,
    ResolveReply,
    ResolveRequest,
    decode_error,
)
from pilotfleet.registry.service import PeerContext
from tests.registry.world import World


async def ask(world: World, kind: int, payload: bytes) -> tuple[int, bytes]:
    peer = PeerContext("198.51.100.7")
    return await world.service.handle_binary(kind, payload, peer)


async def error(world: World, kind: int, payload: bytes) -> str:
    answer, text = await ask(world, kind, payload)
    assert answer == BinaryType.ERROR
    return decode_error(text)


async def test_heartbeat() -> None:
    world = World()
    (agent,) = await world.agents(1)
    world.clock.time += 5
    request = HeartbeatRequest(1, agent.identity.sign(b"heartbeat:1"))
    peer = PeerContext("198.51.100.7")
    kind, reply = await world.service.handle_binary(
        BinaryType.HEARTBEAT, request.encode(), peer
    )
    assert kind == BinaryType.HEARTBEAT_OK
    assert HeartbeatReply.decode(reply).time == int(world.clock.wall())
    assert world.directory.nodes.by_id[1].last_seen == world.clock.wall()
    assert peer.verified_node == 1
    forged = HeartbeatRequest(1, bytes(64)).encode()
    text = await error(world, BinaryType.HEARTBEAT, forged)
    assert text == "signature verification failed"
    unknown = HeartbeatRequest(9, bytes(64)).encode()
    text = await error(world, BinaryType.HEARTBEAT, unknown)
    assert text == "node 9: not found"


async def test_lookup() -> None:
    world = World()
    (agent,) = await world.agents(1)
    await agent.ask("set_hostname", hostname="alice")
    await agent.ask("set_tags", tags=["gpu"])
    request = LookupRequest(1).encode()
    _, reply = await ask(world, BinaryType.LOOKUP, request)
    private = LookupReply.decode(reply)
    assert private == LookupReply(
        node_id=1,
        public=False,
        task_exec=False,
        networks=(0,),
        public_key=agent.identity.public_key,
        hostname="alice",
        tags=("gpu",),
        real_addr="",
    )
    await agent.ask("set_visibility", public=True)
    _, reply = await ask(world, BinaryType.LOOKUP, request)
    assert LookupReply.decode(reply).real_addr == "203.0.113.5:4000"
    text = await error(world, BinaryType.LOOKUP, LookupRequest(9).encode())
    assert text == "node 9: not found"


async def test_resolve() -> None:
    world = World()
    one, two = await world.agents(2)
    await two.register(lan_addrs=["192.168.1.5:4000"])
    signature = one.identity.sign(b"resolve:1:2")
    request = ResolveRequest(2, 1, signature).encode()
    denied = await error(world, BinaryType.RESOLVE, request)
    assert denied.startswith("resolve denied: node 2 is private")
    await two.ask("report_trust", peer_id=1)
    kind, reply = await ask(world, BinaryType.RESOLVE, request)
    assert kind == BinaryType.RESOLVE_OK
    expected = ResolveReply(2, "203.0.113.5:4000", ("192.168.1.5:4000",), 0)
    assert ResolveReply.decode(reply) == expected
    stranger = ResolveRequest(2, 9, signature).encode()
    text = await error(world, BinaryType.RESOLVE, stranger)
    assert text == "resolve denied: requester node 9 is not registered"
    unknown = ResolveRequest(9, 1, one.identity.sign(b"resolve:1:9")).encode()
    assert await error(world, BinaryType.RESOLVE, unknown) == "node 9: not found"


async def test_short_and_unknown_messages_have_their_texts() -> None:
    world = World()
    text = await error(world, BinaryType.RESOLVE, bytes(5))
    assert text == "resolve request too short: 5 bytes"
    assert await error(world, 0x4A, b"") == "unknown message type 0x4A"


@given(kind=st.integers(0, 255), payload=st.binary(max_size=90))
async def test_any_message_gets_an_answer(kind: int, payload: bytes) -> None:
    world = World()
    await world.agents(1)
    answer, reply = await ask(world, kind, payload)
    assert isinstance(reply, bytes)
    assert answer in (BinaryType.ERROR, BinaryType.LOOKUP_OK)
