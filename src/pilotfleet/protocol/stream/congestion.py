"""Congestion control: how many bytes may be under way (wire.md section 11.8).

The sender reports what happened and reads ``window``; a policy sees no
connection, no segment and no clock. All increments of the specification are for
segments of 1152 bytes and grow in proportion for larger ones, otherwise a stream
of 60 KB segments would need minutes to open its window.
"""

from __future__ import annotations

import abc
from typing import Final

__all__ = ["CongestionControl", "Reno"]

# From the specification, for segments of BASE_SEGMENT bytes.
BASE_SEGMENT: Final = 1152
INITIAL_WINDOW: Final = 40960
INITIAL_THRESHOLD: Final = 512 * 1024
MIN_THRESHOLD: Final = 8192
TIMEOUT_WINDOW: Final = 4096
SLOW_START_STEP: Final = 8192
AVOIDANCE_STEP: Final = 4096
DUPLICATES_FOR_LOSS: Final = 3


class CongestionControl(abc.ABC):
    """A policy for the congestion window of one connection."""

    __slots__ = ("threshold", "window")

    window: int
    """Bytes that may be in flight."""
    threshold: int
    """Where slow start ends, in bytes."""

    @abc.abstractmethod
    def on_acknowledged(self, acked: int) -> None:
        """New data arrived, outside fast recovery."""

    @abc.abstractmethod
    def on_loss(self, in_flight: int) -> None:
        """Duplicate acknowledgements showed a loss; fast recovery begins."""

    @abc.abstractmethod
    def on_duplicate(self) -> None:
        """Another segment left the network during fast recovery."""

    @abc.abstractmethod
    def on_partial(self, acked: int) -> None:
        """Some of what was in flight at the loss arrived, but not all."""

    @abc.abstractmethod
    def on_recovered(self) -> None:
        """All that was in flight at the loss arrived."""

    @abc.abstractmethod
    def on_timeout(self, in_flight: int) -> None:
        """The retransmission timer ran out."""

    @abc.abstractmethod
    def on_segment_size(self, size: int, max_window: int) -> None:
        """Segments change their size, and the window its cap."""


class Reno(CongestionControl):
    """New Reno with the reference daemon's constants."""

    __slots__ = ("_max_window", "_segment")

    def __init__(self, max_window: int) -> None:
        self.window = INITIAL_WINDOW
        self.threshold = INITIAL_THRESHOLD
        self._max_window = max_window
        self._segment = BASE_SEGMENT

    def on_acknowledged(self, acked: int) -> None:
        window = self.window
        # Bytes are counted, so that a receiver gains nothing by splitting its
        # acknowledgements. The cap keeps one that covers much from becoming a burst.
        if window < self.threshold:
            window += min(acked, SLOW_START_STEP * self._segment // BASE_SEGMENT)
        else:
            # One step per window of data, however many segments one
            # acknowledgement covers: receivers acknowledge in batches.
            step = AVOIDANCE_STEP * self._segment // BASE_SEGMENT
            window += max(1, step * min(acked, window) // window)
        self.window = min(window, self._max_window)

    def on_loss(self, in_flight: int) -> None:
        # Half of what was really under way, not of the window: an application that
        # sends little would otherwise keep a window that no path ever confirmed. The
        # three duplicates show that three segments have left.
        self.threshold = self._halved(in_flight)
        self.window = self.threshold + DUPLICATES_FOR_LOSS * self._segment

    def on_duplicate(self) -> None:
        self.window = min(self.window + self._segment, self._max_window)

    def on_partial(self, acked: int) -> None:
        # Deflate by what has left, and let one segment out for the hole (New Reno).
        # Never below the threshold: that is where the recovery ends anyhow.
        window = self.window - acked
        if acked >= self._segment:
            window += self._segment
        self.window = max(window, self.threshold)

    def on_recovered(self) -> None:
        # The inflation by duplicates was borrowed; keeping it would release a burst at
        # the moment the path has just recovered.
        self.window = self.threshold

    def on_timeout(self, in_flight: int) -> None:
        self.threshold = self._halved(in_flight)
        # At least one segment: for large ones 4096 bytes would be a fraction, and slow
        # start would lose its first steps.
        self.window = max(TIMEOUT_WINDOW, self._segment)

    def on_segment_size(self, size: int, max_window: int) -> None:
        if self.threshold == INITIAL_THRESHOLD and max_window > self.threshold:
            # Nothing was lost so far: search up to the new cap.
            self.threshold = max_window
        self._segment = size
        self._max_window = max_window
        self.window = min(self.window, max_window)

    def _halved(self, in_flight: int) -> int:
        # Two segments at least: with one under way no duplicates can arrive, and each
        # further loss would cost a timeout.
        return max(in_flight // 2, MIN_THRESHOLD, 2 * self._segment)
