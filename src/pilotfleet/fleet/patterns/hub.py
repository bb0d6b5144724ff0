"""Hub and spoke: find workers by tag, give them tasks, collect what comes.

Durable on both sides; the decisions are those of :mod:`pilotfleet.fleet.schedule`.
"""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pilotfleet.fleet.orchestrator import Orchestrator, OrchestratorConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.fleet.agent import Agent
    from pilotfleet.fleet.schedule import TaskResult
    from pilotfleet.fleet.taskfile import TaskLine

__all__ = ["Hub"]


class Hub:
    """An agent that has others do tasks. Made by :meth:`open`."""

    def __init__(
        self, client: DaemonClient, config: OrchestratorConfig, run_id: str | None
    ) -> None:
        self._orchestrator = Orchestrator(client, config, run_id=run_id)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        agent: Agent,
        config: OrchestratorConfig,
        *,
        run_id: str | None = None,
    ) -> AsyncIterator[Hub]:
        """Prepare to run tasks over a connection of their own.

        Args:
            agent: Submits the tasks.
            config: Which tags make a worker, and how much each is given.
            run_id: The same one takes up what an earlier run has left under way.
        """
        config = replace(config, agent=await agent.hosted_name())
        async with await agent.connection() as client:
            yield cls(client, config, run_id)

    async def run(
        self, tasks: AsyncIterable[TaskLine]
    ) -> AsyncGenerator[TaskResult, None]:
        """Run tasks and yield one result for each, in the order of their ends."""
        async with aclosing(self._orchestrator.run(tasks)) as results:
            async for result in results:
                yield result

    def taken(self, task_id: str) -> None:
        """Say that a result is safe; only needed with ``awaits_taken``."""
        self._orchestrator.taken(task_id)

    async def refresh(self) -> None:
        """Look at once at who is there."""
        await self._orchestrator.refresh()

    def status(self) -> dict[str, Any]:
        """Return the numbers of workers and of tasks."""
        return self._orchestrator.status()

    def lost(self, name: str) -> None:
        """Give the tasks of a worker that is known to be dead to others."""
        self._orchestrator.lost(name, f"{name} died")
