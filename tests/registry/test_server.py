"""The TCP server with a service of the test's own, and once with the real one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import struct
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfleet.errors import AlreadyExists, DecodeError, Unavailable
from pilotfleet.protocol.registry.binary import BinaryType, decode_error
from pilotfleet.protocol.registry.framing import (
    BINARY_PREAMBLE,
    encode_binary_frame,
    encode_json_frame,
)
from pilotfleet.registry import session, turns
from pilotfleet.registry.requestdecoder import BufferBudget, RequestDecoder
from pilotfleet.registry.server import RegistryServer, ServerConfig
from pilotfleet.registry.session import MAX_WAITING
from tests.registry.support import RawClient, eventually, raw_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pilotfleet.registry.context import PeerContext


class EchoHandler:
    """Answers with the request; some types do something else."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.hold = asyncio.Event()
        self.begun = 0
        self.peers: list[PeerContext] = []

    async def handle(
        self, request: dict[str, Any], peer: PeerContext
    ) -> dict[str, Any]:
        self.begun += 1
        self.peers.append(peer)
        match request.get("type"):
            case "wait":
                await self.gate.wait()
            case "hold":
                await self.hold.wait()
            case "bug":
                raise RuntimeError("a bug in the service")
            case "large":
                return {"type": "large_ok", "data": "x" * int(request["size"])}
            case "search":
                time.sleep(0.003)  # noqa: ASYNC251 - nobody else has a turn meanwhile.
                return {"type": "search_ok", "data": "x" * int(request["size"])}
            case "refuse":
                return {"type": "error", "error": "node 7: node not found"}
            case "strange":
                return {"type": "error", "error": 'unknown message type: "strange"'}
        return {**request, "type": f"{request.get('type')}_ok"}

    async def handle_binary(
        self, kind: int, payload: bytes, peer: PeerContext
    ) -> tuple[int, bytes]:
        if kind == BinaryType.RESOLVE:
            raise RuntimeError("a bug in the service")
        return kind | 0x80, payload


@contextlib.asynccontextmanager
async def running(
    config: ServerConfig | None = None,
) -> AsyncIterator[tuple[RegistryServer, EchoHandler]]:
    handler = EchoHandler()
    async with RegistryServer(handler, ("127.0.0.1", 0), config=config) as server:
        yield server, handler


@contextlib.asynccontextmanager
async def connected(
    config: ServerConfig | None = None,
) -> AsyncIterator[tuple[RegistryServer, EchoHandler, RawClient]]:
    async with (
        running(config) as (server, handler),
        raw_client(server.address) as client,
    ):
        yield server, handler, client


# JSON mode


async def test_request_gets_its_reply() -> None:
    async with connected() as (server, handler, client):
        assert await client.ask({"type": "echo", "x": 1}) == {"type": "echo_ok", "x": 1}
        assert await client.ask({"type": "echo"}) == {"type": "echo_ok"}
        assert handler.peers[0] is handler.peers[1]
        assert handler.peers[0].ip == "127.0.0.1"
        assert handler.peers[0].is_local
        assert server.stats.connections == 1
        assert server.connection_count == 1
    assert server.connection_count == 0


async def test_request_may_come_byte_by_byte() -> None:
    async with connected() as (_, _, client):
        for byte in encode_json_frame(b'{"type":"echo"}'):
            client.send(bytes([byte]))
            await client.writer.drain()
        assert await client.receive() == {"type": "echo_ok"}


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with connected() as (_, _, client):
        kinds = ["lookup", "echo", "heartbeat", "large"]
        for number in range(3_000):
            client.send({"type": kinds[number % 4], "n": number, "size": 5})
        replies = [await client.receive() for _ in range(3_000)]
    for number, reply in enumerate(replies):
        assert reply["type"] == f"{kinds[number % 4]}_ok"
        assert reply.get("n", number) == number


async def test_slow_request_holds_back_the_replies_behind_it() -> None:
    async with connected() as (_, handler, client):
        client.send({"type": "wait"})
        client.send({"type": "echo"})
        await eventually(lambda: handler.begun >= 1)
        handler.gate.set()
        assert (await client.receive())["type"] == "wait_ok"
        assert (await client.receive())["type"] == "echo_ok"


