"""Data exchange on port 1001: messages and files from peers (services.md 4).

One :class:`DataExchange` serves all agents of a host; an agent that receives
nothing has nothing here. Frames of a connection are answered one after the other,
each when what it brought is on the disk (see :mod:`.mailbox`).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec

from pilotfleet.errors import DecodeError, PilotError, StorageError
from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.services.dataexchange import (
    MAX_FRAME,
    STORED_TYPES,
    Frame,
    FrameDecoder,
    FrameType,
    Tags,
    TraceAnswer,
    ack_text,
    decode_file,
    decode_tagged,
    decode_trace,
    duplicate_text,
    encode_frame,
    encode_trace_answer,
    failure_text,
    type_name,
    unsupported_text,
)
from pilotfleet.protocol.services.filestream import encode_file_stream
from pilotfleet.services.dataexchange.filereceiver import FileReceiver
from pilotfleet.services.dataexchange.incomingfile import HeldBytes
from pilotfleet.services.dataexchange.mailbox import (
    InboxMessage,
    Mailbox,
    MailboxConfig,
)
from pilotfleet.services.dataexchange.receivebudget import ReceiveBudget
from pilotfleet.services.dataexchange.recentmessages import Outcome, RecentMessages
from pilotfleet.services.dataexchange.storedfiles import FolderFull
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.stream import Stream

__all__ = ["DataExchange", "DataExchangeConfig"]

logger = logging.getLogger(__name__)

READ_SIZE: Final = 1 << 20
"""Takes whatever has arrived, so that it is written to the disk together."""
LARGE: Final = 4 << 20
"""A payload over this is stored beside one other of the kind at most: making a
message's file takes several times its length of memory."""
HASHED_INLINE: Final = 64 << 10
_NO_TAGS: Final = Tags()

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class DataExchangeConfig:
    """What the service takes."""

    max_frame: int = MAX_FRAME
    """Longest payload; a longer one ends the connection."""
    idle_s: float = 120.0
    """A connection on which no frame is completed for this long is closed."""
    memory_bytes: int = 256 << 20
    """Unfinished frames of all connections together; more lets senders wait less
    when many send large frames at once."""
    connections_per_sender: int = 64
    """To one agent at a time; more are broken off. What a sender has sent and nobody
    reads for want of memory waits in its streams' windows, 2.4 MB each."""
    mailbox: MailboxConfig = field(default_factory=MailboxConfig)


class _Delivery(NamedTuple):
    """A frame out of its wrapper."""

    type: int
    payload: bytes
    tags: Tags


class _Desk:
    """What one agent receives with."""

    __slots__ = ("connections", "files", "mailbox")

    def __init__(self, mailbox: Mailbox, files: FileReceiver) -> None:
        self.mailbox = mailbox
        self.files = files
        self.connections: Counter[int] = Counter()
        """Open connections by the sender's node."""


