"""A clock that moves only when told to."""

from __future__ import annotations

__all__ = ["FakeClock"]


class FakeClock:
    """Stands in for a monotonic clock."""

    __slots__ = ("now",)

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        """Seconds."""

    def __call__(self) -> float:
        """Return the time, as the real clock function does."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Move forward and return the new time."""
        return self.advance_to(self.now + seconds)

    def advance_to(self, moment: float) -> float:
        """Move forward to a moment; one that has passed changes nothing."""
        self.now = max(self.now, moment)
        return self.now
