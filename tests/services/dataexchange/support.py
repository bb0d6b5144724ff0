"""A host that takes messages and files, and a sender made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.services.dataexchange import (
    DATA_EXCHANGE_PORT,
    Frame,
    FrameDecoder,
    FrameType,
    encode_frame,
)
from pilotfleet.protocol.services.filestream import (
    CHUNK_SIZE,
    FileStreamMessage,
    Init,
    decode_file_stream,
    encode_file_stream,
    transfer_id_of,
)
from pilotfleet.services.dataexchange.service import DataExchange, DataExchangeConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.stream import Stream
    from tests.node.support import World

LIMIT_S = 20.0
OUR_EVENTS = ("message.", "file.received", "inbox.", "received.", "dataexchange.")


@dataclass
class Exchange:
    """A sender, a receiver, and what the receiver reported."""

    sender: Agent
    receiver: Agent
    service: DataExchange
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def dial(self) -> AsyncIterator[Sender]:
        """Connect to the receiver's port 1001."""
        remote = SocketAddress(self.receiver.address, DATA_EXCHANGE_PORT)
        async with await self.sender.dial(remote, timeout=LIMIT_S) as stream:
            yield Sender(stream)

    async def ask(self, raw: bytes) -> Frame:
        """Send one frame on a connection of its own; return the answer."""
        async with self.dial() as sender:
            return await sender.ask(raw)

    async def say(self, raw: bytes) -> str:
        """Send one frame on a connection of its own; return the answer's text."""
        frame_type, payload = await self.ask(raw)
        assert frame_type == FrameType.TEXT
        return payload.decode()

    @property
    def inbox(self) -> list[Path]:
        """The receiver's messages in the order of their numbers."""
        return _numbered(self.receiver.home / "inbox")

    @property
    def received(self) -> list[Path]:
        """The receiver's files in the order of their numbers."""
        return _numbered(self.receiver.home / "received")

    @property
    def partial(self) -> Path:
        """The receiver's folder of unfinished files."""
        return self.receiver.home / "received" / ".partial"


class Sender:
    """One connection to port 1001."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []

    async def send(self, raw: bytes) -> None:
        """Send bytes."""
        await self.stream.write(raw)

    async def answer(self) -> Frame:
        """Return the next answer."""
        async with asyncio.timeout(LIMIT_S):
            while not self._frames:
                data = await self.stream.read()
                assert data, "the receiver ended the connection"
                self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    async def ask(self, raw: bytes) -> Frame:
        """Send bytes; return the next answer."""
        await self.send(raw)
        return await self.answer()

    async def send_message(self, *messages: FileStreamMessage) -> None:
        """Send file stream messages in one write."""
        await self.send(b"".join(map(frame_of, messages)))

    async def next_message(self) -> FileStreamMessage:
        """Return the next answer, which is a file stream message."""
        frame_type, payload = await self.answer()
        assert frame_type == FrameType.FILESTREAM
        return decode_file_stream(payload)

    async def exchange(self, *messages: FileStreamMessage) -> FileStreamMessage:
        """Send file stream messages; return the next answer."""
        await self.send_message(*messages)
        return await self.next_message()

    async def is_ended(self) -> bool:
        """Wait for the connection's end; return whether nothing came before."""
        async with asyncio.timeout(LIMIT_S):
            return await self.stream.read() == b"" and not self._frames


def frame_of(message: FileStreamMessage) -> bytes:
    """Return the frame of a file stream message."""
    return encode_frame(FrameType.FILESTREAM, encode_file_stream(message))


def init_of(data: bytes, name: bytes = b"file.bin") -> Init:
    """Return the INIT for a file."""
    digest = hashlib.sha256(data).digest()
    return Init(transfer_id_of(digest), len(data), digest, CHUNK_SIZE, name)


@contextlib.asynccontextmanager
async def open_exchange(
    world: World, config: DataExchangeConfig | None = None
) -> AsyncIterator[Exchange]:
    """Yield an exchange between two hosts."""
    service = DataExchange(config)
    target = world.host("target", "receiver")
    target.services[DATA_EXCHANGE_PORT] = service.handle
    async with world.host("source", "sender") as source, target:
        made = Exchange(source.agents["sender"], target.agents["receiver"], service)

        def note(agent: Agent, event: str, data: dict[str, Any]) -> None:
            if event.startswith(OUR_EVENTS):
                made.events.append((event, data))

        target.event_sink = note
        yield made


def _numbered(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.is_file()]
    return sorted(files, key=lambda path: path.stem[-6:])
