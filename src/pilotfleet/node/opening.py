"""Opening the agents of a host: their keys, their sockets, their trust lists.

Each new key waits for the disk twice, which for ten thousand of them takes longer than
anything else in a start. So keys are read and made in a few threads, some slices ahead
of the agents that register meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from pilotfleet.node.agent import Agent
from pilotfleet.node.home import load_or_create_identity
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from pilotfleet.node.config import AgentSpec
    from pilotfleet.node.host import Host
    from pilotfleet.protocol.identity import Identity

__all__ = ["open_agents"]

SLICE: Final = 32
"""Keys read in one call of a thread, and agents opened before the event loop has its
turn."""
SLICES_AHEAD: Final = 4
"""Threads at work. More of them would only wait for the same disk."""


async def open_agents(host: Host) -> AsyncGenerator[Agent]:
    """Open the agents of the host's configuration, in its order.

    Raises:
        PilotError: A file is damaged, or a port is taken.
    """
    specs = host.config.agents
    starts = iter(range(0, len(specs), SLICE))
    ahead: deque[asyncio.Task[list[tuple[AgentSpec, Identity]]]] = deque()

    def load_next() -> None:
        start = next(starts, None)
        if start is not None:
            load = run_blocking(_load_identities, specs[start : start + SLICE])
            ahead.append(host.loop.create_task(load, name="load of identities"))

    try:
        for _ in range(SLICES_AHEAD):
            load_next()
        while ahead:
            loaded = await ahead.popleft()
            load_next()
            for spec, identity in loaded:
                agent = host.agents[spec.name] = Agent(host, spec, identity)
                agent.load_trust()
                yield agent
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


def _load_identities(specs: Sequence[AgentSpec]) -> list[tuple[AgentSpec, Identity]]:
    return [(spec, load_or_create_identity(spec.identity_path)) for spec in specs]
