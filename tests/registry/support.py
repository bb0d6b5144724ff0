"""Shared by the tests of the registry's servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from typing import TYPE_CHECKING, Any

from pilotfleet.protocol.registry.framing import encode_json_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pilotfleet.protocol.address import Endpoint

TIMEOUT_S = 20.0

__all__ = ["TIMEOUT_S", "RawClient", "eventually", "raw_client"]


class RawClient:
    """Sends bytes of our choice and reads frames."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, message: Any) -> None:
        """Send a JSON message, or bytes as they are."""
        if not isinstance(message, bytes):
            message = encode_json_frame(json.dumps(message).encode())
        self.writer.write(message)

    async def receive_frame(self) -> bytes:
        """Read one frame."""
        async with asyncio.timeout(TIMEOUT_S):
            (length,) = struct.unpack("!I", await self.reader.readexactly(4))
            return await self.reader.readexactly(length)

    async def receive(self) -> dict[str, Any]:
        """Read one JSON message."""
        message = json.loads(await self.receive_frame())
        assert isinstance(message, dict)
        return message

    async def ask(self, message: Any) -> dict[str, Any]:
        """Send a message and read the reply."""
        self.send(message)
        return await self.receive()

    async def is_closed(self) -> bool:
        """Read on to the end of the connection."""
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read() == b""
        return True


@contextlib.asynccontextmanager
async def raw_client(endpoint: Endpoint) -> AsyncIterator[RawClient]:
    """Connect to a registry."""
    reader, writer = await asyncio.open_connection(*endpoint)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def eventually(is_true: Callable[[], bool]) -> None:
    """Let the event loop run until something holds."""
    async with asyncio.timeout(TIMEOUT_S):
        # What is waited for is a number in the server, which tells nobody.
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
