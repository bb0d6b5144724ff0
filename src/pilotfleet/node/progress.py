"""Telling how far the start of a host is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StartLog"]

logger = logging.getLogger(__name__)

STEP: Final = 1000
STEP_S: Final = 5.0
"""A slow start, spread on purpose perhaps, is told of this often."""


class StartLog:
    """Logs how many agents have started: now and then, and at the end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told_at = clock()

    def __call__(self, done: int, total: int) -> None:
        """Note that ``done`` agents have started."""
        now = self._clock()
        if done == total or done % STEP == 0 or now - self._told_at >= STEP_S:
            self._told_at = now
            logger.info("started %s of %s agents", f"{done:,}", f"{total:,}")
