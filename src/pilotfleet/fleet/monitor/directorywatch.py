"""Keep up with the registry: who is there, and who trusts whom.

Who is there, the registry tells (extension ``watch``); where it does not, it is asked
again and again. Who trusts whom is asked for with a generation, and costs nothing while
nothing has changed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import NotSupported, PilotError
from pilotfleet.fleet.monitor.samples import DirectoryAgent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.fleet.agent import Agent
    from pilotfleet.fleet.agentwatch import AgentWatch
    from pilotfleet.fleet.monitor.view.fleetview import FleetView
    from pilotfleet.fleet.targets import FoundAgent

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
        self._watch_again = 0.0

    async def run(self) -> None:
        """Ask until cancelled; failures are tried again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self._follow_agents, self._directory_s))
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
                        await read(agent)
                        await asyncio.sleep(_jittered(interval_s))
            except NotSupported as error:
                logger.info("%s", error)
                pause_s = UNABLE_PAUSE_S
            except (PilotError, TimeoutError, ValueError, TypeError) as error:
                # A registry that answers in another form is one that cannot.
                logger.info("directory of fleet %s: %s", self._view.fleet, error)
            await asyncio.sleep(_jittered(pause_s))

    async def _follow_agents(self, agent: Agent) -> None:
        """Take what the registry tells until it cannot be heard, then look once."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._watch_again:
            try:
                await self._watch(agent)
            except PilotError as error:
                # The daemon is an old one; there are more agents than a daemon keeps
                # for watches; or it is gone, which the question will show.
                fleet = self._view.fleet
                logger.info("directory of fleet %s is polled: %s", fleet, error)
            self._watch_again = loop.time() + UNABLE_PAUSE_S
        async with asyncio.timeout(QUESTION_S):
            await self._read_agents(agent)

    async def _watch(self, agent: Agent) -> None:
        """Take changes as they come; return if they come late, or raise."""
        async with agent.watch(online=False) as watch:
            async with asyncio.timeout(QUESTION_S):
                while not watch.is_complete:
                    await watch.receive()
            while watch.is_live:
                if await self._is_heard(agent):
                    rows = [directory_row(found) for found in watch.agents.values()]
                    self._view.take_agents(rows, at=self._now())
                await self._gather(watch)

    async def _is_heard(self, agent: Agent) -> bool:
        """Tell whether the registry answers: silence would look like no change."""
        try:
            async with asyncio.timeout(QUESTION_S):
                async for _ in agent.find(online=False, limit=1):
                    pass
        except (PilotError, TimeoutError) as error:
            logger.info("directory of fleet %s: %s", self._view.fleet, error)
            return False
        return True

    async def _gather(self, watch: AgentWatch) -> None:
        """Take changes for as long as a look may be old."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_jittered(self._directory_s)):
                while True:
                    await watch.receive()

    async def _read_agents(self, agent: Agent) -> None:
        question = agent.find(online=False, limit=MAX_AGENTS)
        rows = [directory_row(found) async for found in question]
        self._view.take_agents(rows, at=self._now())

    async def _read_links(self, agent: Agent) -> None:
        # After a failure all is read again: it may be another registry then.
        generation, self._generation = self._generation, None
        async with asyncio.timeout(QUESTION_S):
            answer = await agent.trust_links(generation=generation)
        if answer is not None:
            self._view.take_links(answer.links, at=self._now())
            generation = answer.generation
        self._generation = generation


def directory_row(found: FoundAgent) -> DirectoryAgent:
    """Return an agent as the view takes it."""
    return DirectoryAgent(
        node_id=found.node_id,
        address=found.address,
        name=found.name,
        tags=tuple(sorted(found.tags)),
        polo=found.polo,
        is_online=found.is_online,
    )


def _jittered(pause_s: float) -> float:
    return pause_s * random.uniform(1 - JITTER, 1 + JITTER)
