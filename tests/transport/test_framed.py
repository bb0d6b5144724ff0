"""Framed connections over real sockets; with TLS, see test_tls."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
import uvloop

from pilotfleet.errors import (
    ConnectionFailed,
    ConnectionRefused,
    DecodeError,
    PilotError,
)
from pilotfleet.protocol.registry.framing import JsonFrameDecoder, encode_json_frame
from pilotfleet.transport.framed import FramedConnection, connect_framed

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

TIMEOUT_S = 10.0


class Peer:
    """One end of a connection and what happened to it."""

    def __init__(self, *, limit: int = 1 << 20) -> None:
        self.frames: list[bytes] = []
        self.error: PilotError | None = None
        self.opened = asyncio.Event()
        self.arrived = asyncio.Event()
        self.closed = asyncio.Event()
        self.connection = FramedConnection(
            JsonFrameDecoder(limit),
            on_frames=self._on_frames,
            on_closed=self._on_closed,
            on_opened=lambda _: self.opened.set(),
        )

    def make(self) -> FramedConnection:
        return self.connection

    async def frame(self, count: int = 1) -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.frames) < count:
                await self.arrived.wait()
                self.arrived.clear()
        return self.frames[count - 1]

    async def wait_closed(self) -> PilotError:
        async with asyncio.timeout(TIMEOUT_S):
            await self.closed.wait()
        assert self.error is not None
        return self.error

    def _on_frames(self, connection: FramedConnection, frames: list[bytes]) -> None:
        assert connection is self.connection
        self.frames += frames
        self.arrived.set()

    def _on_closed(self, connection: FramedConnection, error: PilotError) -> None:
        assert connection is self.connection
        self.error = error
        self.closed.set()


async def listen(peer: Peer) -> tuple[asyncio.Server, Endpoint]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(peer.make, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    return server, (host, port)


async def test_frames_go_both_ways() -> None:
    here, there = Peer(), Peer()
    server, endpoint = await listen(there)
    connection = await connect_framed(endpoint, here.make)
    assert connection.peer == endpoint
    connection.send(encode_json_frame(b"one") + encode_json_frame(b"two"))
    assert await there.frame(2) == b"two"
    assert there.frames == [b"one", b"two"]
    there.connection.send(encode_json_frame(b"answer"))
    assert await here.frame() == b"answer"
    connection.close()
    await here.wait_closed()
    await there.wait_closed()
    assert connection.is_closed
    connection.send(b"nothing happens")
    server.close()


async def test_broken_frame_closes_the_connection() -> None:
    here, there = Peer(), Peer(limit=10)
    server, endpoint = await listen(there)
    connection = await connect_framed(endpoint, here.make)
    connection.send(encode_json_frame(b"more than ten bytes"))
    assert isinstance(await there.wait_closed(), DecodeError)
    await here.wait_closed()
    server.close()


async def test_drain_waits_for_the_other_side() -> None:
    here, there = Peer(), Peer(limit=1 << 26)
    server, endpoint = await listen(there)
    connection = await connect_framed(endpoint, here.make)
    async with asyncio.timeout(TIMEOUT_S):
        await there.opened.wait()
    there.connection.pause()
    connection.send(encode_json_frame(bytes(32 << 20)))
    drain = asyncio.create_task(connection.drain())
    done, _ = await asyncio.wait({drain}, timeout=0.1)
    assert not done
    assert connection.blocked_since is not None
    there.connection.resume()
    async with asyncio.timeout(TIMEOUT_S):
        await drain
    assert connection.blocked_since is None
    assert len(await there.frame()) == 32 << 20
    connection.close()
    await here.wait_closed()
    server.close()


async def test_drain_ends_when_the_connection_does() -> None:
    here, there = Peer(), Peer()
    server, endpoint = await listen(there)
    connection = await connect_framed(endpoint, here.make)
    async with asyncio.timeout(TIMEOUT_S):
        await there.opened.wait()
    there.connection.pause()
    connection.send(bytes(32 << 20))
    drain = asyncio.create_task(connection.drain())
    there.connection.abort(DecodeError("enough"))
    async with asyncio.timeout(TIMEOUT_S):
        await drain
    await here.wait_closed()
    server.close()


class TurnCounter:
    """A decoder that counts the reads of each turn of the event loop."""

    def __init__(self) -> None:
        self.size = 0
        self.most = 0
        self._reads = 0
        self.done = asyncio.Event()

    def feed(self, data: bytes) -> list[bytes]:
        if not self._reads:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._reads += 1
        self.most = max(self.most, self._reads)
        self.size += len(data)
        if self.size >= 8 << 20:
            self.done.set()
        return []

    def _end_turn(self) -> None:
        self._reads = 0


def test_fast_sender_leaves_others_their_turn() -> None:
    """Left alone, uvloop reads one socket up to 32 times in a row."""

    async def receive() -> int:
        counter = TurnCounter()
        connection = FramedConnection(
            counter, on_frames=lambda *_: None, on_closed=lambda *_: None
        )
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: connection, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        with socket.create_connection(address) as sender:
            await asyncio.gather(
                asyncio.to_thread(sender.sendall, bytes(8 << 20)), counter.done.wait()
            )
        server.close()
        return counter.most

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(receive()) == 1


async def test_closed_port_refuses(unused_tcp_port: int) -> None:
    with pytest.raises(ConnectionRefused, match=f"127.0.0.1:{unused_tcp_port}"):
        await connect_framed(("127.0.0.1", unused_tcp_port), Peer().make)


async def test_name_that_does_not_exist_is_a_failed_connection() -> None:
    with pytest.raises(ConnectionFailed, match=r"no\.such\.host\.invalid"):
        await connect_framed(("no.such.host.invalid", 9000), Peer().make)


async def test_reset_by_the_other_side_is_reported() -> None:
    here = Peer()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        connecting = asyncio.create_task(
            connect_framed(listener.getsockname(), here.make)
        )
        accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
        await connecting
        accepted.close()
        error = await here.wait_closed()
    assert "the other side closed" in str(error)
