"""The two clocks of a process, as one object that tests can replace."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Where shells take the time that they pass into cores."""

    def now(self) -> float:
        """Return seconds of a clock that never goes back."""

    def wall(self) -> float:
        """Return the seconds since 1970 that the wire and files carry."""


class SystemClock:
    """The clocks of the operating system."""

    def now(self) -> float:
        """Return the monotonic time."""
        return time.monotonic()

    def wall(self) -> float:
        """Return the unix time."""
        return time.time()