async def test_slow_request_does_not_hold_back_other_connections() -> None:
    async with connected() as (server, handler, client):
        client.send({"type": "wait"})
        async with raw_client(server.address) as other:
            assert await other.ask({"type": "echo"}) == {"type": "echo_ok"}
        handler.gate.set()
        assert (await client.receive())["type"] == "wait_ok"


async def test_too_many_waiting_requests_stop_the_reading() -> None:
    async with connected() as (server, handler, client):
        client.send({"type": "wait"})
        await eventually(lambda: handler.begun == 1)
        frame = encode_json_frame(json.dumps({"type": "echo", "x": "y" * 900}).encode())
        client.send(frame * 60_000)
        done, _ = await asyncio.wait(
            {asyncio.create_task(client.writer.drain())}, timeout=0.3
        )
        # 54 MB do not fit into the buffers of two kernels: the server reads no more.
        assert not done
        (session,) = server._sessions
        assert session._waiting_bytes < 3 * 1024 * 1024
        handler.gate.set()
        for _ in range(60_001):
            await client.receive_frame()


async def test_bug_in_the_service_costs_one_reply(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected() as (_, _, client):
        reply = await client.ask({"type": "bug"})
        assert reply == {"type": "error", "error": "request failed"}
        assert (await client.ask({"type": "echo"}))["type"] == "echo_ok"
    assert "a bug in the service" in caplog.text


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: registry\r\n\r\n",
        struct.pack("!I", 64 * 1024 * 1024 + 1),
        encode_json_frame(b"not json"),
        encode_json_frame(b"[1, 2]"),
        encode_json_frame(b""),
        encode_json_frame(b"[" * 100_000),
        encode_json_frame(b'{"type":"\xff"}'),
        # 300 KB that would be 20 MB in memory.
        encode_json_frame(b'{"type":"echo","x":[' + b"[]," * 100_000 + b"[]]}"),
        BINARY_PREAMBLE + struct.pack("!I", 0),
        BINARY_PREAMBLE + b"\xff\xff\xff\xff",
    ],
)
async def test_garbage_closes_the_connection_and_is_counted(garbage: bytes) -> None:
    async with connected() as (server, _, client):
        client.send(garbage)
        assert await client.is_closed()
        assert server.stats.garbage == 1
        async with raw_client(server.address) as other:
            assert await other.ask({"type": "echo"}) == {"type": "echo_ok"}


async def test_requests_before_garbage_are_answered() -> None:
    async with connected() as (_, _, client):
        client.send(
            encode_json_frame(b'{"type":"echo"}') * 3 + encode_json_frame(b"garbage")
        )
        assert [(await client.receive())["type"] for _ in range(3)] == ["echo_ok"] * 3
        assert await client.is_closed()


async def test_requests_are_counted_by_type() -> None:
    async with connected() as (server, _, client):
        for kind in ("echo", "echo", "refuse", "strange", "bug"):
            await client.ask({"type": kind})
        await client.ask({})
        stats = server.stats.requests
        assert {kind: (s.count, s.errors) for kind, s in stats.items()} == {
            "echo": (2, 0),
            "refuse": (1, 1),
            "bug": (1, 1),
            # What the service does not know must not become a label.
            "other": (2, 1),
        }
        assert server.stats.request_count == 6


# Binary mode


async def test_binary_mode() -> None:
    async with connected() as (_, _, client):
        client.send(BINARY_PREAMBLE)
        client.send(encode_binary_frame(BinaryType.LOOKUP, b"\0\0\0\1"))
        assert await client.receive_frame() == b"\x82\0\0\0\1"
        client.send(encode_binary_frame(BinaryType.JSON, b'{"type":"echo"}'))
        assert await client.receive_frame() == b'\x00{"type":"echo_ok"}'


async def test_binary_mode_byte_by_byte() -> None:
    async with connected() as (_, _, client):
        data = BINARY_PREAMBLE + encode_binary_frame(BinaryType.LOOKUP, b"abcd")
        for byte in data:
            client.send(bytes([byte]))
            await client.writer.drain()
        assert await client.receive_frame() == b"\x82abcd"


