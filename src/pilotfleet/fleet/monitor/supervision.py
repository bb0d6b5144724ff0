"""Keep the parts of a monitor apart: the fault of one never stops the others."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.fleet.monitor.outputs.health import OutputCounters

__all__ = ["supervise"]

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0


async def supervise(
    name: str, work: Callable[[], Awaitable[None]], counters: OutputCounters
) -> None:
    """Run a part until it ends by itself; start it again when it fails.

    Args:
        name: For the log, where its first failure is told. The others are counted.
        work: The part.
        counters: Where its failures are counted.
    """
    failures = 0
    while True:
        try:
            await work()
        except Exception:  # A defect of one part must not stop the recording.
            if not counters.errors:
                logger.exception("%s failed; it is tried again from now on", name)
            counters.errors += 1
        else:
            return
        failures += 1
        pause_s = backoff_s(failures, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
        await asyncio.sleep(pause_s)
