"""A gateway before real daemons: TCP in, Pilot out, both ways, to every end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import http.client
import socket
from typing import TYPE_CHECKING

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.gateway import Gateway, GatewayConfig, parse_target
from pilotfleet.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    StorageError,
)
from pilotfleet.protocol.gateway import PortPair
from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from pilotfleet.client.streams import ClientStream

pytestmark = pytest.mark.timeout(120)

PORTS = (PortPair(0, 80), PortPair(0, 81))
LOCAL = GatewayConfig(subnet="127.4.0.0/16", ports=PORTS, half_closed_s=2.0)


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        made.start_daemon("server", "--hostname", "server", "--public")
        made.start_daemon("client", "--public")
        yield made


@pytest.fixture
async def gateway(net: World) -> AsyncIterator[Gateway]:
    async with Gateway(net.socket("client"), LOCAL) as made:
        yield made


@contextlib.asynccontextmanager
async def serving(
    net: World, handle: Callable[[ClientStream], Awaitable[None]], port: int = 80
) -> AsyncIterator[None]:
    """Run ``handle`` for each stream that comes to the server's port."""
    async with (
        await DaemonClient.connect(net.socket("server")) as client,
        await client.bind(port) as listener,
        asyncio.TaskGroup() as tasks,
    ):

        async def accept() -> None:
            async for stream in listener:
                tasks.create_task(one(stream))

        async def one(stream: ClientStream) -> None:
            async with stream:
                await handle(stream)

        accepting = tasks.create_task(accept())
        try:
            yield
        finally:
            accepting.cancel()


