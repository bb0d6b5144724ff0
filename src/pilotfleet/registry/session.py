"""One connection to the registry: requests in, replies out, in order.

A session has a task only while requests wait. Requests that arrive together
are answered together, in one write. While too many wait, the connection is not
read, so a client that pipelines is slowed down by TCP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.errors import DecodeError, PilotError
from pilotfleet.protocol.registry.binary import BinaryType, encode_error
from pilotfleet.protocol.registry.framing import (
    BINARY_PREAMBLE,
    BINARY_VERSION,
    JsonFrameDecoder,
    encode_binary_frame,
    encode_json_frame,
    is_binary_preamble,
)
from pilotfleet.protocol.registry.messages import (
    decode_request,
    encode_reply,
    error_reply,
    text,
)
from pilotfleet.transport.framed import FramedConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.limits import RateLimit
    from pilotfleet.registry.metrics import ServerStats

__all__ = ["BufferBudget", "RequestDecoder", "RequestHandler", "Session"]

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1_024
"""Requests of one connection that wait, before it is read no further."""
MAX_WAITING_BYTES: Final = 1024 * 1024
BATCH: Final = 64
"""Requests answered before other connections have their turn."""
FREE_BYTES: Final = 64 * 1024
"""What every connection may buffer, even if the common budget is used up."""
MAX_DELAY_S: Final = 1.0
TLS_START: Final = b"\x16\x03"
"""A TLS handshake; as the length of a message it would be far too much."""
UNKNOWN_TYPE: Final = "unknown message type"
OTHER: Final = "other"
QUICK: Final = frozenset(
    {
        "authorize_task_submit",
        "beacon_list",
        "check_trust",
        "get_network_policy",
        "get_polo_score",
        "heartbeat",
        "list_networks",
        "lookup",
        "resolve",
        "resolve_hostname",
        "search",
    }
)
"""Requests that never wait for the store, so a task each would be a waste."""


class RequestHandler(Protocol):
    """What a session needs of the registry service."""

    async def handle(
        self, request: dict[str, Any], peer: PeerContext
    ) -> dict[str, Any]:
        """Answer one JSON message."""

    async def handle_binary(
        self, kind: int, payload: bytes, peer: PeerContext
    ) -> tuple[int, bytes]:
        """Answer one binary message other than a JSON passthrough."""


class BufferBudget:
    """Bounds what all connections buffer together.

    One message may have 64 MiB, and nobody is known before his first message
    is complete. Without a common bound a few hundred connections that stop in
    the middle of one could take all memory.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def change(self, old: int, new: int) -> None:
        """Note that a connection buffers ``new`` instead of ``old`` bytes.

        Raises:
            DecodeError: It has grown, and there is no room.
        """
        self.used += new - old
        if new > max(old, FREE_BYTES) and self.used > self.limit:
            raise DecodeError("too many bytes of incomplete messages")


