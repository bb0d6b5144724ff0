"""A daemon that does what a test says, frame by frame."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.protocol.ipc.framing import FrameDecoder, encode_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class ScriptedDaemon:
    """The daemon's end of one connection."""

    def __init__(self) -> None:
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self.connected = asyncio.Event()
        self._decoder = FrameDecoder()
        self._frames: deque[tuple[int, bytes]] = deque()

    def on_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer
        self.connected.set()

    async def expect(self, frame: str) -> None:
        """Read one frame and compare it."""
        assert (await self.receive()).hex() == frame

    async def receive(self) -> bytes:
        """Read one frame."""
        async with asyncio.timeout(10):
            await self.connected.wait()
            while not self._frames:
                data = await self.reader.read(65536)
                if not data:
                    return b""
                self._frames.extend(self._decoder.feed(data))
        command, payload = self._frames.popleft()
        return bytes([command]) + payload

    def send(self, *frames: str | bytes) -> None:
        """Send frames given as command byte and payload, in one write."""
        bodies = [bytes.fromhex(f) if isinstance(f, str) else f for f in frames]
        self.writer.write(b"".join(encode_frame(b[0], b[1:]) for b in bodies))


@contextlib.asynccontextmanager
async def scripted(path: Path) -> AsyncIterator[tuple[ScriptedDaemon, DaemonClient]]:
    """Connect a client to a scripted daemon."""
    daemon = ScriptedDaemon()
    server = await asyncio.start_unix_server(daemon.on_client, str(path))
    try:
        async with await DaemonClient.connect(path) as client:
            await daemon.connected.wait()
            yield daemon, client
        daemon.writer.close()
        with contextlib.suppress(OSError):
            await daemon.writer.wait_closed()
    finally:
        server.close()
        await server.wait_closed()
