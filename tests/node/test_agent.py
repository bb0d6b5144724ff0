"""What an agent offers to programs and services, on real sockets."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import (
    AlreadyExists,
    Closed,
    ConnectionRefused,
    ConnectionReset,
    InvalidArgument,
    NotFound,
    RegistryError,
    TimedOut,
    TrustRequired,
)
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.services.echo import answer_trace
from tests.node.support import World, dial_echo, echo, eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent, Datagram
    from pilotfleet.node.stream import Stream

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as made:
        yield made


@pytest.fixture
async def pair(world: World) -> AsyncIterator[tuple[Agent, Agent]]:
    """Yield two public agents on two hosts."""
    async with world.host("a", "alice") as a, world.host("b", "bob") as b:
        yield a.default_agent, b.default_agent


async def connected(a: Agent, b: Agent, port: int = 5000) -> tuple[Stream, Stream]:
    """Return both ends of a new stream from ``a`` to ``b``."""
    streams: asyncio.Queue[Stream] = asyncio.Queue()
    b.listen(port, streams.put_nowait)
    near = await a.dial(SocketAddress(b.address, port), timeout=10)
    async with asyncio.timeout(10):
        return near, await streams.get()


# Dialling


async def test_nothing_listens(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    with pytest.raises(ConnectionRefused, match=r"^connection refused$"):
        await alice.dial(SocketAddress(bob.address, 9999), timeout=10)


async def test_no_such_node(pair: tuple[Agent, Agent]) -> None:
    alice, _ = pair
    with pytest.raises(
        NotFound, match=r"^resolve node 99: registry: node 99: node not"
    ):
        await alice.dial(SocketAddress(Address(0, 99), 7))


async def test_a_failed_resolve_is_not_repeated_at_once(
    pair: tuple[Agent, Agent], world: World
) -> None:
    alice, _ = pair
    remote = SocketAddress(Address(0, 99), 7)
    with pytest.raises(NotFound):
        await alice.dial(remote)
    await world.stop_rendezvous()
    # The answer is the remembered one, not that nobody could be asked.
    with pytest.raises(NotFound):
        await alice.dial(remote)


async def test_many_dials_to_one_peer_ask_once(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    answers = await asyncio.gather(
        *(echo(alice, bob, f"{n}".encode()) for n in range(30))
    )
    assert answers == [f"{n}".encode() for n in range(30)]
    assert len(alice.tunnels.peers()) == 1


@pytest.mark.parametrize("node", [0, 0xFFFFFFFF])
async def test_impossible_nodes(pair: tuple[Agent, Agent], node: int) -> None:
    alice, _ = pair
    with pytest.raises(InvalidArgument, match=f"node {node} cannot be reached"):
        await alice.dial(SocketAddress(Address(0, node), 7))


async def test_a_dial_has_a_time_limit(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    bob.tunnels.beacon = None
    bob.socket.close()
    with pytest.raises(TimedOut, match="dial timeout"):
        await alice.dial(SocketAddress(bob.address, 7), timeout=0.1)


async def test_a_cancelled_dial_leaves_no_connection(
    pair: tuple[Agent, Agent],
) -> None:
    alice, bob = pair
    bob.socket.close()
    dial = asyncio.ensure_future(alice.dial(SocketAddress(bob.address, 7)))
    await eventually(lambda: alice.streams.open_count, what="a dial")
    dial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dial
    assert alice.streams.open_count == 0


async def test_an_agent_dials_itself(pair: tuple[Agent, Agent]) -> None:
    alice, _ = pair
    assert await echo(alice, alice, b"me" * 5000) == b"me" * 5000


# Ports


async def test_a_port_is_bound_once(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    near, far = await connected(alice, bob)
    with pytest.raises(AlreadyExists, match=r"^port 5000 already bound$"):
        bob.listen(5000, lambda stream: None)
    with pytest.raises(AlreadyExists, match=r"^port 7 already bound$"):
        bob.listen(7, lambda stream: None)
    bob.unlisten(5000)
    with pytest.raises(NotFound):
        bob.unlisten(5000)
    with pytest.raises(ConnectionRefused):
        await alice.dial(SocketAddress(bob.address, 5000), timeout=10)
    await near.write(b"alive")
    assert await far.read_exactly(5) == b"alive"


# Streams


async def test_both_ends_agree_on_who_they_are(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    near, far = await connected(alice, bob)
    assert near.remote == SocketAddress(bob.address, 5000)
    assert far.remote == SocketAddress(alice.address, near.local_port)
    assert far.local_port == 5000
    assert near.local_port >= 49152
    assert alice.info()["conn_list"][0]["remote_port"] == 5000


async def test_closing_ends_the_other_side_after_the_data(
    pair: tuple[Agent, Agent],
) -> None:
    near, far = await connected(*pair)
    await near.write(b"last words")
    await near.close()
    assert await far.read_exactly(10) == b"last words"
    assert await far.read() == b""
    assert far.at_eof
    with pytest.raises(ConnectionReset):
        await far.write(b"too late")
    with pytest.raises(Closed):
        await near.write(b"after close")
    with pytest.raises(Closed):
        await near.read()


async def test_abort_breaks_the_other_side(pair: tuple[Agent, Agent]) -> None:
    near, far = await connected(*pair)
    near.abort()
    with pytest.raises(ConnectionReset):
        await far.read()


async def test_a_broken_stream_leaves_nothing_to_the_collector(
    pair: tuple[Agent, Agent],
) -> None:
    """The daemon lets it run seldom, and readers hold up to 64 MiB."""

    class Reader:
        async def read(self, stream: Stream) -> None:
            while await stream.read():
                pass

    near, far = await connected(*pair)
    reader = Reader()
    reading = asyncio.ensure_future(reader.read(far))
    left = weakref.ref(reader), weakref.ref(far)
    del reader
    gc.disable()
    try:
        near.abort()
        await asyncio.wait({reading})
        assert isinstance(reading.exception(), ConnectionReset)
        del reading
        await eventually(lambda: left[0]() is None, what="the reader is gone")
        del far
        await eventually(lambda: left[1]() is None, what="the stream is gone")
    finally:
        gc.enable()


async def test_a_stream_that_ends_early_is_not_whole(pair: tuple[Agent, Agent]) -> None:
    near, far = await connected(*pair)
    await near.write(b"abc")
    await near.close()
    with pytest.raises(ConnectionReset, match="2 bytes too early"):
        await far.read_exactly(5)


async def test_a_slow_reader_holds_the_writer_back(pair: tuple[Agent, Agent]) -> None:
    near, far = await connected(*pair)
    size = 16 << 20
    data = os.urandom(1 << 20) * 16
    writing = asyncio.ensure_future(near.write(data))
    await eventually(lambda: far.readable_bytes > 500_000, what="a full window")
    _, pending = await asyncio.wait({writing}, timeout=0.1)
    assert pending, "the writer did not wait"
    assert far.readable_bytes < size // 2
    received = await far.read_exactly(size)
    await writing
    assert received == data


async def test_callback_mode(pair: tuple[Agent, Agent]) -> None:
    near, far = await connected(*pair)
    received = bytearray()
    ended = asyncio.get_running_loop().create_future()

    def on_event(stream: Stream) -> None:
        while data := stream.read_nowait(1000):
            received.extend(data)
        if stream.at_eof and not ended.done():
            ended.set_result(None)

    far.on_event = on_event
    data = os.urandom(300_000)
    await near.write(data)
    await near.close()
    async with asyncio.timeout(10):
        await ended
    assert received == data


async def test_write_nowait_takes_what_fits(pair: tuple[Agent, Agent]) -> None:
    near, far = await connected(*pair)
    data = bytes(4 << 20)
    taken = near.write_nowait(data)
    assert 0 < taken < len(data)
    assert near.write_nowait(data[:100_000]) == 0
    assert await far.read_exactly(taken) == data[:taken]


async def test_an_answer_carries_the_acknowledgement(
    pair: tuple[Agent, Agent],
) -> None:
    alice, bob = pair
    async with await dial_echo(alice, bob) as stream:
        before = bob.socket.datagrams_sent
        # So many are acknowledged at once where nobody answers.
        for _ in range(30):
            await stream.write(b"question")
            await stream.read_exactly(8)
        assert bob.socket.datagrams_sent - before < 40


async def test_a_cancelled_read_loses_nothing(pair: tuple[Agent, Agent]) -> None:
    near, far = await connected(*pair)
    reading = asyncio.ensure_future(far.read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await near.write(b"kept")
    assert await far.read() == b"kept"


async def test_segments_grow_between_pilotfleet_nodes(
    pair: tuple[Agent, Agent],
) -> None:
    alice, bob = pair
    assert len(await echo(alice, bob, bytes(2 << 20))) == 2 << 20
    await eventually(
        lambda: alice.tunnels.max_payload(bob.node_id) > 1152, what="larger segments"
    )


async def test_the_echo_service_answers_traces() -> None:
    assert answer_trace(b"TRCE12345678rest", 5) == b"TRCE12345678" + bytes(7) + b"\5"


async def test_a_trace_through_a_stream(pair: tuple[Agent, Agent]) -> None:
    async with await dial_echo(*pair) as stream:
        await stream.write(b"TRCE" + bytes(8))
        assert (await stream.read_exactly(20))[:12] == b"TRCE" + bytes(8)


# Datagrams and pings


async def test_datagrams_reach_every_listener(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    first: asyncio.Queue[Datagram] = asyncio.Queue()
    second: asyncio.Queue[Datagram] = asyncio.Queue()

    def broken(datagram: Datagram) -> None:
        raise ZeroDivisionError

    bob.datagram_listeners.update((first.put_nowait, broken, second.put_nowait))
    await alice.send_datagram(SocketAddress(bob.address, 4000), b"fact")
    for queue in (first, second):
        async with asyncio.timeout(10):
            datagram = await queue.get()
        assert (datagram.port, datagram.data) == (4000, b"fact")
        assert datagram.source.address == alice.address


@pytest.mark.parametrize("size", [0, 65536])
async def test_datagrams_have_a_size(pair: tuple[Agent, Agent], size: int) -> None:
    alice, bob = pair
    with pytest.raises(InvalidArgument):
        await alice.send_datagram(SocketAddress(bob.address, 4000), bytes(size))


async def test_ping(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    assert 0 < await alice.ping(bob.node_id) < 5
    times = await asyncio.gather(*(alice.ping(bob.node_id) for _ in range(20)))
    assert all(times)
    assert await alice.ping(alice.node_id) < 1
    with pytest.raises(NotFound):
        await alice.ping(99)


async def test_a_ping_that_nobody_answers(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    bob.socket.close()
    with pytest.raises(TimedOut, match=f"no pong from node {bob.node_id}"):
        await alice.ping(bob.node_id, timeout=0.1)


# The gate of private nodes


async def test_a_private_node_is_not_resolved_for_strangers(world: World) -> None:
    async with (
        world.host("a", "alice", is_public=False) as a,
        world.host("b", "bob", is_public=False) as b,
    ):
        with pytest.raises(TrustRequired, match="is private"):
            await echo(a.default_agent, b.default_agent)


async def test_a_private_node_ignores_strangers_that_know_its_address(
    world: World,
) -> None:
    async with world.host("a", "alice") as a, world.host("b", "bob") as b:
        alice, bob = a.default_agent, b.default_agent
        assert await echo(alice, bob)
        bob.is_public = bob.streams.is_public = False
        with pytest.raises(TimedOut):
            await alice.dial(SocketAddress(bob.address, 7), timeout=0.3)
        got: list[Datagram] = []
        bob.datagram_listeners.add(got.append)
        await alice.send_datagram(SocketAddress(bob.address, 4000), b"hidden")
        # Pings are not gated: when this one is back, the datagram has been seen.
        await alice.ping(bob.node_id)
        await eventually(lambda: b.gate.refused >= 1, what="a refusal")
        assert got == []


async def test_trust_at_the_registry_opens_the_gate(world: World) -> None:
    async with (
        world.host("a", "alice", is_public=False) as a,
        world.host("b", "bob", is_public=False) as b,
    ):
        alice, bob = a.default_agent, b.default_agent
        await bob.registry("report_trust", node_id=bob.node_id, peer_id=alice.node_id)
        assert await echo(alice, bob) == b"hello"
        got: asyncio.Queue[Datagram] = asyncio.Queue()
        bob.datagram_listeners.add(got.put_nowait)
        await alice.send_datagram(SocketAddress(bob.address, 4000), b"for friends")
        async with asyncio.timeout(10):
            assert (await got.get()).data == b"for friends"


async def test_local_trust_opens_the_gate_without_the_registry(world: World) -> None:
    async with (
        world.host("a", "alice") as a,
        world.host("b", "bob") as b,
    ):
        alice, bob = a.default_agent, b.default_agent
        assert await alice.ping(bob.node_id)
        bob.is_public = bob.streams.is_public = False
        bob.trust.trust(alice.node_id, wall=0, mutual=True)
        await world.stop_rendezvous()
        assert await echo(alice, bob) == b"hello"


async def test_whom_we_dialled_may_dial_back_for_a_while(world: World) -> None:
    async with world.host("a", "alice") as a, world.host("b", "bob") as b:
        alice, bob = a.default_agent, b.default_agent
        assert await echo(alice, bob)
        alice.is_public = alice.streams.is_public = False
        a.gate.note_contact(alice, bob.node_id)
        answers: asyncio.Queue[Stream] = asyncio.Queue()
        for port in (1001, 1005):
            alice.listen(port, answers.put_nowait)
        await bob.dial(SocketAddress(alice.address, 1001), timeout=10)
        with pytest.raises(TimedOut):
            await bob.dial(SocketAddress(alice.address, 1005), timeout=0.3)


# The rest


async def test_hostnames(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    answer = await alice.resolve_hostname("bob")
    assert answer["address"] == str(bob.address)
    assert await alice.resolve_hostname("bob") is answer
    with pytest.raises(RegistryError, match="not found"):
        await alice.resolve_hostname("nobody")


async def test_search_finds_by_tag(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    await bob.registry("set_tags", node_id=bob.node_id, tags=["text"])
    found = await alice.search(tags=["text"])
    assert [row["node_id"] for row in found["agents"]] == [bob.node_id]


async def test_info_has_every_field_that_clients_need(
    pair: tuple[Agent, Agent],
) -> None:
    alice, bob = pair
    await echo(alice, bob)
    info, health = alice.info(), alice.health()
    numbers = (
        "node_id uptime_secs peers connections ports bytes_sent bytes_recv pkts_sent"
        " pkts_recv encrypted_peers authenticated_peers relay_peer_count"
        " handshake_pending_count accept_queue_drops"
    )
    for key in numbers.split():
        assert isinstance(info[key], int), key
    assert info["address"] == str(alice.address)
    assert info["hostname"] == "alice"
    assert info["ports"] == 1
    assert info["networks"] is None
    assert info["peer_list"][0]["endpoint"].startswith("127.0.0.1:")
    assert health["status"] == "ok"
    assert health["peers"] == 1


async def test_a_closed_agent_says_so(world: World) -> None:
    async with world.host("a", "alice") as a, world.host("b", "bob") as b:
        alice, bob = a.default_agent, b.default_agent
        stream = await dial_echo(alice, bob)
        alice.close()
        with pytest.raises(ConnectionReset):
            await stream.read()
        with pytest.raises(Closed, match="agent alice is closed"):
            await echo(alice, bob)
