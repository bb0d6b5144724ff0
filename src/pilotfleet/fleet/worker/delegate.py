"""A sub-orchestrator: a worker whose way to do a task is to hand it down.

To the one above it is a worker like any other. Below it is an orchestrator of the
clusters that are its own for now: its home, and those whose own sub-orchestrator died,
as the hub's ``fleet.tree`` events say (:mod:`pilotfleet.fleet.patterns.tree`). Until
the first of them it has its home.

Its run is called after its agent and its tasks after those that it was given, so that
it takes up after a restart what it left under way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import DecodeError, PilotError
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.orchestrator import Orchestrator, OrchestratorConfig
from pilotfleet.fleet.patterns.handover import (
    unwrap_result,
    unwrap_task,
    wrap_result,
    wrap_task,
)
from pilotfleet.fleet.patterns.tree import HEARTBEAT_S, TREE_TOPIC
from pilotfleet.fleet.schedule import ScheduleConfig
from pilotfleet.fleet.subscription import read_payload
from pilotfleet.fleet.worker.job import UNWANTED, Outcome
from pilotfleet.protocol.services.fleetevents import HEALTH_TOPIC, STOPPED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from types import TracebackType

    from pilotfleet.fleet.schedule import TaskResult
    from pilotfleet.fleet.taskfile import TaskLine
    from pilotfleet.fleet.worker.job import Job

__all__ = ["Delegate", "DelegateConfig"]

logger = logging.getLogger(__name__)

PAUSE_S: Final = 0.5
"""Before a lost connection is made again."""
LAST_WORDS_S: Final = 1.0
UNMATCHED_S: Final = 5.0
"""A task whose tags nobody below carries goes back so soon: elsewhere somebody may."""


@dataclass(frozen=True, slots=True)
class DelegateConfig:
    """Settings of a sub-orchestrator."""

    agent: str
    """The hosted agent."""
    socket: Path
    cluster: str
    """Tag of the cluster whose home it is."""
    tree: str
    """Name of the hub."""
    level: int = 1
    """1: over workers; above, over other sub-orchestrators."""
    each: int = 2
    """Tasks that each one below is given at a time."""


class _TreeEvent(msgspec.Struct):
    parents: dict[str, str]
    lost: dict[str, int] = {}


class Delegate:
    """Hands tasks down. An asynchronous context manager that works meanwhile."""

    def __init__(self, config: DelegateConfig) -> None:
        self._config = config
        self._clusters = [config.cluster]
        self._open: dict[str, tuple[TaskLine, asyncio.Future[TaskResult]]] = {}
        """Tasks that were given to us, by id."""
        self._lines: asyncio.Queue[TaskLine] = asyncio.Queue()
        self._orchestrator: Orchestrator | None = None
        self._group = asyncio.TaskGroup()
        self._work: list[asyncio.Task[None]] = []
        self._lost: dict[str, int] = {}
        """The deaths that we know of, by name; each has a number of its own."""
        self._started = time.monotonic()
        self._completed = self._failed = 0

    @property
    def clusters(self) -> tuple[str, ...]:
        """Tags of the clusters that are ours for now."""
        return tuple(self._clusters)

    async def __aenter__(self) -> Self:
        # A group: a defect in one of them must end the program, which is then started
        # again. One that went on to tell that it lives would be given tasks for ever.
        start = (await self._group.__aenter__()).create_task
        self._work = [
            start(self._orchestrate(), name="delegate: orchestrate"),
            start(self._again(self._follow), name="delegate: follow"),
            start(self._again(self._tell), name="delegate: health"),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._work:
            task.cancel()
        # What ended the context goes on as it is, in no group of errors.
        await self._group.__aexit__(None, None, None)

    async def run(self, job: Job) -> Outcome:
        """Have a task done below; given up, it is given up there as well.

        Failures come up as they are; that the task is not to blame does, too.
        """
        started = time.monotonic()
        try:
            line = unwrap_task(job.task_id, job.text)
        except DecodeError as error:
            return Outcome(ok=False, error=str(error))
        if self._config.level > 1:
            line = wrap_task(line)
        result = await self._hand_down(line)
        if self._config.level > 1:
            result = unwrap_result(result)
        self._completed += result.status == "SUCCEEDED"
        self._failed += result.status != "SUCCEEDED"
        outcome = wrap_result(result)
        wall_ms = round((time.monotonic() - started) * 1000)
        return replace(
            outcome, wall_ms=wall_ms, on_kept=lambda: self._taken(job.task_id)
        )

    async def _hand_down(self, line: TaskLine) -> TaskResult:
        future: asyncio.Future[TaskResult] = asyncio.get_running_loop().create_future()
        self._open[line.id] = line, future
        self._lines.put_nowait(line)
        try:
            return await future
        except asyncio.CancelledError as error:
            # Else the task will be offered again, and its attempts are taken up then.
            if UNWANTED in error.args and self._orchestrator is not None:
                self._orchestrator.cancel(line.id)
            raise
        finally:
            if self._open.get(line.id, (line, None))[1] is future:
                del self._open[line.id]

    def _taken(self, task_id: str) -> None:
        if self._orchestrator is not None:
            self._orchestrator.taken(task_id)

    # Below

    async def _orchestrate(self) -> None:
        """Be the orchestrator below, again after each loss of the daemon."""
        while True:
            try:
                async with await self._connected() as client:
                    await self._run_below(client)
            except PilotError as error:
                logger.warning("%s; trying again", error)
            finally:
                self._orchestrator = None
            await asyncio.sleep(PAUSE_S)

    async def _run_below(self, client: DaemonClient) -> None:
        config = OrchestratorConfig(
            agent=self._config.agent,
            groups=lambda: self._clusters,
            awaits_taken=True,
            schedule=ScheduleConfig(
                concurrency=self._config.each, unmatched_s=UNMATCHED_S
            ),
        )
        # Another one has to hear of everything again; it knows what is under way.
        self._lines = asyncio.Queue()
        for line, _ in self._open.values():
            self._lines.put_nowait(line)
        orchestrator = Orchestrator(client, config, run_id=self._config.agent)
        self._orchestrator = orchestrator
        async with aclosing(orchestrator.run(self._given(self._lines))) as results:
            async for result in results:
                waiting = self._open.get(result.id)
                # A task may be given up while its result is on the way.
                if waiting is not None and not waiting[1].done():
                    waiting[1].set_result(result)

    async def _given(self, lines: asyncio.Queue[TaskLine]) -> AsyncIterator[TaskLine]:
        """Yield the lines as they come, but for those given up before their turn."""
        while True:
            line = await lines.get()
            waiting = self._open.get(line.id)
            if waiting is not None and waiting[0] is line:
                yield line

    async def _connected(self) -> DaemonClient:
        return await DaemonClient.connect(self._config.socket)

    # Above

    async def _again(self, work: Any) -> None:
        """Keep a connection to the hub for one purpose."""
        while True:
            with suppress(PilotError):
                socket, name = self._config.socket, self._config.agent
                async with await Agent.connect(socket, name=name) as agent:
                    await work(agent)
            await asyncio.sleep(PAUSE_S)

    async def _follow(self, agent: Agent) -> None:
        """Take over which clusters are ours."""
        events = await agent.subscribe(TREE_TOPIC, broker=self._config.tree)
        async with events:
            async for event in events:
                await self.take_tree(event.payload)

    async def take_tree(self, payload: bytes) -> None:
        """Take the payload of a ``fleet.tree`` event; one of another form is none."""
        tree = read_payload(payload, _TreeEvent)
        if tree is None:
            return
        self._note_deaths(tree.lost)
        await self._take_over(tree.parents)

    def _note_deaths(self, lost: dict[str, int]) -> None:
        before, self._lost = self._lost, lost
        for name, number in lost.items():
            if before.get(name) != number and self._orchestrator is not None:
                self._orchestrator.lost(name, f"{name} died")

    async def _take_over(self, parents: dict[str, str]) -> None:
        own = sorted(tag for tag, name in parents.items() if name == self._config.agent)
        if own == sorted(self._clusters):
            return
        logger.info("clusters: %s", ", ".join(own) or "none")
        self._clusters = own
        if self._orchestrator is not None:
            await self._orchestrator.refresh()

    async def _tell(self, agent: Agent) -> None:
        """Publish our health, and that of those below, rolled up."""
        connected = time.monotonic()
        try:
            while True:
                connected_s = round(time.monotonic() - connected, 1)
                health = {**self.health(), "connected_s": connected_s}
                await agent.publish(
                    HEALTH_TOPIC, health, broker=self._config.tree, wait=False
                )
                await asyncio.sleep(HEARTBEAT_S)
        except asyncio.CancelledError:
            with suppress(PilotError, TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    last = {**self.health(), "status": STOPPED}
                    await agent.publish(HEALTH_TOPIC, last, broker=self._config.tree)
            raise

    def health(self) -> dict[str, Any]:
        """Return our health event: our own, and that of those below, rolled up."""
        below = self._orchestrator.status() if self._orchestrator is not None else {}
        return {
            "agent": self._config.agent,
            "status": "busy" if self._open else "idle",
            "tasks_completed": self._completed,
            "tasks_failed": self._failed,
            "uptime_hours": round((time.monotonic() - self._started) / 3600, 4),
            "level": self._config.level,
            "clusters": self._clusters,
            "workers": below.get("workers", 0),
            "workers_busy": below.get("busy", 0),
            "interval_s": HEARTBEAT_S,
        }