class DataExchange:
    """Port 1001 of all agents of a host."""

    def __init__(
        self,
        config: DataExchangeConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.config = config or DataExchangeConfig()
        self.budget = ReceiveBudget(self.config.memory_bytes)
        self.recent = RecentMessages(clock)
        self.large = asyncio.Semaphore(2)
        """Taken by who stores a large payload."""
        self.wall = wall
        """Nanoseconds since 1970."""
        self._held = HeldBytes()
        self._numbers = itertools.count(1)
        self._desks: dict[str, _Desk] = {}

    async def handle(self, agent: Agent, stream: Stream) -> None:
        """Serve one connection until it ends."""
        desk, sender = self._desk(agent), stream.remote.address.node
        if desk.connections[sender] >= self.config.connections_per_sender:
            stream.abort()
            return
        desk.connections[sender] += 1
        try:
            await _Connection(self, desk, agent, stream).serve()
        finally:
            desk.connections[sender] -= 1
            if not desk.connections[sender]:
                del desk.connections[sender]

    def extensions(self) -> dict[str, Callable[..., Awaitable[dict[str, Any]]]]:
        """Return the daemon's extension operations of this service."""
        return {"mailbox": self._mailbox_request}

    def _desk(self, agent: Agent) -> _Desk:
        desk = self._desks.get(agent.name)
        if desk is None:
            mailbox = Mailbox(
                agent.home,
                self.config.mailbox,
                next_number=self._numbers.__next__,
                clock=self.wall,
            )
            files = FileReceiver(mailbox, agent.report, self._held)
            desk = self._desks[agent.name] = _Desk(mailbox, files)
        return desk

    async def _mailbox_request(
        self, session: object, agent: Agent, request: dict[str, Any]
    ) -> dict[str, Any]:
        """Serve the extension operation ``mailbox``: where an agent's files are."""
        mailbox = self._desk(agent).mailbox
        return {"inbox": str(mailbox.inbox), "received": str(mailbox.received.path)}


class _Connection:
    """One sender's connection: its frames in, their answers out, in order."""

    __slots__ = ("_agent", "_desk", "_files", "_sender", "_service", "_stream")

    def __init__(
        self, service: DataExchange, desk: _Desk, agent: Agent, stream: Stream
    ) -> None:
        self._service = service
        self._desk = desk
        self._agent = agent
        self._stream = stream
        self._files = desk.files.open_session()
        self._sender = str(Address(BACKBONE, stream.remote.address.node))

    async def serve(self) -> None:
        """Take frames until the sender ends, breaks the protocol or falls idle."""
        decoder = FrameDecoder(self._service.config.max_frame)
        try:
            while frames := await self._next_frames(decoder):
                await self._serve_frames(frames)
                # While the next are awaited, these need not be kept.
                frames = []
        except DecodeError as error:
            # The connection ends without an answer (services.md 4.1, 4.2, 4.5).
            logger.debug("data exchange with %s: %s", self._sender, error)
        finally:
            self._files.close()
            self._service.budget.release(self)

    async def _next_frames(self, decoder: FrameDecoder) -> list[Frame]:
        """Return the frames that are complete, none at the end."""
        budget = self._service.budget
        async with asyncio.timeout(self._service.config.idle_s):
            await budget.hold(self, decoder.buffered)
            # Frames that came before a bad one are served; here the bad one shows.
            decoder.feed(b"")
            while data := await self._stream.read(READ_SIZE):
                frames = decoder.feed(data)
                size = decoder.buffered + sum(len(frame.payload) for frame in frames)
                await budget.hold(self, size)
                if frames:
                    return frames
        return []

    async def _serve_frames(self, frames: Iterable[Frame]) -> None:
        for is_file_stream, group in itertools.groupby(
            _unwrap(frames), key=lambda delivery: delivery.type == FrameType.FILESTREAM
        ):
            if is_file_stream:
                await self._serve_file_stream(group)
                continue
            for delivery in group:
                await self._serve_delivery(delivery)

    async def _serve_file_stream(self, group: Iterator[_Delivery]) -> None:
        answers = await self._files.receive([each.payload for each in group])
        if answers:
            kind = FrameType.FILESTREAM
            frames = (encode_frame(kind, encode_file_stream(each)) for each in answers)
            await self._send(b"".join(frames), kind)

    async def _serve_delivery(self, delivery: _Delivery) -> None:
        if delivery.type == FrameType.TRACE:
            await self._serve_trace(delivery)
            return
        if delivery.type not in STORED_TYPES:
            text = unsupported_text(delivery.type)
        elif delivery.tags.message_id:
            text = await self._store_once(delivery)
        else:
            text = (await self._store(delivery)).answer
        await self._send(encode_frame(FrameType.TEXT, text.encode()), delivery.type)

    async def _serve_trace(self, delivery: _Delivery) -> None:
        wall = self._service.wall
        received_at = wall()
        try:
            trace = decode_trace(delivery.payload)
        except DecodeError as error:
            text = f"ERR trace parse: {error}"
            await self._send(encode_frame(FrameType.TEXT, text.encode()), delivery.type)
            return
        # As the official daemon does it: whatever is inside goes to the inbox.
        inner = _Delivery(trace.inner_type, trace.payload, delivery.tags)
        outcome = await self._keep_message(inner)
        written_at = wall()
        answer = TraceAnswer(
            ack_sent_at_ns=wall(),
            inbox_written_at_ns=written_at,
            inner_ack=outcome.answer,
            received_at_ns=received_at,
            sent_at_ns=trace.sent_at_ns,
        )
        await self._send(
            encode_frame(FrameType.JSON, encode_trace_answer(answer)), delivery.type
        )

    async def _store_once(self, delivery: _Delivery) -> str:
        key = await _digest(self._sender, delivery)
        answer, is_first = await self._service.recent.once(
            self._agent.name, key, lambda: self._store(delivery)
        )
        return answer if is_first else duplicate_text(answer)

    async def _store(self, delivery: _Delivery) -> Outcome:
        if delivery.type == FrameType.FILE:
            return await self._keep_file(delivery)
        return await self._keep_message(delivery)

    async def _keep_message(self, delivery: _Delivery) -> Outcome:
        kind, payload, tags = delivery
        message = InboxMessage(kind, self._sender, payload, tags)
        answer = ack_text(kind, len(payload))
        facts = {"type": type_name(kind), "from": self._sender}
        try:
            await self._in_thread(payload, self._desk.mailbox.save_message, message)
        except StorageError as error:
            return self._refuse(delivery, error, "inbox.full", facts)
        ids = {"message_id": tags.message_id, "reply_to": tags.reply_to}
        facts.update({key: value for key, value in ids.items() if value})
        self._agent.report("message.received", size=len(payload), **facts)
        return Outcome(True, answer)

    async def _keep_file(self, delivery: _Delivery) -> Outcome:
        name, data = decode_file(delivery.payload)
        answer = ack_text(delivery.type, len(data))
        if name is None:
            return Outcome(True, answer)
        try:
            path = await self._in_thread(data, self._desk.mailbox.save_file, name, data)
        except StorageError as error:
            facts = {"type": type_name(delivery.type)}
            return self._refuse(delivery, error, "received.full", facts)
        self._agent.report(
            "file.received", filename=name, size=len(data), path=str(path)
        )
        return Outcome(True, answer)

    async def _in_thread(
        self,
        payload: bytes | memoryview,
        save: Callable[P, Path],
        *args: P.args,
        **kw: P.kwargs,
    ) -> Path:
        if len(payload) <= LARGE:
            return await run_blocking(save, *args, **kw)
        async with self._service.large:
            return await run_blocking(save, *args, **kw)

    def _refuse(
        self,
        delivery: _Delivery,
        error: StorageError,
        event: str,
        facts: dict[str, str],
    ) -> Outcome:
        size = len(delivery.payload)
        if isinstance(error, FolderFull):
            self._agent.report(
                event, frame_bytes=size, max_bytes=error.max_bytes, **facts
            )
        logger.warning(
            "%s of %d bytes from %s to %s is not stored: %s",
            type_name(delivery.type),
            size,
            self._sender,
            self._agent.name,
            error,
        )
        return Outcome(False, failure_text(delivery.type, str(error)))

    async def _send(self, frames: bytes, frame_type: int) -> None:
        try:
            # A sender that takes no answers must not hold its connection for ever.
            async with asyncio.timeout(self._service.config.idle_s):
                await self._stream.write(frames)
        except (PilotError, TimeoutError) as error:
            self._agent.report(
                "dataexchange.ack_failed",
                remote=str(self._stream.remote),
                frame_type=type_name(frame_type),
                error=str(error) or "timeout",
            )
            raise


def _unwrap(frames: Iterable[Frame]) -> Iterator[_Delivery]:
    for frame_type, payload in frames:
        if frame_type != FrameType.TAGGED:
            yield _Delivery(frame_type, payload, _NO_TAGS)
            continue
        tagged = decode_tagged(payload)
        yield _Delivery(tagged.inner_type, tagged.payload, tagged.tags)


async def _digest(sender: str, delivery: _Delivery) -> bytes:
    """Return what two deliveries of the same message have in common."""
    tags = delivery.tags
    digest = hashlib.sha256(
        f"{sender} {delivery.type} {tags.message_id} {tags.reply_to} ".encode()
    )
    if len(delivery.payload) <= HASHED_INLINE:
        digest.update(delivery.payload)
    else:
        await run_blocking(digest.update, delivery.payload)
    return digest.digest()
