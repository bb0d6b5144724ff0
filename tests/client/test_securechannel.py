"""The secure channel over streams: in memory, and over a real tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pilotfleet.client import securechannel
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.securechannel import (
    SECURE_PORT,
    Authentication,
    SecureStream,
    accept_secure,
    connect_secure,
)
from pilotfleet.errors import Closed, ConnectionReset, DecodeError, TimedOut
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.services.securechannel import NonceMemory
from tests.support.programs import data_of, world

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.support.programs import World

TIMEOUT_S = 20.0
ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)


class Pipe:
    """One end of a stream in memory; what it sends can be changed on the way."""

    def __init__(self) -> None:
        self.peer: Pipe
        self.is_closed = False
        self.sent: list[bytes] = []
        self.change: Callable[[bytes], list[bytes]] = lambda data: [data]
        self.is_slow = False
        """Lets others run while data is half written."""
        self._chunks: deque[bytes] = deque()
        self._arrived = asyncio.Event()

    async def read(self, n: int = 65536) -> bytes:
        while not self._chunks:
            if self.peer.is_closed or self.is_closed:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        chunk = self._chunks.popleft()
        if len(chunk) > n:
            self._chunks.appendleft(chunk[n:])
        return chunk[:n]

    async def write(self, data: bytes) -> None:
        if self.is_closed:
            raise Closed("the pipe is closed")
        self.sent.append(data)
        if self.is_slow:
            self.peer._chunks.append(data[:1])
            await asyncio.sleep(0)
            data = data[1:]
        self.peer._chunks.extend(self.change(data))
        self.peer._arrived.set()

    async def close(self) -> None:
        self.is_closed = True
        self._arrived.set()
        self.peer._arrived.set()


def pipe() -> tuple[Pipe, Pipe]:
    one, two = Pipe(), Pipe()
    one.peer, two.peer = two, one
    return one, two


async def both(
    client: Awaitable[SecureStream], server: Awaitable[SecureStream]
) -> tuple[SecureStream, SecureStream]:
    async with asyncio.timeout(TIMEOUT_S):
        one, two = await asyncio.gather(client, server)
        return one, two


async def channel(
    *, is_legacy: bool = False
) -> tuple[SecureStream, SecureStream, Pipe, Pipe]:
    one, two = pipe()
    client, server = await both(
        connect_secure(one, is_legacy=is_legacy),
        accept_secure(two, is_legacy=is_legacy),
    )
    return client, server, one, two


@pytest.mark.parametrize("is_legacy", [False, True])
async def test_bytes_go_both_ways_and_nobody_reads_along(is_legacy: bool) -> None:
    client, server, one, two = await channel(is_legacy=is_legacy)
    async with client, server:
        await client.write(b"a secret question")
        assert await server.read_exactly(17) == b"a secret question"
        await server.write(b"a secret answer")
        assert await client.read(8) == b"a secret"
        assert await client.read() == b" answer"
        assert not any(b"secret" in data for data in (*one.sent, *two.sent))
        assert client.peer_key == server.public_key
        assert server.peer_key == client.public_key


async def test_long_write_is_several_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(securechannel, "PIECE_BYTES", 1000)
    client, server, one, _ = await channel()
    async with client, server:
        data = bytes(range(250)) * 10
        await client.write(data)
        assert await server.read_exactly(2500) == data
        assert len(one.sent) == 4


async def test_writers_at_the_same_time_do_not_mix_records() -> None:
    client, server, one, _ = await channel()
    one.is_slow = True
    async with client, server:
        await asyncio.gather(*(client.write(b"%03d" % n) for n in range(50)))
        received = await server.read_exactly(150)
    parts = {received[i : i + 3] for i in range(0, 150, 3)}
    assert parts == {b"%03d" % n for n in range(50)}


async def test_write_that_is_cancelled_half_way_closes_the_channel() -> None:
    client, server, one, _ = await channel()
    one.is_slow = True
    async with client, server:
        writing = asyncio.ensure_future(client.write(b"hello"))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert one.is_closed
        with pytest.raises(Closed):
            await client.write(b"more")
        with pytest.raises(DecodeError, match="into a record"):
            await server.read()


async def test_end_comes_after_everything_was_read() -> None:
    client, server, _, _ = await channel()
    await client.write(b"last words")
    await client.close()
    assert await server.read() == b"last words"
    assert await server.read() == b""
    assert server.at_eof
    with pytest.raises(ConnectionReset, match="5 bytes too early"):
        await server.read_exactly(5)
    await server.close()
    with pytest.raises(Closed):
        await client.write(b"more")
    with pytest.raises(Closed):
        await client.read()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: [data, data], "record 1 instead of 2"),
        (lambda data: [data[:-1] + bytes([data[-1] ^ 1])], "altered"),
        (lambda data: [b"\xff\xff\xff\xff" + data], "record of 4294967295 bytes"),
        (lambda data: [data[:4] + b"\0\0\0\x01" + data[8:]], "wrong role"),
        (lambda data: [b"\0\0\0\x0b" + data], "record of 11 bytes"),
    ],
)
async def test_tampering_closes_the_channel(
    change: Callable[[bytes], list[bytes]], match: str
) -> None:
    client, server, one, two = await channel()
    one.change = change
    await client.write(b"hello")
    with pytest.raises(DecodeError, match=match):
        # A record that was repeated is right the first time.
        await server.read_exactly(10)
    assert two.is_closed
    with pytest.raises(Closed):
        await server.write(b"anything")
    await client.close()


async def test_record_cut_off_is_an_error_not_an_end() -> None:
    client, server, one, _ = await channel()
    one.change = lambda data: [data[:-1]]
    await client.write(b"hello")
    await client.close()
    with pytest.raises(DecodeError, match="into a record"):
        await server.read()


async def test_exchange_is_limited_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(securechannel, "EXCHANGE_TIMEOUT_S", 0.01)
    one, two = pipe()
    await two.write(b"half a key")
    with pytest.raises(TimedOut, match="no secure channel"):
        await connect_secure(one)
    assert one.is_closed


async def test_peer_that_is_no_channel_is_refused() -> None:
    one, two = pipe()
    await two.write(bytes(32))
    with pytest.raises(DecodeError, match="public key"):
        await connect_secure(one)
    assert one.is_closed
    one, two = pipe()
    await two.write(b"short")
    await two.close()
    with pytest.raises(ConnectionReset, match="27 bytes too early"):
        await accept_secure(one)
    assert one.is_closed


async def test_reflected_bytes_open_nothing() -> None:
    one, two = pipe()
    connecting = asyncio.ensure_future(connect_secure(one))
    await two.write(await two.read(32))
    with pytest.raises(DecodeError, match="our own public key"):
        await connecting


def authentication(me: int, peer: int) -> Authentication:
    identities = {1: ALICE, 2: BOB}

    async def find_key(node: int) -> bytes:
        return identities[node].public_key

    return Authentication(identities[me], me, peer, find_key)


async def test_both_sides_prove_who_they_are() -> None:
    one, two = pipe()
    client, server = await both(
        connect_secure(one, authentication=authentication(1, 2)),
        accept_secure(two, authentication=authentication(2, 1)),
    )
    async with client, server:
        await client.write(b"hello")
        assert await server.read() == b"hello"


async def refused(client: Authentication, server: Authentication, match: str) -> None:
    one, two = pipe()
    async with asyncio.timeout(TIMEOUT_S):
        results = await asyncio.gather(
            connect_secure(one, authentication=client),
            accept_secure(two, authentication=server),
            return_exceptions=True,
        )
    errors = [str(e) for e in results if isinstance(e, DecodeError)]
    assert any(match in error for error in errors), results
    assert one.is_closed
    assert two.is_closed


async def test_another_node_than_expected_is_refused() -> None:
    await refused(authentication(1, 1), authentication(2, 1), "it is node 2, not 1")


async def test_signature_by_another_key_is_refused() -> None:
    forged = Authentication(ALICE, 2, 1, authentication(2, 1).find_key)
    await refused(authentication(1, 2), forged, "is not by node 2")


async def test_clock_that_is_off_is_refused() -> None:
    fast = replace(authentication(2, 1), wall=lambda: time.time() + 7.0)
    await refused(authentication(1, 2), fast, "is off by")


async def test_frame_that_was_used_is_refused() -> None:
    client = authentication(1, 2)
    server = replace(authentication(2, 1), random_bytes=bytes)
    one, two = pipe()
    secure, accepted = await both(
        connect_secure(one, authentication=client),
        accept_secure(two, authentication=server),
    )
    await secure.close()
    await accepted.close()
    await refused(client, replace(server, memory=NonceMemory()), "was seen before")


# Over a tunnel


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        yield made


async def test_channel_over_a_tunnel_between_two_daemons(net: World) -> None:
    for name in ("alice", "bob"):
        net.start_daemon(name, "--hostname", name, "--public")
    bob = Address.parse(data_of(net.ctl("bob", "info"))["address"])
    data = bytes(range(256)) * 8192

    async def serve(accepting: DaemonClient) -> None:
        async with await accepting.bind(SECURE_PORT) as listener:
            listening.set()
            stream = await listener.accept()
            async with await accept_secure(stream) as secure:
                await secure.write(await secure.read_exactly(len(data)))
                assert await secure.read() == b""

    listening = asyncio.Event()
    async with (
        asyncio.timeout(60),
        await DaemonClient.connect(net.socket("alice")) as here,
        await DaemonClient.connect(net.socket("bob")) as there,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(serve(there))
        await listening.wait()
        stream = await here.dial(bob, SECURE_PORT)
        async with await connect_secure(stream) as secure:
            writing = asyncio.ensure_future(secure.write(data))
            assert await secure.read_exactly(len(data)) == data
            await writing
    with contextlib.suppress(Closed):
        await stream.close()
