"""The HTTP server, over a real socket."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import AlreadyExists
from pilotfleet.web import connection
from pilotfleet.web.server import MAX_HEADERS, HttpServer
from tests.support.http import LOOPBACK, TIMEOUT_S, fetch, serve

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


async def answer_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def answer_much(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(2_000):
        body = {"type": "http.response.body", "body": bytes(10_000)}
        await send({**body, "more_body": True})
    await send({"type": "http.response.body"})


async def until_closed(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        try:
            while await reader.read(1_000_000):
                pass
        except ConnectionError:
            pass


async def test_bad_requests_are_answered_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(answer_nothing) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"\x16\x03\x01\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert not caplog.records


async def test_a_taken_port_is_named() -> None:
    async with serve(answer_nothing) as server:
        with pytest.raises(AlreadyExists, match=f"tcp port {server.address[1]} "):
            await HttpServer(answer_nothing, server.address).__aenter__()


async def test_headers_without_end_are_refused() -> None:
    async with serve(answer_nothing) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET / HTTP/1.1\r\nX-Big: " + b"x" * MAX_HEADERS)
        async with asyncio.timeout(TIMEOUT_S):
            assert b" 400 " in await reader.readline()
        writer.close()
        assert (await fetch(server.address, "/")).status == 204


async def test_several_requests_go_over_one_connection() -> None:
    async with serve(answer_nothing) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(TIMEOUT_S):
                assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
async def test_a_request_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, before: bytes, sent: bytes
) -> None:
    """Slow clients must not keep their places; an idle one may wait after an answer."""
    monkeypatch.setattr(connection, "REQUEST_S", 0.05)
    monkeypatch.setattr("pilotfleet.web.server.KEEP_ALIVE_S", 0.05)
    async with serve(answer_nothing) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(before)
        if before:
            async with asyncio.timeout(TIMEOUT_S):
                await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await until_closed(reader)
        writer.close()


async def test_a_client_that_reads_nothing_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "WRITE_S", 0.05)
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_much(scope, receive, send)
        ended.set()

    async with serve(app) as server:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, server.address)
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            async with asyncio.timeout(TIMEOUT_S):
                await ended.wait()
        # Others are served all the while.
        assert (await fetch(server.address, "/")).status == 200


async def test_a_crowd_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CROWD", 2)
    async with serve(answer_nothing) as server:
        kept = [await asyncio.open_connection(*server.address) for _ in range(2)]
        reader, writer = await asyncio.open_connection(*server.address)
        await until_closed(reader)
        writer.close()
        for _, other in kept:
            other.close()
            await other.wait_closed()
        assert (await fetch(server.address, "/")).status == 204


async def test_one_address_elsewhere_cannot_keep_all_others_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "CROWD_PER_CLIENT", 2)
    elsewhere = ("127.0.0.9", 0)
    async with serve(answer_nothing) as server:
        there = server.address
        kept = [
            await asyncio.open_connection(*there, local_addr=elsewhere)
            for _ in range(2)
        ]
        reader, writer = await asyncio.open_connection(*there, local_addr=elsewhere)
        await until_closed(reader)
        assert (await fetch(there, "/")).status == 204
        for other in (writer, *(writer for _, writer in kept)):
            other.close()


async def test_it_stops_in_good_order_with_idle_connections() -> None:
    async with serve(answer_nothing) as server:
        pairs: list[Any] = [
            await asyncio.open_connection(*server.address) for _ in range(5)
        ]
        began = time.monotonic()
    assert time.monotonic() - began < 1.0
    for _, writer in pairs:
        writer.close()


async def test_the_default_address_is_the_one_that_is_bound() -> None:
    server = HttpServer(answer_nothing, LOOPBACK)
    assert server.address == LOOPBACK
    async with server:
        assert server.address[1] != 0
