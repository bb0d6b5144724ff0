"""The bounded queue of a publisher. Performs no I/O."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pilotfleet.services.events.config import WRITE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pilotfleet.services.events.config import BrokerConfig

__all__ = ["FrameQueue"]


class FrameQueue:
    """Frames that wait to be written, bounded; the oldest give way."""

    __slots__ = ("_bytes", "_frames", "_max_bytes", "_max_frames", "dropped")

    def __init__(self, config: BrokerConfig) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._max_frames = config.max_queued_events
        self._max_bytes = config.max_queued_bytes
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return self._bytes

    def put(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._bytes += len(frame)
        while len(self._frames) > self._max_frames or (
            self._bytes > self._max_bytes and len(self._frames) > 1
        ):
            self._bytes -= len(self._frames.popleft())
            self.dropped += 1

    def restore(self, frames: Iterable[bytes]) -> None:
        """Put frames that were taken back in front, as far as there is room."""
        for frame in reversed(list(frames)):
            room = len(self._frames) < self._max_frames
            if not room or self._bytes + len(frame) > self._max_bytes:
                self.dropped += 1
                continue
            self._frames.appendleft(frame)
            self._bytes += len(frame)

    def blank(self, index: int) -> None:
        """Let nothing be written in the place of a frame."""
        self._bytes -= len(self._frames[index])
        self._frames[index] = b""

    def remove(self, index: int) -> None:
        """Take the frame at this place out."""
        self._bytes -= len(self._frames[index])
        del self._frames[index]

    def take(self) -> list[bytes]:
        """Return the oldest frames, about as many as one write should carry."""
        batch: list[bytes] = []
        size = 0
        while self._frames and (not batch or size < WRITE_SIZE):
            frame = self._frames.popleft()
            batch.append(frame)
            size += len(frame)
        self._bytes -= size
        return batch