@pytest.mark.parametrize("version", [0, 2, 255])
async def test_other_binary_version_is_told_and_closed(version: int) -> None:
    async with connected() as (_, _, client):
        client.send(b"PILT" + bytes([version]) + b"whatever follows")
        frame = await client.receive_frame()
        assert frame[0] == BinaryType.ERROR
        assert decode_error(frame[1:]) == f"unsupported wire version {version}"
        assert await client.is_closed()


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"garbage", "json decode: "),
        (
            b'{"type":"subscribe_replication"}',
            "replication not supported over binary protocol",
        ),
    ],
)
async def test_binary_passthrough_errors(payload: bytes, error: str) -> None:
    async with connected() as (_, _, client):
        client.send(BINARY_PREAMBLE + encode_binary_frame(BinaryType.JSON, payload))
        frame = await client.receive_frame()
        assert frame[0] == BinaryType.ERROR
        assert decode_error(frame[1:]).startswith(error)


async def test_binary_bug_costs_one_reply() -> None:
    async with connected() as (_, _, client):
        client.send(BINARY_PREAMBLE + encode_binary_frame(BinaryType.RESOLVE))
        frame = await client.receive_frame()
        assert decode_error(frame[1:]) == "request failed"


# Limits


async def test_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotfleet.registry.server.SWEEP_INTERVAL_S", 0.01)
    async with connected(ServerConfig(idle_limit_s=0.05)) as (server, handler, client):
        # Bytes without a whole message do not count as life.
        client.send(b"\0\0")
        assert await client.is_closed()
        assert server.stats.timed_out == 1
        async with raw_client(server.address) as busy:
            busy.send({"type": "wait"})
            await eventually(lambda: handler.begun == 1)
            await asyncio.sleep(0.1)
            handler.gate.set()
            assert (await busy.receive())["type"] == "wait_ok"


async def test_connection_that_takes_no_replies_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pilotfleet.registry.server.SWEEP_INTERVAL_S", 0.01)
    config = ServerConfig(write_limit_s=0.05)
    async with connected(config) as (server, _, client):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(20):
            client.send({"type": "large", "size": 4_000_000})
        await eventually(lambda: server.connection_count == 0)
        assert server.stats.timed_out == 1


async def test_connection_above_the_limit_is_refused() -> None:
    async with connected(ServerConfig(max_connections=1)) as (server, _, client):
        assert await client.ask({"type": "echo"}) == {"type": "echo_ok"}
        async with raw_client(server.address) as second:
            assert await second.is_closed()
        assert server.stats.connections_refused == 1
        assert await client.ask({"type": "echo"}) == {"type": "echo_ok"}


async def test_client_above_its_rate_is_slowed_down() -> None:
    config = ServerConfig(requests_per_second_per_ip=500.0)
    async with connected(config) as (server, _, client):
        begin = asyncio.get_running_loop().time()
        for _ in range(600):
            client.send({"type": "lookup"})
        for _ in range(600):
            await client.receive()
        # The burst is free, the rest takes its time, and nothing is lost.
        assert asyncio.get_running_loop().time() - begin > 0.05
        assert server.stats.rate_limited > 0


async def test_whole_messages_that_wait_share_the_budget() -> None:
    config = ServerConfig(buffer_bytes=1_000_000)
    large = {"type": "echo", "x": "y" * 400_000}
    async with running(config) as (server, handler), contextlib.AsyncExitStack() as s:
        clients = [
            await s.enter_async_context(raw_client(server.address)) for _ in range(8)
        ]
        for client in clients[:2]:
            client.send({"type": "wait"})
            client.send(large)
        await eventually(lambda: server._budget.used > 800_000)
        for client in clients[2:]:
            client.send({"type": "wait"})
            client.send(large)
            assert await client.is_closed()
        assert server.stats.garbage == 6
        async with raw_client(server.address) as other:
            assert await other.ask({"type": "echo"}) == {"type": "echo_ok"}
        handler.gate.set()
        await eventually(lambda: not server._budget.used)
        for client in clients[:2]:
            assert await client.receive() == {"type": "wait_ok"}
            assert (await client.receive())["type"] == "echo_ok"


async def test_who_takes_no_replies_is_made_few_of_them() -> None:
    async with connected() as (server, handler, client):
        for _ in range(60):
            client.send({"type": "search", "size": 1_000_000})
        (session,) = server._sessions
        await eventually(lambda: session.connection.blocked_since is not None)
        await asyncio.sleep(0.1)
        # What fits into the buffers of two kernels, and one more.
        begun = handler.begun
        assert begun < 30
        client.writer.transport.abort()
        await eventually(lambda: not server.connection_count)
        await asyncio.sleep(0.1)
        assert handler.begun <= begun + 1


