"""The first registration of the agents of a host."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import Unavailable
from pilotfleet.protocol.registry.endpoints import format_endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

__all__ = ["start_each", "wait_for_registry"]

logger = logging.getLogger(__name__)

# From the specification.
DIAL_S: Final = 5.0
START_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses while the registry cannot be reached at the start; the last repeats."""


async def wait_for_registry(host: Host) -> None:
    """Return once something accepts connections where the registry should be.

    Raises:
        Unavailable: Nothing does, in all attempts.
    """
    config, endpoint = host.config, host.registry.endpoint
    for attempt in range(1, config.registry_attempts + 1):
        try:
            async with asyncio.timeout(DIAL_S):
                _, writer = await asyncio.open_connection(*endpoint)
            writer.close()
            return
        except OSError as error:  # A timeout is one, too.
            failure = error
        if attempt < config.registry_attempts:
            pause = START_PAUSES_S[min(attempt, len(START_PAUSES_S)) - 1]
            logger.warning("registry: %s; trying again in %g s", failure, pause)
            await asyncio.sleep(pause)
    raise Unavailable(
        f"registry {format_endpoint(config.registry)} cannot be reached: {failure}",
        hint="start pilot-rendezvous, or name the right one with --registry",
    ) from failure


async def start_each(
    host: Host,
    agents: AsyncIterator[Agent],
    start: Callable[[Agent], Awaitable[None]],
    *,
    total: int,
) -> None:
    """Call ``start`` with each agent as it is opened, some of them at a time.

    Args:
        host: The agents' host; says how many at a time, and over how long.
        agents: Opened while others start.
        start: Does not raise for what concerns one agent only.
        total: How many there will be.
    """
    began, spread = host.now(), host.config.stagger_s
    next_one = asyncio.Lock()
    number = 0

    async def work() -> None:
        nonlocal number
        while True:
            async with next_one:
                agent = await anext(agents, None)
                number += 1
                at = began + spread * number / total
            if agent is None:
                return
            await asyncio.sleep(max(0.0, at - host.now()))
            await start(agent)

    try:
        async with asyncio.TaskGroup() as tasks:
            for worker in range(min(host.config.parallel_starts, total)):
                tasks.create_task(work(), name=f"start of agents, worker {worker}")
    except ExceptionGroup as failed:
        # A file that is damaged, for example; the user wants to read that.
        raise failed.exceptions[0] from None
