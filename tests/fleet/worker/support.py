"""A worker in the test's own process, whose tasks end when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilotfleet.fleet.worker.job import Job, Outcome
from pilotfleet.fleet.worker.runner import Worker, WorkerConfig
from tests.node.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.services.tasks.support import Node

__all__ = ["Desk", "Serving", "serving"]


class Desk:
    """Takes tasks and keeps each until its outcome is given."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Future[Outcome]] = {}
        self.seen: list[str] = []

    async def run(self, job: Job) -> Outcome:
        """Be the function that a worker runs tasks with."""
        text = job.text
        self.seen.append(text)
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.open[text] = outcome
        try:
            return await outcome
        finally:
            if self.open.get(text) is outcome:
                del self.open[text]

    def finish(self, text: str, result: str = "done") -> None:
        """Let a task succeed."""
        self.end(text, Outcome(ok=True, result=result))

    def end(self, text: str, outcome: Outcome | Exception) -> None:
        """Let a task end."""
        ending = self.open.pop(text)
        if isinstance(outcome, Exception):
            ending.set_exception(outcome)
        else:
            ending.set_result(outcome)

    async def has(self, count: int) -> None:
        """Wait until exactly so many tasks are open."""
        await eventually(
            lambda: len(self.open) == count, what=f"{count} open tasks: {self.open}"
        )


class Serving:
    """A worker that runs."""

    def __init__(self, config: WorkerConfig, desk: Desk) -> None:
        self.connects = 0
        self.stop = asyncio.Event()
        self.worker = Worker(config, desk.run, on_serving=self._on_serving)
        self.task = asyncio.ensure_future(self.worker.run(self.stop))

    async def connected(self, times: int = 1) -> None:
        """Wait until it has connected so often."""
        await eventually(
            lambda: self.connects >= times or self.task.done(), what="the connection"
        )
        if self.task.done():
            self.task.result()

    async def end(self) -> None:
        """Have it stop, and wait."""
        self.stop.set()
        await self.task

    def _on_serving(self) -> None:
        self.connects += 1


@contextlib.asynccontextmanager
async def serving(
    node: Node | Path, desk: Desk, *agents: str, **settings: Any
) -> AsyncIterator[Serving]:
    """Run a worker for a node, or for the socket of one that is still to come."""
    path = node if isinstance(node, Path) else node.host.config.socket
    assert path is not None
    settings = {"health_interval_s": 0.0, "drain_s": 10.0} | settings
    config = WorkerConfig(agents=agents or ("bob",), socket=path, **settings)
    served = Serving(config, desk)
    try:
        if path.exists():
            await served.connected()
        yield served
    finally:
        served.task.cancel()
        await asyncio.gather(served.task, return_exceptions=True)
