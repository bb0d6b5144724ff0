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
from pilotfleet.protocol.registry.batches import MANY, size_problem, weight
from pilotfleet.protocol.registry.binary import BinaryType, encode_error
from pilotfleet.protocol.registry.framing import (
    BINARY_VERSION,
    encode_binary_frame,
    encode_json_frame,
)
from pilotfleet.protocol.registry.messages import (
    encode_reply,
    error_reply,
    text,
)
from pilotfleet.registry.quick import LONG, QUICK
from pilotfleet.registry.requestdecoder import FREE_BYTES, decode_bounded
from pilotfleet.transport.framed import FramedConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.limits import RateLimit
    from pilotfleet.registry.metrics import ServerStats
    from pilotfleet.registry.requestdecoder import BufferBudget, RequestDecoder
    from pilotfleet.registry.turns import Turns

__all__ = ["RequestHandler", "Session"]

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1_024
"""Requests of one connection that wait, before it is read no further."""
MAX_WAITING_BYTES: Final = 1024 * 1024
GROUP: Final = 64
"""Requests answered in one write; then, at the latest, others have their turn."""
GROUP_BYTES: Final = 64 * 1024
"""No further one is begun after so many bytes of them: one may stand for many."""
REPLY_BYTES: Final = 256 * 1024
"""Replies to long requests that may be held before the client must take them."""
TURN_S: Final = 0.005
"""How long a group goes on before others have their turn in the middle of it."""
MAX_DELAY_S: Final = 1.0
UNKNOWN_TYPE: Final = "unknown message type"
TOO_MANY_BATCHES: Final = "too many bytes of batches at once"
BATCH_RETRY_S: Final = 1.0
"""Told to those whose batch found no room."""
OTHER: Final = "other"


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


