"""The HTTP server, over a real socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pilotfleet.transport.http import HttpServer

if TYPE_CHECKING:
    import pytest


async def answer_nothing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def test_bad_requests_are_answered_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with HttpServer(answer_nothing, ("127.0.0.1", 0)) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"\x16\x03\x01\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert not caplog.records