async def test_who_takes_no_binary_replies_is_made_few_of_them() -> None:
    body = b'{"type":"search","size":1000000}'
    async with connected() as (server, handler, client):
        client.send(BINARY_PREAMBLE + encode_binary_frame(BinaryType.JSON, body) * 60)
        await eventually(lambda: bool(server._sessions))
        (session,) = server._sessions
        await eventually(lambda: session.connection.blocked_since is not None)
        await asyncio.sleep(0.1)
        assert handler.begun < 30
        for _ in range(60):
            assert len(await client.receive_frame()) > 1_000_000


async def test_who_takes_no_short_replies_is_made_few_of_them() -> None:
    frames = [encode_json_frame(b'{"type":"large","size":1000000}') for _ in range(60)]
    async with connected() as (server, handler, client):
        client.send(b"".join(frames))
        await eventually(lambda: bool(server._sessions))
        (session,) = server._sessions
        await eventually(lambda: session.connection.blocked_since is not None)
        await asyncio.sleep(0.1)
        assert handler.begun < 30
        for _ in range(60):
            assert len((await client.receive())["data"]) == 1_000_000
        assert handler.begun == 60


async def test_replies_are_in_order_though_some_are_made_first() -> None:
    kinds = ["large", "search"] * 20
    async with connected() as (_, _, client):
        frames = [
            encode_json_frame(json.dumps({"type": kind, "size": 30_000 + i}).encode())
            for i, kind in enumerate(kinds)
        ]
        client.send(b"".join(frames))
        for i, kind in enumerate(kinds):
            reply = await client.receive()
            assert (reply["type"], len(reply["data"])) == (f"{kind}_ok", 30_000 + i)


async def test_one_long_request_goes_on_in_each_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "SHARE_S", -1.0)
    async with running() as (server, handler), contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(raw_client(server.address))
            for _ in range(20)
        ]
        for client in clients:
            client.send({"type": "search", "size": 1})
        most = before = 0
        while handler.begun < 20:
            await asyncio.sleep(0)
            most, before = max(most, handler.begun - before), handler.begun
        # And one that comes when the last of those who waited has gone on.
        assert most <= 2


async def test_long_requests_of_many_hold_nobody_up() -> None:
    async with running() as (server, handler), contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(raw_client(server.address))
            for _ in range(40)
        ]
        for client in clients:
            for _ in range(8):
                client.send({"type": "search", "size": 1})
        async with raw_client(server.address) as other:
            await eventually(lambda: handler.begun >= 40)
            for _ in range(5):
                before = handler.begun
                assert await other.ask({"type": "echo"}) == {"type": "echo_ok"}
                assert handler.begun - before < 40
        for client in clients:
            for _ in range(8):
                assert (await client.receive())["type"] == "search_ok"


async def test_half_messages_share_one_budget() -> None:
    config = ServerConfig(buffer_bytes=1_000_000)
    async with running(config) as (server, _), contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(raw_client(server.address))
            for _ in range(8)
        ]
        for client in clients:
            client.send(struct.pack("!I", 10_000_000) + bytes(300_000))
        await eventually(lambda: server.stats.garbage >= 1)
        await eventually(lambda: server._budget.used <= 1_300_000)
        # Those with small messages are not affected.
        async with raw_client(server.address) as other:
            assert await other.ask({"type": "echo"}) == {"type": "echo_ok"}
    assert server._budget.used == 0