class Session:
    """One connection and the requests that wait on it."""

    __slots__ = (
        "_batches",
        "_charge",
        "_decoder",
        "_group_bytes",
        "_handler",
        "_is_stopping",
        "_limit",
        "_make_peer",
        "_on_closed",
        "_paused",
        "_peer",
        "_stats",
        "_turns",
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
        batches: BufferBudget,
        turns: Turns,
        stats: ServerStats,
        limit: RateLimit | None,
        make_peer: Callable[[FramedConnection], PeerContext],
        on_opened: Callable[[Session], None],
        on_closed: Callable[[Session], None],
    ) -> None:
        self._handler = handler
        self._decoder = decoder
        self._batches = batches
        self._turns = turns
        self._make_peer = make_peer
        self._stats = stats
        self._limit = limit
        self._on_closed = on_closed
        self._peer: PeerContext | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._group_bytes = 0
        """Size of the requests that are answered now."""
        self._charge = 0
        """Requests of the group that is answered now, as rates count them."""
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
        """Take no further requests; those that wait are still answered.

        Watches are answered at once, whether or not there is anything new.
        """
        self._is_stopping = True
        if self._peer is not None:
            self._peer.end_waits()
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
        held = self._waiting_bytes + self._group_bytes
        if held > FREE_BYTES:
            try:
                self._decoder.keep(held)
            except DecodeError as error:
                connection.abort(error)
                return
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
        if self._peer is not None:
            self._peer.is_gone = True
            self._peer.end_waits()
        # A request that was begun is finished all the same: its sender may
        # repeat it elsewhere, and half of it helps nobody.
        self._waiting.clear()
        self._waiting_bytes = 0
        # A closed session is a cycle of references, which the collector finds late,
        # if at all: up to 64 MiB must not wait for it.
        self._decoder.clear()
        self._decoder.keep(self._group_bytes)
        self._on_closed(self)

    async def _serve(self) -> None:
        """Answer all requests that wait; the owner awaits the task."""
        try:
            while self._waiting:
                await self._answer_group()
        except DecodeError as error:
            self.connection.abort(error)
        finally:
            self.task = None

    async def _answer_group(self) -> None:
        bodies = self._next_group()
        self._charge = len(bodies)
        replies: list[bytes] = []
        try:
            if self._decoder.is_binary:
                await self._answer_in_turn(
                    len(bodies),
                    lambda place: self._answer_binary(bodies[place]),
                    replies,
                )
            else:
                await self._answer_requests(bodies, replies)
        finally:
            self.connection.send(b"".join(replies))
            bodies.clear()
            self._group_bytes = 0
            if self._decoder.kept:
                self._decoder.keep(self._waiting_bytes)
        self._resume_if_room()
        await self.connection.drain()
        await self._slow_down(self._charge)

    def _next_group(self) -> list[bytes]:
        bodies: list[bytes] = []
        size = 0
        while self._waiting and len(bodies) < GROUP and size < GROUP_BYTES:
            bodies.append(self._waiting.popleft())
            size += len(bodies[-1])
        self._waiting_bytes -= size
        self._group_bytes = size
        return bodies

    async def _answer_requests(self, bodies: list[bytes], replies: list[bytes]) -> None:
        requests: list[dict[str, Any]] = []
        # The text only: an error that a variable of its own frame refers to would keep
        # the frame, and with it bodies of up to 64 MiB, until the collector comes.
        broken: str | None = None
        for body in bodies:
            try:
                requests.append(decode_bounded(body))
            except DecodeError as error:
                broken = str(error)
                break
        sized = list(zip(requests, map(len, bodies), strict=False))
        kinds = [text(request, "type") for request in requests]
        ready: dict[int, bytes] = {}
        if len(requests) > 1 and not QUICK.issuperset(kinds):
            # Whoever sends a request before the reply to another one does not
            # mind which is first. So their writes share a commit.
            short = [place for place, kind in enumerate(kinds) if kind not in LONG]
            ready = await self._answer_together(short, sized)

        async def answer(place: int) -> bytes:
            return ready.pop(place, None) or await self._answer_json(*sized[place])

        await self._answer_in_turn(len(sized), answer, replies)
        if broken is not None:
            raise DecodeError(broken)

    def _resume_if_room(self) -> None:
        if self._is_stopping:
            return
        few = len(self._waiting) < MAX_WAITING // 2
        if self._paused and few and self._waiting_bytes < MAX_WAITING_BYTES // 2:
            self._paused = False
            self.connection.resume()

    async def _answer_together(
        self, places: list[int], sized: list[tuple[dict[str, Any], int]]
    ) -> dict[int, bytes]:
        """Answer those at ``places`` together, until many bytes of replies are held."""
        ready: dict[int, bytes] = {}
        held = 0

        async def answer(place: int) -> None:
            nonlocal held
            # What need not wait is answered before the next one begins. So a group of
            # full mailboxes is not made whole before the first reply is sent.
            if held <= REPLY_BYTES:
                ready[place] = await self._answer_json(*sized[place])
                held += len(ready[place])

        await asyncio.gather(*map(answer, places))
        return ready

    async def _answer_in_turn(
        self,
        count: int,
        answer: Callable[[int], Awaitable[bytes]],
        replies: list[bytes],
    ) -> None:
        """Answer one request after the other, and send when many bytes are held."""
        begin = time.perf_counter()
        held = 0
        for place in range(count):
            if time.perf_counter() - begin > TURN_S:
                await asyncio.sleep(0)
                begin = time.perf_counter()
            reply = await answer(place)
            replies.append(reply)
            held += len(reply)
            # A group of full pages is 10 MiB, and thousands may be made at a time.
            if held > REPLY_BYTES:
                self.connection.send(b"".join(replies))
                replies.clear()
                held = 0
                await self.connection.drain()

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
            request = decode_bounded(payload)
        except DecodeError as error:
            reason = f"json decode: {error}"
            return encode_binary_frame(BinaryType.ERROR, encode_error(reason))
        if text(request, "type") == "subscribe_replication":
            reason = "replication not supported over binary protocol"
            return encode_binary_frame(BinaryType.ERROR, encode_error(reason))
        reply = encode_reply(await self._ask(request, len(payload)))
        return encode_binary_frame(BinaryType.JSON, reply)

    async def _answer_json(self, request: dict[str, Any], size: int) -> bytes:
        return encode_json_frame(encode_reply(await self._ask(request, size)))

    async def _ask(self, request: dict[str, Any], size: int) -> dict[str, Any]:
        kind = text(request, "type")
        if kind in LONG:
            await self._turns.take()
            assert self._peer is not None
            if self._peer.is_gone:
                return error_reply("the connection is closed")
        if kind not in MANY:
            return await self._ask_handler(request)
        many = weight(request)
        self._charge += many - 1
        if problem := size_problem(request, size):
            return error_reply(problem)
        if not self._batches.take(size):
            return error_reply(TOO_MANY_BATCHES, retry_after=BATCH_RETRY_S)
        self._stats.batched += many
        try:
            return await self._ask_handler(request)
        finally:
            self._batches.give(size)

    async def _ask_handler(self, request: dict[str, Any]) -> dict[str, Any]:
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
