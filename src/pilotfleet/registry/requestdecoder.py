"""Cuts what a connection sends into requests, within what all may buffer."""

from __future__ import annotations

from typing import Any, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.framing import (
    BINARY_PREAMBLE,
    BINARY_VERSION,
    JsonFrameDecoder,
    is_binary_preamble,
)
from pilotfleet.protocol.registry.messages import decode_request

__all__ = ["FREE_BYTES", "BufferBudget", "RequestDecoder", "decode_bounded"]

FREE_BYTES: Final = 64 * 1024
"""What every connection may buffer, even if the common budget is used up."""
FREE_VALUES: Final = 32_768
BYTES_A_VALUE: Final = 16
"""Above ``FREE_BYTES`` a message may have so many values, and one more for each of
these. A value takes about 64 bytes in memory, and ``[],`` three on the wire."""
TLS_START: Final = b"\x16\x03"
"""A TLS handshake; as the length of a message it would be far too much."""


class BufferBudget:
    """Bounds what all connections buffer together: messages that are not complete
    yet, and those that wait or are worked on.

    One message may have 64 MiB, and nobody is known before his first message
    is complete. Without a common bound a few hundred connections that stop in
    the middle of one could take all memory. So could messages of many requests,
    which wait for each other whole; these have a budget of their own.
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
            raise DecodeError("too many bytes of messages at once")

    def take(self, size: int) -> bool:
        """Hold ``size`` bytes until ``give``, if there is room for them."""
        if size > FREE_BYTES and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Hold so many bytes no longer."""
        self.used -= size


class RequestDecoder:
    """Cuts frames of either mode, which the first bytes decide (section 2.2)."""

    __slots__ = (
        "_budget",
        "_decoder",
        "_held",
        "is_binary",
        "kept",
        "start",
        "version",
    )

    def __init__(self, limit: int, budget: BufferBudget) -> None:
        self._decoder = JsonFrameDecoder(limit)
        self._budget = budget
        self._held = 0
        self.kept = 0
        """What ``keep`` was told."""
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
        self._count(size, self.kept)

    def keep(self, size: int) -> None:
        """Tell the budget how much is complete, and waits or is worked on.

        Raises:
            DecodeError: It has grown, and there is no room.
        """
        self._count(self._held, size)

    def clear(self) -> None:
        """Forget what is buffered: the connection is over."""
        self._decoder.clear()
        self.hold(0)

    def _count(self, held: int, kept: int) -> None:
        old = self._held + self.kept
        self._held, self.kept = held, kept
        self._budget.change(old, held + kept)

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


def decode_bounded(body: bytes) -> dict[str, Any]:
    """Read a message that does not take many times its size in memory.

    Raises:
        DecodeError: It would; or it is no JSON object.
    """
    if len(body) > FREE_BYTES:
        values = sum(map(body.count, (b",", b"[", b"{")))
        if values > FREE_VALUES + len(body) // BYTES_A_VALUE:
            raise DecodeError(f"message of {len(body)} bytes has {values} values")
    return decode_request(body)
