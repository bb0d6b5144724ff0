"""How registry messages are cut out of a TCP stream (registry.md section 2).

A connection is in JSON mode unless its first four bytes are ``PILT``. Both
modes put a 32-bit big-endian length in front of each message; in binary mode
the first byte of the message names its type.
"""

from __future__ import annotations

import struct
from typing import Final

from pilotfleet.errors import DecodeError

__all__ = [
    "BINARY_MAGIC",
    "BINARY_PREAMBLE",
    "BINARY_VERSION",
    "MAX_MESSAGE",
    "BinaryFrameDecoder",
    "JsonFrameDecoder",
    "encode_binary_frame",
    "encode_json_frame",
    "is_binary_preamble",
]

# From the specification.
MAX_MESSAGE: Final = 64 * 1024 * 1024
"""Largest length that a frame may announce, in bytes."""
BINARY_MAGIC: Final = b"PILT"
BINARY_VERSION: Final = 1
BINARY_PREAMBLE: Final = BINARY_MAGIC + bytes([BINARY_VERSION])
"""What a client sends first to choose binary mode."""

_LENGTH: Final = struct.Struct("!I")
_BINARY_HEADER: Final = struct.Struct("!IB")


def is_binary_preamble(start: bytes) -> bool:
    """Tell whether a connection that begins with ``start`` is in binary mode."""
    return start[: len(BINARY_MAGIC)] == BINARY_MAGIC


def encode_json_frame(body: bytes) -> bytes:
    """Return ``body`` with its length in front."""
    return _LENGTH.pack(len(body)) + body


def encode_binary_frame(kind: int, payload: bytes = b"") -> bytes:
    """Return a binary-mode frame of type ``kind``."""
    return _BINARY_HEADER.pack(len(payload) + 1, kind) + payload


class JsonFrameDecoder:
    """Cut a stream into the bodies of length-prefixed frames."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes and return the bodies that are now complete.

        Raises:
            DecodeError: A frame is longer than the limit. The connection cannot
                be used any further.
        """
        buffer = self._buffer
        buffer += data
        bodies = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self._limit:
                raise DecodeError(f"message of {length} bytes, limit {self._limit}")
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            bodies.append(bytes(memoryview(buffer)[start + _LENGTH.size : end]))
            start = end
        del buffer[:start]
        return bodies

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def clear(self) -> None:
        """Forget the frame that is not complete yet."""
        self._buffer = bytearray()


class BinaryFrameDecoder:
    """Cut a stream, after its preamble, into binary-mode frames."""

    __slots__ = ("_frames",)

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._frames = JsonFrameDecoder(limit)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take received bytes and return (type, payload) of complete frames.

        Raises:
            DecodeError: A frame is empty or longer than the limit.
        """
        frames = []
        for body in self._frames.feed(data):
            if not body:
                raise DecodeError("binary frame without a type")
            frames.append((body[0], body[1:]))
        return frames

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return self._frames.buffered_bytes
