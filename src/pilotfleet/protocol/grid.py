"""The grid of moments at which what can wait a little is due together.

Keepalives of tunnels, looks at idle streams and heartbeats at the registry share it. A
process of ten thousand agents then wakes up four times a second for all of them, and
not for each. Of our choosing.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["GRID_S", "on_grid"]

GRID_S: Final = 0.25
"""Seconds between two moments. Ten thousand agents that beat once a minute then send
42 at a time: coarser would save little more and hold the event loop longer."""


def on_grid(time_s: float) -> float:
    """Return the first moment of the grid that is not before ``time_s``."""
    return math.ceil(time_s / GRID_S) * GRID_S
