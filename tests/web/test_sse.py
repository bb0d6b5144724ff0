"""Live streams: what they send, how many there are, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import Route

from pilotfleet.web import lifetime, sse
from pilotfleet.web.sse import event_stream
from tests.support.http import TIMEOUT_S, fetch, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest
    from starlette.requests import Request
    from starlette.responses import Response

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.web.server import HttpServer

TICK_S = 0.01


def streaming(produce: Callable[[], bytes]) -> HttpServer:
    async def stream(request: Request) -> Response:
        return event_stream(request, produce, TICK_S)

    return serve(Starlette(routes=[Route("/stream", stream)]))


@contextlib.asynccontextmanager
async def follow(
    endpoint: Endpoint, *, address: str = "127.0.0.1"
) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection(*endpoint)
    try:
        request = f"GET /stream HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n"
        writer.write(f"{request}\r\n".encode())
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(reader: asyncio.StreamReader, text: bytes) -> bytes:
    async with asyncio.timeout(TIMEOUT_S):
        return await reader.readuntil(text)


async def test_only_what_changed_is_sent() -> None:
    values = [b'{"n":1}']
    async with streaming(lambda: values[0]) as server, follow(server.address) as reader:
        first = await until(reader, b'data: {"n":1}\n\n')
        assert b"content-type: text/event-stream" in first
        assert b"retry: " in first
        assert b"event: figures\n" in first
        values[0] = b'{"n":2}'
        second = await until(reader, b'data: {"n":2}\n\n')
        assert b'{"n":1}' not in second


async def test_silence_is_broken_for_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.02)
    async with streaming(lambda: b"{}") as server, follow(server.address) as reader:
        await until(reader, b": still here\n\n")


async def test_a_stream_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "STREAM_S", 0.05)
    async with streaming(lambda: b"{}") as server:
        answer = await fetch(server.address, "/stream")
    assert answer.body.endswith(b"data: {}\n\n")


async def test_streams_are_bounded_in_all_and_by_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifetime, "MAX_STREAMS", 3)
    monkeypatch.setattr(lifetime, "MAX_STREAMS_PER_CLIENT", 1)
    async with streaming(lambda: b"{}") as server, contextlib.AsyncExitStack() as open_:
        for address in ("203.0.113.1", "127.0.0.1"):
            reader = await open_.enter_async_context(
                follow(server.address, address=address)
            )
            await until(reader, b"data: {}\n\n")
        elsewhere = {"X-Forwarded-For": "203.0.113.1"}
        answer = await fetch(server.address, "/stream", headers=elsewhere)
        assert answer.status == 503
        assert answer.json()["error"]["hint"]
        async with follow(server.address) as reader:
            await until(reader, b"data: {}\n\n")
            assert (await fetch(server.address, "/stream")).status == 503
        # The place of one that left is free again.
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                async with follow(server.address) as reader:
                    if b" 200 " in await reader.readline():
                        break


async def test_who_asks_for_the_headers_only_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifetime, "MAX_STREAMS", 0)
    async with streaming(lambda: b"{}") as server:
        answer = await fetch(server.address, "/stream", method="HEAD")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_a_client_that_leaves_frees_its_place() -> None:
    ticks = 0

    def produce() -> bytes:
        nonlocal ticks
        ticks += 1
        return b"%d" % ticks

    async with streaming(produce) as server:
        async with follow(server.address) as reader:
            await until(reader, b"data: 3\n\n")
        # Its task ends: production stands still.
        async with asyncio.timeout(TIMEOUT_S):
            before = -1
            while before != ticks:
                before = ticks
                await asyncio.sleep(3 * TICK_S)


async def test_the_server_stops_at_once_with_open_streams() -> None:
    async with contextlib.AsyncExitStack() as clients:
        async with streaming(lambda: b"{}") as server:
            readers = [
                await clients.enter_async_context(follow(server.address))
                for _ in range(50)
            ]
            for reader in readers:
                await until(reader, b"data: {}\n\n")
            began = time.monotonic()
        assert time.monotonic() - began < 1.0
        for reader in readers:
            async with asyncio.timeout(TIMEOUT_S):
                assert (await reader.read()).endswith(b"0\r\n\r\n")


async def test_a_fault_in_what_is_shown_ends_the_stream_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def produce() -> bytes:
        raise RuntimeError("a fault of ours")

    async with streaming(produce) as server:
        answer = await fetch(server.address, "/stream")
        assert b"fault of ours" not in answer.body
        assert (await fetch(server.address, "/nothing")).status == 404
