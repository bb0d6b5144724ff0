"""What came for streams that nobody knows yet (ipc.md section 4, client rule 5)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["EarlyFrames"]

MAX_STREAMS: Final = 256
MAX_BYTES: Final = 4 << 20
MAX_CLOSED: Final = 4096
"""Own closed streams whose late frames are recognised."""


class EarlyFrames:
    """Data and ends by connection id; the oldest go first when there are too many."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[int, list[bytes]] = OrderedDict()
        self._ended: set[int] = set()
        self._closed: OrderedDict[int, None] = OrderedDict()
        self.size = 0
        """Bytes that are kept."""

    def __len__(self) -> int:
        """Return the number of streams of which something is kept."""
        return len(self._chunks)

    def add(self, number: int, data: bytes) -> None:
        """Keep data of a stream."""
        if number not in self._closed:
            self._chunks.setdefault(number, []).append(data)
            self.size += len(data)
            self._shrink()

    def end(self, number: int) -> None:
        """Keep that a stream has ended."""
        if number not in self._closed:
            self._chunks.setdefault(number, [])
            self._ended.add(number)
            self._shrink()

    def take(self, number: int) -> tuple[list[bytes], bool]:
        """Remove and return what is kept of a stream, and whether it has ended."""
        chunks = self._chunks.pop(number, [])
        self.size -= sum(map(len, chunks))
        ended = number in self._ended
        self._ended.discard(number)
        return chunks, ended

    def ignore(self, number: int) -> None:
        """Keep nothing of a stream any more: it was closed on this side."""
        self.take(number)
        self._closed[number] = None
        if len(self._closed) > MAX_CLOSED:
            self._closed.popitem(last=False)

    def _shrink(self) -> None:
        while len(self._chunks) > MAX_STREAMS or self.size > MAX_BYTES:
            self.take(next(iter(self._chunks)))
