"""Frames on the daemon's Unix socket (ipc.md section 1.1).

Each frame is a big-endian length, a command byte and a payload; the length counts
the command byte. A frame of length 0 is legal and means nothing.
"""

from __future__ import annotations

import struct
from typing import Final

from pilotfleet.errors import DecodeError, InvalidArgument

__all__ = ["MAX_FRAME", "MAX_JSON", "MAX_SEND", "FrameDecoder", "encode_frame"]

# From the specification.
MAX_FRAME: Final = 1 << 20
"""Largest value of the length field."""
MAX_JSON: Final = MAX_FRAME - 64
"""Largest JSON reply (ipc.md section 12)."""
MAX_SEND: Final = MAX_FRAME - 64
"""Largest piece of stream data that a client puts into one Send."""

_LENGTH: Final = struct.Struct("!I")
_HEADER: Final = struct.Struct("!IB")


class FrameDecoder:
    """Cuts a byte stream into frames. Keeps at most one incomplete frame."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the (command, payload) pairs that ``data`` completes.

        Raises:
            DecodeError: A frame states more than the maximum. The stream cannot
                be read any further; frames before it in ``data`` are lost.
        """
        if not self._buffer:
            frames, used = _cut(data)
            self._buffer += data[used:]
            return frames
        self._buffer += data
        frames, used = _cut(self._buffer)
        del self._buffer[:used]
        return frames

    def rest(self) -> bytes:
        """Return the beginning of a frame that has not come in full."""
        return bytes(self._buffer)


def encode_frame(command: int, *parts: bytes | memoryview) -> bytes:
    """Return one frame with the joined ``parts`` as its payload.

    Raises:
        InvalidArgument: The frame would be too large.
    """
    size = 1 + sum(map(len, parts))
    if size > MAX_FRAME:
        raise InvalidArgument(f"frame of {size} bytes, at most {MAX_FRAME}")
    return b"".join((_HEADER.pack(size, command), *parts))


def _cut(data: bytes | bytearray) -> tuple[list[tuple[int, bytes]], int]:
    frames: list[tuple[int, bytes]] = []
    position, end = 0, len(data)
    # A view: one copy per payload, and it must be gone before the buffer shrinks.
    with memoryview(data) as view:
        while end - position >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(view, position)
            if size > MAX_FRAME:
                raise DecodeError(f"frame of {size} bytes, at most {MAX_FRAME}")
            body = position + _LENGTH.size
            if end - body < size:
                break
            position = body + size
            if size:
                frames.append((view[body], bytes(view[body + 1 : position])))
    return frames, position
