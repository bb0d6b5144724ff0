"""How long to wait before something is tried again."""

from __future__ import annotations

import random
from typing import Final

__all__ = ["backoff_s"]

MOST_DOUBLINGS: Final = 30


def backoff_s(
    count: int,
    *,
    first_s: float,
    longest_s: float,
    rng: random.Random | None = None,
) -> float:
    """Return the pause after ``count`` failures in a row, with jitter.

    It doubles with each failure up to ``longest_s``. The jitter takes up to a half
    off, so that what failed together does not come back as one.
    """
    grown = first_s * 2.0 ** min(max(count - 1, 0), MOST_DOUBLINGS)
    uniform = random.uniform if rng is None else rng.uniform
    return float(min(grown, longest_s) * uniform(0.5, 1.0))
