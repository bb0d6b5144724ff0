"""How fast a counter grows, over the last minutes."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["CounterRate"]

POINTS: Final = 20
"""Remembered of a window. Ten thousand agents may have a counter each."""


class CounterRate:
    """Turns values of a counter into a rate. A counter may begin anew at any time."""

    __slots__ = ("_last", "_points", "_total", "_window_s")

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._last: float | None = None
        self._total = 0.0
        self._points: deque[tuple[float, float]] = deque()

    def take(self, value: float, at: float) -> float | None:
        """Take the value of now; return the growth per minute over the window.

        The window is at most a twentieth longer than asked for, or as long as no value
        came. None until there are values of a whole window.
        """
        points = self._points
        if points and at < points[-1][0]:
            # The clock was put back: nothing can be compared any more.
            points.clear()
        if self._last is not None:
            # A counter that is less than before was set back to zero in between.
            self._total += value - self._last if value >= self._last else value
        self._last = value
        if not points or at - points[-1][0] >= self._window_s / POINTS:
            points.append((at, self._total))
        while len(points) > 1 and points[1][0] <= at - self._window_s:
            points.popleft()
        since, total = points[0]
        if at - since < self._window_s:
            return None
        return (self._total - total) * 60 / (at - since)
