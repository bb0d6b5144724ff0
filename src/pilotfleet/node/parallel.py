"""Doing something for many items, a bounded number at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["for_each"]

T = TypeVar("T")


async def for_each(
    items: Iterable[T], act: Callable[[T], Awaitable[None]], *, workers: int
) -> None:
    """Act on each item, ``workers`` of them at a time, begun in their order.

    What the first one raises is raised here; the others are cancelled then.
    """
    # One shared iterator is the queue: each worker takes the next item when it is
    # free, and nothing is kept for those that have not begun.
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await act(item)

    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(workers):
                tasks.create_task(work(), name=f"worker {number} of {act.__name__}")
    except ExceptionGroup as failed:
        # Callers want the failure itself, as from a call that is not parallel.
        raise failed.exceptions[0] from None
