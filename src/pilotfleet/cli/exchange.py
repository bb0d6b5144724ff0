"""A conversation with the data exchange port of a peer (services.md section 4).

Every frame that is sent is answered by one frame, in order.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Final

from pilotfleet.cli.arguments import read_number
from pilotfleet.errors import ConnectionFailed, DaemonError, DecodeError
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.services.dataexchange import (
    DATA_EXCHANGE_PORT,
    MAX_FRAME,
    MAX_MAX_FRAME,
    MIN_MAX_FRAME,
    Frame,
    FrameDecoder,
    FrameType,
    encode_frame,
)

if TYPE_CHECKING:
    from typing import Self

    from pilotfleet.cli.connection import Deadline, Stream
    from pilotfleet.cli.invocation import Context
    from pilotfleet.protocol.address import Address

__all__ = ["Exchange", "is_unknown", "max_frame", "open_exchange"]

MAX_ANSWER: Final = 1 << 20
"""Answers are short lines; more than this is not one."""


def max_frame() -> int:
    """Return the longest payload to send, which an environment variable may set."""
    chosen = read_number(
        os.environ.get("PILOT_DATAEXCHANGE_MAX_FRAME", ""), MAX_MAX_FRAME
    )
    return chosen if chosen is not None and chosen >= MIN_MAX_FRAME else MAX_FRAME


def is_unknown(text: str, frame_type: int) -> bool:
    """Tell whether an answer means that the receiver does not know the frame type."""
    name = f"UNKNOWN({frame_type})"
    return text.startswith((f"ACK {name}", f"ERR {name}"))


def open_exchange(
    context: Context, peer: Address, *, target: str, deadline: Deadline
) -> Exchange:
    """Open a stream to a peer's data exchange port.

    Args:
        context: Whose daemon opens it.
        peer: The peer.
        target: What the user calls it.
        deadline: For the opening.

    Raises:
        ConnectionFailed: It cannot be opened.
        TimedOut: Not in time.
    """
    try:
        remote = SocketAddress(peer, DATA_EXCHANGE_PORT)
        return Exchange(context.daemon().dial(remote, deadline=deadline))
    except DaemonError as error:
        context.output.note(f"dial: daemon: {error}")
        raise ConnectionFailed(
            f"cannot connect to {peer} (data exchange port {DATA_EXCHANGE_PORT})",
            hint=f"check that {target} is reachable: pilotctl ping {target}",
        ) from error


class Exchange:
    """An open stream to a data exchange port."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._decoder = FrameDecoder(MAX_ANSWER)
        self._frames: deque[Frame] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(
        self, frame_type: int, *parts: bytes | memoryview, deadline: Deadline
    ) -> None:
        """Send one frame.

        Raises:
            InvalidArgument: It is longer than :func:`max_frame`.
        """
        frame = encode_frame(frame_type, *parts, max_frame=max_frame())
        self._stream.write(frame, deadline=deadline)

    def receive(self, deadline: Deadline) -> Frame:
        """Return the next frame of the peer.

        Raises:
            ConnectionFailed: The peer ended the stream, or sent what is no frame.
            TimedOut: None came in time.
        """
        while not self._frames:
            data = self._stream.read(deadline=deadline)
            if not data:
                raise ConnectionFailed("the peer closed the stream without an answer")
            self._take(data)
        return self._frames.popleft()

    def receive_arrived(self) -> Frame | None:
        """Return a frame that is there already, or none, without waiting."""
        if not self._frames:
            self._take(self._stream.read_arrived())
        return self._frames.popleft() if self._frames else None

    def receive_text(self, deadline: Deadline) -> str:
        """Return the next frame's text.

        Raises:
            ConnectionFailed: The frame holds no text.
        """
        frame = self.receive(deadline)
        if frame.type not in (FrameType.TEXT, FrameType.JSON):
            raise ConnectionFailed(
                f"the peer answered with a frame of type {frame.type}"
            )
        return frame.payload.decode("utf-8", "replace")

    def close(self) -> None:
        """End the stream."""
        self._stream.close()

    def _take(self, data: bytes) -> None:
        try:
            self._frames.extend(self._decoder.feed(data))
        except DecodeError as error:
            raise ConnectionFailed(
                f"the peer's answer is not valid: {error}"
            ) from error
