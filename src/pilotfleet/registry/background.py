"""Work of a rendezvous that goes on beside its requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["in_background"]

logger = logging.getLogger(__name__)

RESTART_S: Final = 1.0
"""Before work that failed is started again."""


@contextlib.asynccontextmanager
async def in_background(
    name: str, run: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Keep ``run`` going inside the block; a fault in it does not end it for good."""
    task = asyncio.create_task(_supervise(name, run), name=f"registry-{name}")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _supervise(name: str, run: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await run()
        except Exception:  # The registry answers on, whatever fails beside it.
            logger.exception("%s failed", name)
        await asyncio.sleep(RESTART_S)
