"""Connections to port 1003, where official peers bring one frame each.

tasks-and-polo.md section 2: the receiver answers a SUBMIT and closes. The clean end
is all that tells the peer that its frame was taken.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, TypeAlias

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.services.tasks import (
    TASK_PORT,
    Message,
    Results,
    StatusUpdate,
    Submit,
    TaskFrameDecoder,
    decode_message,
    encode_message,
    refusal_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.services.tasks.parts import TaskStream

    Receive: TypeAlias = Callable[[str, int, Message], Awaitable[Message | None]]

__all__ = ["serve_official"]

logger = logging.getLogger(__name__)

# Of our choosing.
FRAME_LIMIT_S: Final = 60.0
"""For the one frame of a connection."""
READ_SIZE: Final = 65_536


async def serve_official(receive: Receive, agent: str, stream: TaskStream) -> None:
    """Take the frame of a connection, answer it if that is due, and close."""
    try:
        async with asyncio.timeout(FRAME_LIMIT_S):
            frame = await _read_frame(stream)
            answer = frame and await _answer(receive, agent, stream, *frame)
            if answer:
                await stream.write(encode_message(answer))
    except DecodeError as error:
        logger.debug("task frame from %s: %s", stream.remote, error)
    except BaseException:
        # A clean end would tell the peer that its frame was taken.
        stream.abort()
        raise
    await stream.close()


async def _answer(
    receive: Receive, agent: str, stream: TaskStream, frame_type: int, body: bytes
) -> Message | None:
    try:
        message = decode_message(frame_type, body)
    except DecodeError as error:
        refusal = refusal_of(frame_type, body, str(error))
        if refusal is None:
            raise
        return refusal
    if not isinstance(message, Submit | StatusUpdate | Results):
        raise DecodeError(f"task frame of type {frame_type} on port {TASK_PORT}")
    answer = await receive(agent, stream.remote.address.node, message)
    return answer if isinstance(message, Submit) else None


async def _read_frame(stream: TaskStream) -> tuple[int, bytes] | None:
    decoder = TaskFrameDecoder()
    while data := await stream.read(READ_SIZE):
        frames = decoder.feed(data)
        if frames:
            return frames[0]
    return None
