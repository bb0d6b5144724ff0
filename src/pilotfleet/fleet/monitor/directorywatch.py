"""Ask the registry again and again who is there, and who trusts whom."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import NotSupported, PilotError
from pilotfleet.fleet.monitor.samples import DirectoryAgent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.fleet.agent import Agent
    from pilotfleet.fleet.monitor.view.fleetview import FleetView

__all__ = ["DirectoryWatch"]

logger = logging.getLogger(__name__)

MAX_AGENTS: Final = 100_000
QUESTION_S: Final = 60.0
"""For one pass."""
JITTER: Final = 0.2
"""Many monitors must not ask at once."""
UNABLE_PAUSE_S: Final = 300.0
"""A registry that cannot answer may be replaced by one that can."""


class DirectoryWatch:
    """Keeps a view's directory and trust links fresh; :meth:`run` does the work."""

    def __init__(
        self,
        view: FleetView,
        connect: Callable[[], Awaitable[Agent]],
        now: Callable[[], float],
        *,
        directory_s: float,
        trust_s: float,
    ) -> None:
        """Prepare to ask.

        Args:
            view: Takes the answers.
            connect: Opens the agent that asks.
            now: The time of the view.
            directory_s: Between two passes over the directory.
            trust_s: Between two questions after trust.
        """
        self._view = view
        self._connect = connect
        self._now = now
        self._directory_s = directory_s
        self._trust_s = trust_s
        self._generation: int | None = None

    async def run(self) -> None:
        """Ask until cancelled; failures are tried again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self._read_agents, self._directory_s))
            group.create_task(self._repeat(self._read_links, self._trust_s))

    async def _repeat(
        self, read: Callable[[Agent], Awaitable[None]], interval_s: float
    ) -> None:
        while True:
            # Once is enough for who is told only now and then that it fails.
            pause_s = interval_s
            try:
                async with await self._connect() as agent:
                    while True:
                        async with asyncio.timeout(QUESTION_S):
                            await read(agent)
                        await asyncio.sleep(_jittered(interval_s))
            except NotSupported as error:
                logger.info("%s", error)
                pause_s = UNABLE_PAUSE_S
            except (PilotError, TimeoutError, ValueError, TypeError) as error:
                # A registry that answers in another form is one that cannot.
                logger.info("directory of fleet %s: %s", self._view.fleet, error)
            await asyncio.sleep(_jittered(pause_s))

    async def _read_agents(self, agent: Agent) -> None:
        rows = [
            DirectoryAgent(
                node_id=found.node_id,
                address=found.address,
                name=found.name,
                tags=tuple(sorted(found.tags)),
                polo=found.polo,
                is_online=found.is_online,
            )
            async for found in agent.find(online=False, limit=MAX_AGENTS)
        ]
        self._view.take_agents(rows, at=self._now())

    async def _read_links(self, agent: Agent) -> None:
        # After a failure all is read again: it may be another registry then.
        generation, self._generation = self._generation, None
        answer = await agent.trust_links(generation=generation)
        if answer is not None:
            self._view.take_links(answer.links, at=self._now())
            generation = answer.generation
        self._generation = generation


def _jittered(pause_s: float) -> float:
    return pause_s * random.uniform(1 - JITTER, 1 + JITTER)
