"""Polo arithmetic: the reward of a task and the gate (tasks-and-polo.md section 6)."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["MAX_SCORE", "SUBMITTER_DELTA", "gate_allows", "reward"]

# From the specification.
MAX_SCORE: Final = 1_000_000
"""Scores lie between minus this and this."""
SUBMITTER_DELTA: Final = -1
"""What a finished task costs its submitter."""

_MS_PER_MINUTE: Final = 60_000
_IDLE_FULL_S: Final = 60.0
_STAGED_FULL_S: Final = 600.0
_PENALTY: Final = 0.3
_MIN_EFFICIENCY: Final = 0.4

# Ours.
_MAX_MS: Final = 10**12
"""Times are the peer's claim and may be any integer; 30 years are enough."""


def reward(*, time_cpu_ms: int, time_idle_ms: int = 0, time_staged_ms: int = 0) -> int:
    """Return what a worker earns for a finished task; at least 1, at most the cap.

    The order of the operations is that of the reference: the published vectors have
    rows whose rounding depends on it.
    """
    minutes = min(max(time_cpu_ms, 0), _MAX_MS) / _MS_PER_MINUTE
    bonus = math.log2(1 + minutes)
    efficiency = max(
        1
        - _penalty(time_idle_ms, _IDLE_FULL_S)
        - _penalty(time_staged_ms, _STAGED_FULL_S),
        _MIN_EFFICIENCY,
    )
    return min(max(math.floor((1 + bonus) * efficiency + 0.5), 1), MAX_SCORE)


def gate_allows(*, submitter: int, receiver: int, min_polo: int | None = None) -> bool:
    """Return whether the receiver takes a task of this submitter, by their scores.

    With ``min_polo`` the receiver's own score does not matter.
    """
    return submitter >= (receiver if min_polo is None else min_polo)


def _penalty(time_ms: int, full_s: float) -> float:
    bounded = min(max(time_ms, 0), _MAX_MS)
    return min(bounded / 1000 / full_s * _PENALTY, _PENALTY)
