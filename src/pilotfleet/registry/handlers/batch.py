"""Many requests in one message (extension ``batch``, docs/reference/extensions.md).

A batch is worked on by a few workers that take its requests one after the other, so
those that wait for the store share its commits. What never waits has one worker:
several would only make each turn of the event loop longer. Signatures that are new are
verified before that, in threads. All that runs on the event loop asks for its turn
first, so a search on another connection waits for milliseconds, however much is in the
batches.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.batches import (
    batched_requests,
    heartbeat_rows,
    is_batched,
)
from pilotfleet.protocol.registry.messages import encode_reply, error_reply, text
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.handlers.nodes import check_key_life
from pilotfleet.registry.quick import QUICK

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from pilotfleet.protocol.registry.messages import Reply, Request
    from pilotfleet.protocol.registry.signatures import SignedText
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler

__all__ = ["HANDLERS"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

WORKERS: Final = 64
"""Requests of one batch that may wait for the store together, and share a commit."""
MAX_REPLY_BYTES: Final = 16 * 1024 * 1024
"""Of all replies of a batch; then the rest is refused. A thousand full pages of a
search would be 200 MB."""
MAX_TYPE_SHOWN: Final = 64
REGISTER: Final = "register"
ROWS_A_TURN: Final = 64
"""Heartbeats that are looked at before others have their turn: a quarter of a
millisecond. Asking for each of them would take as long as the heartbeat."""


def batch(
    desk: Desk, request: Request, peer: PeerContext
) -> Coroutine[Any, Any, Reply]:
    """Answer each request as if it had come alone."""
    try:
        requests = batched_requests(request)
    except DecodeError as error:
        raise Refused(str(error)) from None
    return _answer_all(desk, requests, peer)


def heartbeats(
    desk: Desk, request: Request, _: PeerContext
) -> Coroutine[Any, Any, Reply]:
    """Note that many nodes live."""
    try:
        rows = heartbeat_rows(request)
    except DecodeError as error:
        raise Refused(str(error)) from None
    return _beat_all(desk, rows)


async def _answer_all(desk: Desk, requests: Sequence[Any], peer: PeerContext) -> Reply:
    async with desk.batches:
        await desk.verify_ahead(await _signatures(desk, requests, peer))
        work = _Batch(desk, requests, peer)
        return {"type": "batch_ok", "replies": await work.run()}


class _Batch:
    """The requests of one batch and the replies so far, already encoded."""

    __slots__ = ("_desk", "_peer", "_replies", "_requests", "_size")

    def __init__(self, desk: Desk, requests: Sequence[Any], peer: PeerContext) -> None:
        self._desk = desk
        self._peer = peer
        self._requests = requests
        self._replies: list[msgspec.Raw] = [msgspec.Raw()] * len(requests)
        self._size = 0

    async def run(self) -> list[msgspec.Raw]:
        """Answer all; return the replies in the order of the requests."""
        quick, slow = self._divided()
        # Those of the slow ones share it: each takes what the others have left.
        left = iter(slow)
        async with asyncio.TaskGroup() as group:
            for todo in (iter(quick), *[left] * min(WORKERS, len(slow))):
                group.create_task(self._work(todo), name="registry-batch")
        return self._replies

    def _divided(self) -> tuple[list[int], list[int]]:
        """Return where the requests stand that never wait, and where the others do."""
        quick: list[int] = []
        slow: list[int] = []
        for index, request in enumerate(self._requests):
            waits = isinstance(request, dict) and text(request, "type") not in QUICK
            (slow if waits else quick).append(index)
        return quick, slow

    async def _work(self, todo: Iterator[int]) -> None:
        for index in todo:
            reply = encode_reply(await self._answer(self._requests[index]))
            self._replies[index] = msgspec.Raw(reply)
            self._size += len(reply)

    async def _answer(self, request: Any) -> Reply:
        if not isinstance(request, dict):
            return error_reply("message is not a JSON object")
        kind = text(request, "type")
        if not is_batched(kind):
            return error_reply(f'not in a batch: "{kind[:MAX_TYPE_SHOWN]}"')
        if self._size > MAX_REPLY_BYTES:
            return error_reply("the replies to this batch are too large, ask for less")
        # A registration asks for its turn itself, once it is admitted.
        if kind != REGISTER:
            await self._desk.turns.keep()
        try:
            return await self._desk.answer(request, self._peer)
        # The boundary around each request: a bug there costs one reply.
        except Exception:
            logger.exception("request %.40r in a batch failed", kind)
            return error_reply("request failed")


async def _signatures(
    desk: Desk, requests: Sequence[Any], peer: PeerContext
) -> list[SignedText]:
    """Return what the requests are said to be signed with.

    Without that of registrations that there is no room for: they are to cost nothing.
    """
    room = desk.admission.room(peer, desk.clock.now(), most=len(requests))
    found: list[SignedText] = []
    for part in _parts(requests):
        await desk.turns.take()
        for request in part:
            if not isinstance(request, dict):
                continue
            if text(request, "type") == REGISTER:
                room -= 1
                if room < 0:
                    continue
            found += desk.signatures_of(request)
    return found


async def _beat_all(desk: Desk, rows: Sequence[tuple[int, str]]) -> Reply:
    failed: dict[str, str] = {}
    unknown: list[tuple[int, str]] = []
    for part in _parts(rows):
        await desk.turns.take()
        unknown += _beat_known(desk, part, failed)
    if unknown:
        async with desk.batches:
            signed = [_heartbeat(desk, *row) for row in unknown]
            await desk.verify_ahead([each for each in signed if each is not None])
        # Judged again and on the keys of now: while threads worked, a key may have
        # been replaced.
        for row in unknown:
            await desk.turns.take()
            _beat(desk, row, failed)
    wall = desk.clock.wall()
    return {"type": "heartbeats_ok", "time": int(wall), "failed": failed}


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), ROWS_A_TURN):
        yield rows[start : start + ROWS_A_TURN]


def _beat_known(
    desk: Desk, rows: Sequence[tuple[int, str]], failed: dict[str, str]
) -> list[tuple[int, str]]:
    """Take the heartbeats whose signature is remembered; return the others."""
    get_live, knows = desk.directory.nodes.get_live, desk.signatures.knows
    touch, wall = desk.directory.touch, desk.clock.wall()
    unknown = []
    for row in rows:
        number, signature = row
        node = get_live(number)
        if node is None:
            failed[str(number)] = f"node {number}: node not found"
        elif not knows(node.record.key, f"heartbeat:{number}", signature):
            unknown.append(row)
        elif node.record.expires:
            _beat(desk, row, failed)
        else:
            touch(number, wall)
    return unknown


def _beat(desk: Desk, row: tuple[int, str], failed: dict[str, str]) -> None:
    """Do for one node what a heartbeat of its own does."""
    number, signature = row
    wall = desk.clock.wall()
    try:
        node = desk.directory.node(number)
        desk.verify(node, f"heartbeat:{number}", signature)
        check_key_life(node, wall)
    except Refused as refusal:
        failed[str(number)] = str(refusal)
    else:
        desk.directory.touch(number, wall)


def _heartbeat(desk: Desk, number: int, signature: str) -> SignedText | None:
    node = desk.directory.nodes.get_live(number)
    if node is None or not signature:
        return None
    return node.record.key, f"heartbeat:{number}", signature


HANDLERS: Final[dict[str, Handler]] = {"batch": batch, "heartbeats": heartbeats}