async def open_tcp(
    gateway: Gateway, port: int = 80
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    mapping = await gateway.map("server")
    (row,) = gateway.mappings()
    return await asyncio.open_connection(mapping.ip, row["ports"][str(port)])


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def answer_http(stream: ClientStream) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        request += await stream.read()
    body = b"hello " + request.split(b" ")[1]
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
    await stream.write(head.encode() + body)


def fetch(ip: str, port: int) -> bytes:
    connection = http.client.HTTPConnection(ip, port, timeout=30)
    try:
        connection.request("GET", "/path")
        return connection.getresponse().read()
    finally:
        connection.close()


async def test_web_server_behind_the_tunnel(net: World, gateway: Gateway) -> None:
    mapping = await gateway.map("server")
    assert mapping.ip == "127.4.0.1"
    port = gateway.mappings()[0]["ports"]["80"]
    async with serving(net, answer_http):
        for _ in range(3):
            body = await asyncio.to_thread(fetch, mapping.ip, port)
            assert body == b"hello /path"


async def test_large_transfer_both_ways(net: World, gateway: Gateway) -> None:
    data = bytes(range(256)) * 8192

    async def echo(stream: ClientStream) -> None:
        while piece := await stream.read():
            await stream.write(piece)

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    async with serving(net, echo):
        reader, writer = await open_tcp(gateway)
        _, echoed = await asyncio.gather(write(writer), reader.readexactly(len(data)))
        await close(writer)
    assert hashlib.sha256(echoed).digest() == hashlib.sha256(data).digest()


async def test_reader_that_stops_reading_stops_the_writer(
    net: World, gateway: Gateway
) -> None:
    written = 0
    stopped = asyncio.Event()

    async def pour(stream: ClientStream) -> None:
        nonlocal written
        # Nobody takes anything: sooner or later a write waits, and goes on waiting.
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(1.0):
                    await stream.write(b"x" * 65536)
                written += 65536
        stopped.set()

    async with serving(net, pour):
        _, writer = await open_tcp(gateway)
        async with asyncio.timeout(60):
            await stopped.wait()
        assert 0 < written < 64 << 20
        await close(writer)


async def test_client_that_ends_its_side_gets_the_answer(
    net: World, gateway: Gateway
) -> None:
    async def answer_late(stream: ClientStream) -> None:
        question = await stream.read_exactly(8)
        await stream.write(b"answer to " + question)

    async with serving(net, answer_late):
        reader, writer = await open_tcp(gateway)
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read() == b"answer to question"
        await close(writer)


async def test_peer_that_ends_its_side_goes_on_reading(
    net: World, gateway: Gateway
) -> None:
    """Both sides end; the TCP client sees the end of data as such, no reset."""

    async def speak_first(stream: ClientStream) -> None:
        await stream.write(b"banner")

    async with serving(net, speak_first):
        reader, writer = await open_tcp(gateway)
        assert await reader.read() == b"banner"
        await close(writer)


async def test_silent_half_is_closed_in_the_end(net: World, gateway: Gateway) -> None:
    ended = asyncio.Event()

    async def wait_for_end(stream: ClientStream) -> None:
        while await stream.read():
            pass
        ended.set()

    async with serving(net, wait_for_end):
        reader, writer = await open_tcp(gateway)
        writer.write(b"all I have")
        writer.write_eof()
        async with asyncio.timeout(20):
            await ended.wait()
        assert await reader.read() == b""
        await close(writer)


async def test_nothing_listens(gateway: Gateway) -> None:
    reader, writer = await open_tcp(gateway, 81)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    await close(writer)


async def test_unmap_ends_connections_and_frees_the_address(
    net: World, gateway: Gateway
) -> None:
    async def hold(stream: ClientStream) -> None:
        await stream.write(b"x")
        await stream.read()

    async with serving(net, hold):
        reader, writer = await open_tcp(gateway)
        port = gateway.mappings()[0]["ports"]["80"]
        assert await reader.readexactly(1) == b"x"
        assert (await gateway.unmap("127.4.0.1")).ip == "127.4.0.1"
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await close(writer)
    assert gateway.mappings() == []
    assert gateway.connections == 0
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.4.0.1", port)
    with pytest.raises(NotFound):
        await gateway.unmap("127.4.0.1")


async def test_connections_are_bounded(net: World) -> None:
    config = dataclasses.replace(LOCAL, max_connections=1)
    entered = asyncio.Event()

    async def hold(stream: ClientStream) -> None:
        entered.set()
        await stream.read()

    async with Gateway(net.socket("client"), config) as gateway, serving(net, hold):
        _, first = await open_tcp(gateway)
        await entered.wait()
        reader, second = await open_tcp(gateway)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert gateway.refused == 1
        await close(first)
        await close(second)


async def test_names_numbers_and_addresses_are_one_mapping(
    net: World, gateway: Gateway
) -> None:
    server = data_of(net.ctl("server", "info"))
    by_name = await gateway.map("server")
    assert await gateway.map(str(server["node_id"])) is by_name
    assert await gateway.map(server["address"], "127.4.7.7") is by_name
    with pytest.raises(NotFound, match='cannot resolve "nobody"'):
        await gateway.map("nobody")
    with pytest.raises(AlreadyExists):
        await gateway.map("99", "127.4.0.1")
    with pytest.raises(InvalidArgument, match="not in subnet"):
        await gateway.map("99", "127.5.0.1")
    assert (await gateway.unmap(server["address"])).ip == "127.4.0.1"


async def test_taken_ports_are_skipped_unless_all_are(net: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.4.0.1", 0))
        taken.listen()
        pair = PortPair(taken.getsockname()[1], 80)
        for ports, opened in (((pair, PORTS[1]), {"81"}), ((pair,), set())):
            config = GatewayConfig(subnet="127.4.0.0/16", ports=ports)
            async with Gateway(net.socket("client"), config) as gateway:
                if opened:
                    await gateway.map("7")
                    assert set(gateway.mappings()[0]["ports"]) == opened
                else:
                    with pytest.raises(AlreadyExists, match="no port of 127"):
                        await gateway.map("7")
                    assert gateway.mappings() == []


async def test_subnet_outside_loopback_without_the_right(
    net: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ``ip`` that refuses, as for everybody but root; then none at all."""
    program = tmp_path / "ip"
    program.write_text("#!/bin/sh\necho RTNETLINK: Operation not permitted >&2\nexit 2")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with Gateway(net.socket("client"), GatewayConfig()) as gateway:
        with pytest.raises(PermissionDenied, match="Operation not permitted") as caught:
            await gateway.map("7")
        assert "127.4.0.0/16" in str(caught.value.hint)
        program.unlink()
        with pytest.raises(StorageError, match="cannot run ip"):
            await gateway.map("7")
        assert gateway.mappings() == []


async def test_daemon_that_is_gone_costs_only_the_connection(net: World) -> None:
    net.start_daemon("brief", "--public")
    async with Gateway(net.socket("brief"), LOCAL) as gateway:
        await gateway.map("7")
        net.programs[-1].kill()
        port = gateway.mappings()[0]["ports"]["80"]
        reader, writer = await asyncio.open_connection("127.4.0.1", port)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await close(writer)
        assert len(gateway.mappings()) == 1


def test_targets() -> None:
    address = parse_target("0:0000.0000.0007")
    assert address == parse_target("7")
    assert parse_target("alice") is None
    assert parse_target("99999999999") is None
    with pytest.raises(InvalidArgument):
        parse_target("")
