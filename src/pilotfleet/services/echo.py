"""Echo on port 7: every piece comes back unchanged (services.md section 2)."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.stream import Stream

__all__ = ["ECHO_PORT", "answer_trace", "serve_echo"]

# From the specification.
ECHO_PORT: Final = 7
TRACE_MAGIC: Final = b"TRCE"
TRACE_SIZE: Final = 12
STALLED_S: Final = 30.0
"""A peer that takes nothing back for this long is dropped."""

_NANOSECONDS: Final = struct.Struct("!Q")


async def serve_echo(agent: Agent, stream: Stream) -> None:
    """Send everything back until the peer closes.

    The official daemon also refuses peers that it admitted for a shared network
    only. We do not: a fleet is a network, and pings its own members.
    """
    while piece := await stream.read():
        if piece.startswith(TRACE_MAGIC) and len(piece) >= TRACE_SIZE:
            piece = answer_trace(piece, time.time_ns())
        # Nearly always there is room, and a timeout costs more than the rest of this.
        rest = memoryview(piece)[stream.write_nowait(piece) :]
        if rest:
            async with asyncio.timeout(STALLED_S):
                await stream.write(rest)


def answer_trace(piece: bytes, received_ns: int) -> bytes:
    """Return the answer to a trace: the sender's clock, then ours."""
    return piece[:TRACE_SIZE] + _NANOSECONDS.pack(received_ns)