class RequestDecoder:
    """Cuts frames of either mode, which the first bytes decide (section 2.2)."""

    __slots__ = ("_budget", "_decoder", "_held", "is_binary", "start", "version")

    def __init__(self, limit: int, budget: BufferBudget) -> None:
        self._decoder = JsonFrameDecoder(limit)
        self._budget = budget
        self._held = 0
        self.start: bytes | None = b""
        """What came first, until the mode is known; then None."""
        self.is_binary = False
        self.version = BINARY_VERSION

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes and return the frames that are complete now.

        A frame of binary mode begins with its type.

        Raises:
            DecodeError: Too long, empty, or no room for it.
        """
        if self.start is not None:
            data = self._choose_mode(self.start + data)
        # A client with another version is told, and not listened to.
        if self.start is not None or self.version != BINARY_VERSION:
            return [b""] if self.start is None else []
        frames = self._decoder.feed(data)
        self.hold(self._decoder.buffered_bytes)
        if self.is_binary and not all(frames):
            raise DecodeError("binary frame without a type")
        return frames

    def hold(self, size: int) -> None:
        """Tell the budget how much is buffered now."""
        old, self._held = self._held, size
        self._budget.change(old, size)

    def clear(self) -> None:
        """Forget what is buffered: the connection is over."""
        self._decoder.clear()
        self.hold(0)

    def _choose_mode(self, start: bytes) -> bytes:
        if len(start) < 4 or (is_binary_preamble(start) and len(start) < 5):
            self.start = start
            return b""
        self.start = None
        if not is_binary_preamble(start):
            if start.startswith(TLS_START):
                raise DecodeError("a client with TLS at a registry without; see --tls")
            return start
        self.is_binary = True
        self.version = start[4]
        return start[len(BINARY_PREAMBLE) :]


class Session:
    """One connection and the requests that wait on it."""

    __slots__ = (
        "_decoder",
        "_handler",
        "_is_stopping",
        "_limit",
        "_make_peer",
        "_on_closed",
        "_paused",
        "_peer",
        "_stats",
        "_waiting",
        "_waiting_bytes",
        "active_at",
        "connection",
        "task",
    )

    def __init__(
        self,
        handler: RequestHandler,
        decoder: RequestDecoder,
        *,
        stats: ServerStats,
        limit: RateLimit | None,
        make_peer: Callable[[FramedConnection], PeerContext],
        on_opened: Callable[[Session], None],
        on_closed: Callable[[Session], None],
    ) -> None:
        self._handler = handler
        self._decoder = decoder
        self._make_peer = make_peer
        self._stats = stats
        self._limit = limit
        self._on_closed = on_closed
        self._peer: PeerContext | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._is_stopping = False
        self.task: asyncio.Task[None] | None = None
        self.active_at = asyncio.get_running_loop().time()
        """Loop time when the last whole request came."""
        self.connection = FramedConnection(
            decoder,
            on_frames=self._on_frames,
            on_closed=self._on_connection_closed,
            on_opened=lambda _: on_opened(self),
        )

    def stop_reading(self) -> None:
        """Take no further requests; those that wait are still answered."""
        self._is_stopping = True
        self.connection.pause()

    def _on_frames(self, connection: FramedConnection, frames: list[bytes]) -> None:
        if self._peer is None:
            self._peer = self._make_peer(connection)
        if self._is_stopping:
            # TLS may hand on what it had received before the pause. The stop
            # waits for the tasks that it has seen, and must see no new ones.
            return
        self.active_at = connection.received_at
        self._waiting.extend(frames)
        self._waiting_bytes += sum(map(len, frames))
        full = len(self._waiting) > MAX_WAITING
        if (full or self._waiting_bytes > MAX_WAITING_BYTES) and not self._paused:
            self._paused = True
            connection.pause()
        if self.task is None:
            self.task = asyncio.create_task(self._serve(), name="registry-session")

    def _on_connection_closed(
        self, connection: FramedConnection, error: PilotError
    ) -> None:
        if isinstance(error, DecodeError):
            self._stats.garbage += 1
            logger.debug("%s closed: %s", connection.peer[0], error)
        # A request that was begun is finished all the same: its sender may
        # repeat it elsewhere, and half of it helps nobody.
        self._waiting.clear()
        self._waiting_bytes = 0
        # A closed session is a cycle of references, which the collector finds late,
        # if at all: up to 64 MiB must not wait for it.
        self._decoder.clear()
        self._on_closed(self)

    async def _serve(self) -> None:
        """Answer all requests that wait; the owner awaits the task."""
        try:
            while self._waiting:
                await self._answer_batch()
        except DecodeError as error:
            self.connection.abort(error)
        finally:
            self.task = None

    async def _answer_batch(self) -> None:
        bodies = [
            self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH))
        ]
        self._waiting_bytes -= sum(map(len, bodies))
        replies: list[bytes] = []
        try:
            if self._decoder.is_binary:
                replies.extend([await self._answer_binary(body) for body in bodies])
            else:
                await self._answer_requests(bodies, replies)
        finally:
            self.connection.send(b"".join(replies))
        self._resume_if_room()
        await self.connection.drain()
        await self._slow_down(len(bodies))

    async def _answer_requests(self, bodies: list[bytes], replies: list[bytes]) -> None:
        requests: list[dict[str, Any]] = []
        # The text only: an error that a variable of its own frame refers to would keep
        # the frame, and with it bodies of up to 64 MiB, until the collector comes.
        broken: str | None = None
        for body in bodies:
            try:
                requests.append(decode_request(body))
            except DecodeError as error:
                broken = str(error)
                break
        if len(requests) == 1 or all(text(r, "type") in QUICK for r in requests):
            replies += [await self._answer_json(request) for request in requests]
        else:
            # Whoever sends a request before the reply to another one does not
            # mind which is first. So their writes share a commit.
            answers = (self._answer_json(request) for request in requests)
            replies += await asyncio.gather(*answers)
        if broken is not None:
            raise DecodeError(broken)

    def _resume_if_room(self) -> None:
        if self._is_stopping:
            return
        few = len(self._waiting) < MAX_WAITING // 2
        if self._paused and few and self._waiting_bytes < MAX_WAITING_BYTES // 2:
            self._paused = False
            self.connection.resume()

    async def _slow_down(self, count: int) -> None:
        wait = 0.0
        if self._limit is not None:
            now = asyncio.get_running_loop().time()
            wait = self._limit.charge(self.connection.peer[0], count, now)
        if wait:
            self._stats.rate_limited += 1
            await asyncio.sleep(min(wait, MAX_DELAY_S))
        elif self._waiting:
            await asyncio.sleep(0)

    async def _answer_binary(self, body: bytes) -> bytes:
        if self._decoder.version != BINARY_VERSION:
            reason = f"unsupported wire version {self._decoder.version}"
            self.connection.send(
                encode_binary_frame(BinaryType.ERROR, encode_error(reason))
            )
            self.connection.close(DecodeError(reason))
            return b""
        kind, payload = body[0], body[1:]
        if kind == BinaryType.JSON:
            return await self._answer_passthrough(payload)
        begin = time.perf_counter()
        assert self._peer is not None
        try:
            kind, payload = await self._handler.handle_binary(kind, payload, self._peer)
        # The boundary around the service: a bug there costs one reply.
        except Exception:
            logger.exception("binary request of type 0x%02x failed", kind)
            kind, payload = BinaryType.ERROR, encode_error("request failed")
        self._stats.record(
            "binary",
            time.perf_counter() - begin,
            failed=kind == BinaryType.ERROR,
        )
        return encode_binary_frame(kind, payload)

    async def _answer_passthrough(self, payload: bytes) -> bytes:
        try:
            request = decode_request(payload)
        except DecodeError as error:
            reason = f"json decode: {error}"
            return encode_binary_frame(BinaryType.ERROR, encode_error(reason))
        if text(request, "type") == "subscribe_replication":
            reason = "replication not supported over binary protocol"
            return encode_binary_frame(BinaryType.ERROR, encode_error(reason))
        reply = encode_reply(await self._ask(request))
        return encode_binary_frame(BinaryType.JSON, reply)

    async def _answer_json(self, request: dict[str, Any]) -> bytes:
        return encode_json_frame(encode_reply(await self._ask(request)))

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        begin = time.perf_counter()
        kind = text(request, "type")
        assert self._peer is not None
        try:
            reply = await self._handler.handle(request, self._peer)
        # The boundary around the service: a bug there costs one reply.
        except Exception:
            logger.exception("request %.40r failed", kind)
            reply = error_reply("request failed")
        error = reply.get("error")
        failed = error is not None
        # Names that only the sender knows must not fill the table of types.
        if not kind or (failed and str(error).startswith(UNKNOWN_TYPE)):
            kind = OTHER
        self._stats.record(kind, time.perf_counter() - begin, failed=failed)
        return reply