@pytest.mark.parametrize(
    "message",
    [struct.pack("!I", 10_000_000) + bytes(1_000_000), encode_json_frame(b"[" * 10**6)],
    ids=["half", "broken"],
)
async def test_closed_connections_leave_no_message_to_the_collector(
    message: bytes,
) -> None:
    """The programs let it run seldom: messages it had to find once took 6 GB."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        async with running() as (server, _):
            for number in range(8):
                async with raw_client(server.address) as client:
                    client.send(message)
                    await client.writer.drain()
                    client.writer.write_eof()
                    assert await client.is_closed()
                await eventually(lambda: server.connection_count == 0)
                assert server.stats.connections == number + 1
            assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()
        gc.enable()


@given(st.data(), st.binary(max_size=300), st.booleans())
@settings(max_examples=200)
def test_decoder_gives_frames_or_its_error(
    data: st.DataObject, tail: bytes, binary: bool
) -> None:
    """However bytes are cut, they give the same frames."""
    start = BINARY_PREAMBLE + b"\0\0\0\2\1x" if binary else b"\0\0\0\2{}"
    stream = start + tail
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))

    def feed(pieces: list[bytes]) -> tuple[list[bytes], bool]:
        decoder = RequestDecoder(256, BufferBudget(10_000))
        frames: list[bytes] = []
        try:
            for piece in pieces:
                frames += decoder.feed(piece)
        except DecodeError:
            return frames, True
        return frames, False

    edges = [0, *cuts, len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    whole, broken = feed([stream])
    cut, broken_too = feed(pieces)
    assert broken == broken_too
    # A frame before the broken one may be lost with it.
    assert cut[: len(whole)] == whole or broken
    assert broken or whole[0] in (b"{}", b"\1x")


# Starting and stopping


async def test_port_in_use_is_named() -> None:
    async with running() as (server, handler):
        other = RegistryServer(handler, server.address)
        with pytest.raises(AlreadyExists, match=str(server.address[1])) as caught:
            await other.__aenter__()
    assert "--registry-addr" in (caught.value.hint or "")


async def test_address_of_another_host_is_refused() -> None:
    with pytest.raises(Unavailable, match=r"192\.0\.2\.1"):
        await RegistryServer(EchoHandler(), ("192.0.2.1", 9000)).__aenter__()


async def test_stop_lets_begun_requests_end() -> None:
    handler = EchoHandler()
    server = RegistryServer(handler, ("127.0.0.1", 0))
    await server.__aenter__()
    async with raw_client(server.address) as client:
        client.send({"type": "wait"})
        await eventually(lambda: handler.begun == 1)
        stopping = asyncio.create_task(server.__aexit__(None, None, None))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(*server.address)
        handler.gate.set()
        assert (await client.receive())["type"] == "wait_ok"
        assert await client.is_closed()
        await stopping


async def test_stop_takes_no_further_requests() -> None:
    handler = EchoHandler()
    server = RegistryServer(handler, ("127.0.0.1", 0))
    await server.__aenter__()
    echo = encode_json_frame(b'{"type":"echo"}')
    async with raw_client(server.address) as slow, raw_client(server.address) as full:
        slow.send({"type": "hold"})
        full.send({"type": "wait"})
        await eventually(lambda: handler.begun == 2)
        full.send(echo * (MAX_WAITING + 1))
        await eventually(lambda: any(s._paused for s in server._sessions))
        stopping = asyncio.create_task(server.__aexit__(None, None, None))
        await asyncio.sleep(0)
        handler.gate.set()
        for _ in range(MAX_WAITING + 2):
            await full.receive_frame()
        # There is room again, but whoever answered this would not be waited for.
        full.send(echo)
        late = asyncio.create_task(full.receive_frame())
        assert not (await asyncio.wait({late}, timeout=0.1))[0]
        handler.hold.set()
        assert (await slow.receive())["type"] == "hold_ok"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await late
        await stopping


async def test_stop_does_not_wait_longer_than_its_deadline() -> None:
    async with connected(ServerConfig(drain_s=0.05)) as (_, handler, client):
        client.send({"type": "wait"})
        await eventually(lambda: handler.begun == 1)
    assert await client.is_closed()


async def test_a_group_that_takes_long_leaves_others_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "TURN_S", -1.0)
    async with connected() as (_, handler, client):
        seen: set[int] = set()

        async def watch() -> None:
            while True:
                seen.add(handler.begun)
                await asyncio.sleep(0)

        watcher = asyncio.create_task(watch())
        for _ in range(20):
            client.send({"type": "lookup"})
        for _ in range(20):
            assert (await client.receive())["type"] == "lookup_ok"
        watcher.cancel()
        await asyncio.wait([watcher])
        assert set(range(1, 20)) <= seen


async def test_no_further_request_is_begun_after_so_many_bytes_of_them() -> None:
    async with running() as (server, handler), raw_client(server.address) as client:
        for number in range(4):
            client.send({"type": "wait", "number": number, "data": "x" * 40_000})
        await client.writer.drain()
        await eventually(lambda: handler.begun >= 1)
        # What is read in one piece is a matter of the network, so one or two.
        assert handler.begun <= 2
        handler.gate.set()
        numbers = [(await client.receive())["number"] for _ in range(4)]
        assert numbers == [0, 1, 2, 3]
        assert handler.begun == 4
