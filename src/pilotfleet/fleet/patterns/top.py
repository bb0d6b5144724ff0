"""The top of a hierarchical fleet: a hub whose workers are sub-orchestrators.

Tasks go down in :mod:`~pilotfleet.fleet.patterns.handover`, and results come up.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import PilotError
from pilotfleet.fleet.patterns.handover import unwrap_result, wrap_task
from pilotfleet.fleet.patterns.hierarchy import TOP_TAG, Topology
from pilotfleet.fleet.patterns.hub import Hub
from pilotfleet.fleet.patterns.tree import Tree

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Collection,
    )

    from pilotfleet.fleet.agent import Agent
    from pilotfleet.fleet.orchestrator import OrchestratorConfig
    from pilotfleet.fleet.roster import WorkerInfo
    from pilotfleet.fleet.schedule import TaskResult
    from pilotfleet.fleet.taskfile import TaskLine

__all__ = ["Hierarchy"]

UNMATCHED_S: Final = 600.0
"""How long tasks wait when no sub-orchestrator lives. All of them may be on a machine
that starts again; which tags workers have is not looked at here."""


class Hierarchy:
    """Gives tasks to the sub-orchestrators of the last level. Made by :meth:`open`."""

    def __init__(self, topology: Topology) -> None:
        self._hub: Hub | None = None
        self._looking: asyncio.Task[None] | None = None
        self.tree = Tree(topology, on_change=self._on_change)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        agent: Agent,
        topology: Topology,
        config: OrchestratorConfig,
        *,
        run_id: str | None = None,
    ) -> AsyncIterator[Hierarchy]:
        """Prepare to run tasks, and tell who is under whom from now on.

        Args:
            agent: The hub; its broker is the one that all sub-orchestrators use.
            topology: Who is there.
            config: As for a hub; tags and concurrency are the topology's.
            run_id: The same one takes up what an earlier run has left under way.
        """
        made = cls(topology)
        capacity = max(cluster.capacity for cluster in topology.top)
        config = replace(
            config,
            tags=(TOP_TAG,),
            select=made.is_alive,
            schedule=replace(
                config.schedule, concurrency=capacity, unmatched_s=UNMATCHED_S
            ),
        )
        async with Hub.open(agent, config, run_id=run_id) as hub:
            made._hub = hub
            watch = asyncio.create_task(made.tree.run(agent), name="tree")
            try:
                yield made
            finally:
                tasks = [watch, *([made._looking] if made._looking else ())]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def run(
        self, tasks: AsyncIterable[TaskLine]
    ) -> AsyncGenerator[TaskResult, None]:
        """Run tasks and yield one result for each, in the order of their ends.

        A result names the worker that did the task.
        """
        assert self._hub is not None
        async with aclosing(self._hub.run(_wrapped(tasks))) as results:
            async for result in results:
                yield unwrap_result(result)

    def taken(self, task_id: str) -> None:
        """Say that a result is safe; only needed with ``awaits_taken``."""
        if self._hub is not None:
            self._hub.taken(task_id)

    def status(self) -> dict[str, Any]:
        """Return numbers of workers and tasks, and a row for each cluster."""
        clusters = self.tree.status()
        leaves = [row for row in clusters if row["level"] == 1]
        return {
            **(self._hub.status() if self._hub is not None else {}),
            "workers": sum(row["workers"] for row in leaves),
            "busy": sum(row["workers_busy"] for row in leaves),
            "clusters": clusters,
            "reparented": self.tree.reparented,
        }

    def lost(self, name: str) -> None:
        """Have others take over from an agent that is known to be dead."""
        self.tree.lost(name)

    def is_alive(self, sub: WorkerInfo) -> bool:
        """Return whether a sub-orchestrator gets tasks now.

        The registry calls one that died online for minutes.
        """
        return sub.name in self.tree.live

    def _on_change(self, dead: Collection[str]) -> None:
        if self._hub is None:
            return
        for name in dead:
            self._hub.lost(name)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="look for subs")

    async def _look(self) -> None:
        assert self._hub is not None
        with suppress(PilotError):
            await self._hub.refresh()


async def _wrapped(tasks: AsyncIterable[TaskLine]) -> AsyncIterator[TaskLine]:
    async for line in tasks:
        yield wrap_task(line)
