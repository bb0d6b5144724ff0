"""Serve the tasks of one agent or of many, over one daemon's socket.

The daemon offers at most ``concurrency`` tasks of each agent; they wait here for
one of ``max_processes`` places, which the agents take in turns, so none can crowd out
another. What is not finished when the connection is lost belongs to the daemon
again, so it is abandoned here.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import (
    Closed,
    ConnectionFailed,
    NotFound,
    NotRunning,
    PilotError,
)
from pilotfleet.fleet.worker.fairqueue import FairPlaces
from pilotfleet.fleet.worker.handin import HandIn
from pilotfleet.fleet.worker.job import UNWANTED, Job, Outcome
from pilotfleet.fleet.worker.reports import WorkerReports

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pilotfleet.fleet.worker.job import RunTask

__all__ = ["Worker", "WorkerConfig"]

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0
INLINE_RESULT_BYTES: Final = 256 * 1024
"""Longer results go in parts: a frame of the socket holds 1 MiB."""
PART_BYTES: Final = 512 * 1024

_Key: TypeAlias = tuple[str, str]
"""An agent, and the id of a task of it."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Settings of a worker."""

    agents: Sequence[str]
    socket: Path
    concurrency: int = 1
    """Tasks of one agent at the same time."""
    max_processes: int = 16
    """Tasks of all agents at the same time."""
    health_interval_s: float = 10.0
    """Between two health events of one agent; 0 publishes no events at all."""
    drain_s: float = 30.0
    """How long running tasks may take to end after the worker is told to stop."""


class Worker:
    """Takes offered tasks, runs each, and returns what came of it."""

    def __init__(
        self,
        config: WorkerConfig,
        run_task: RunTask,
        *,
        on_serving: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare a worker.

        Args:
            config: Whom to serve, and how.
            run_task: Does the work.
            on_serving: Called when tasks may come, after each connect.
        """
        self._config = config
        self._run_task = run_task
        self._on_serving = on_serving
        self._places = FairPlaces(config.max_processes)
        self._running: dict[_Key, asyncio.Task[None]] = {}
        self._waiting: set[_Key] = set()
        """Those of them that have not begun."""
        self._reports = WorkerReports(
            config.agents, interval_s=config.health_interval_s
        )
        self._book = self._reports.book
        self._pause_s = FIRST_PAUSE_S
        self._desk: HandIn

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then let running tasks end.

        A daemon that cannot be reached is tried again for ever.

        Raises:
            PilotError: The daemon refuses, for instance because it hosts no agent
                of that name.
        """
        while not stop.is_set():
            try:
                await self._serve_connection(stop)
            except (NotRunning, ConnectionFailed, Closed) as error:
                logger.warning("%s; trying again", error)
                pause_s = self._pause_s * random.uniform(0.5, 1.5)
                self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await stop.wait()

    async def _serve_connection(self, stop: asyncio.Event) -> None:
        """Serve over one connection until it is lost or the worker stops."""
        async with await DaemonClient.connect(self._config.socket) as client:
            self._desk = HandIn(client)
            await client.call(
                "task.serve",
                agents=list(self._config.agents),
                concurrency=self._config.concurrency,
            )
            logger.info("serving %d agents", len(self._config.agents))
            self._pause_s = FIRST_PAUSE_S
            self._on_serving()
            offers = asyncio.create_task(self._take_offers(client), name="offers")
            reports = asyncio.create_task(self._reports.run(client), name="reports")
            end = asyncio.create_task(self._drain_after(stop, client), name="drain")
            try:
                await asyncio.wait([offers, end], return_when=asyncio.FIRST_COMPLETED)
                if not stop.is_set():
                    offers.result()
            finally:
                await _cancel_all([offers, reports, end, *self._running.values()])
                await self._desk.close()
                await self._reports.end(client)

    async def _take_offers(self, client: DaemonClient) -> None:
        async for push in client.pushes():
            agent = str(push.get("agent"))
            match push.get("push"):
                case "task.offer":
                    self._start(client, agent, push["task"])
                case "task.cancel":
                    task = self._running.get((agent, str(push.get("task_id"))))
                    if task is not None:
                        task.cancel(UNWANTED)
        raise Closed("the daemon closed the connection")

    def _start(self, client: DaemonClient, agent: str, task: dict[str, Any]) -> None:
        key = agent, str(task["task_id"])
        running = asyncio.create_task(
            self._work(client, *key, str(task["task_description"])), name=f"task {key}"
        )
        self._running[key] = running
        running.add_done_callback(lambda task: self._forget(key, task))

    def _forget(self, key: _Key, task: asyncio.Task[None]) -> None:
        # A task given back may have come again before this one was done.
        if self._running.get(key) is task:
            del self._running[key]

    async def _work(
        self, client: DaemonClient, agent: str, task_id: str, text: str
    ) -> None:
        """Run one task and hand in the outcome."""
        if self._book.is_draining:
            await self._release(client, agent, task_id)
            return
        self._waiting.add((agent, task_id))
        try:
            await self._places.acquire(agent)
        finally:
            self._waiting.discard((agent, task_id))
        try:
            outcome = await self._run_one(Job(agent, task_id, text))
        finally:
            self._places.release()
        if await self._hand_in(client, agent, task_id, outcome):
            self._reports.ended(agent, task_id, outcome)
        if outcome.on_kept is not None and not client.is_closed:
            outcome.on_kept()

    async def _run_one(self, job: Job) -> Outcome:
        self._book.started(job.agent)
        ok: bool | None = None
        try:
            outcome = await self._run_task(job)
            ok = outcome.ok
        except Exception as error:  # What we are given to run may raise anything.
            logger.exception("a task of %s failed", job.agent)
            outcome = Outcome(ok=False, error=f"{type(error).__name__}: {error}")
            ok = False
        finally:
            self._book.ended(job.agent, ok=ok)
        return outcome

    async def _hand_in(
        self, client: DaemonClient, agent: str, task_id: str, outcome: Outcome
    ) -> bool:
        """Give the outcome to the daemon; tell whether it took it."""
        try:
            await self._finish(client, agent, task_id, outcome)
        except (NotFound, ConnectionFailed, Closed) as error:
            # Cancelled meanwhile, or the connection is lost and the task with it.
            logger.debug("task %s of %s: %s", task_id, agent, error)
            return False
        except PilotError as error:
            logger.warning("task %s of %s: %s", task_id, agent, error)
            await self._refuse(client, agent, task_id, error)
            return False
        return True

    async def _refuse(
        self, client: DaemonClient, agent: str, task_id: str, error: PilotError
    ) -> None:
        """End a task whose outcome the daemon did not take: it must not hang."""
        reason = f"the result could not be handed in: {error}"
        failed = Outcome(ok=False, error=reason, retryable=True)
        try:
            await self._finish(client, agent, task_id, failed)
        except PilotError:
            await self._release(client, agent, task_id)

    async def _finish(
        self, client: DaemonClient, agent: str, task_id: str, outcome: Outcome
    ) -> None:
        fields: dict[str, Any] = {
            "agent": agent,
            "task_id": task_id,
            "ok": outcome.ok,
            "result": outcome.result,
            "error": outcome.error,
            "retryable": outcome.retryable,
            "cpu_ms": outcome.wall_ms,
        }
        # A character has at most four bytes.
        is_short = len(outcome.result) <= INLINE_RESULT_BYTES // 4
        content = b"" if is_short else outcome.result.encode(errors="replace")
        if len(content) <= INLINE_RESULT_BYTES:
            await self._desk.finish(fields)
            return
        for start in range(0, len(content), PART_BYTES):
            part = base64.b64encode(content[start : start + PART_BYTES]).decode()
            await client.call("task.part", agent=agent, task_id=task_id, data=part)
        await client.call("task.finish", **fields | {"result": "", "uploaded": True})

    async def _release(self, client: DaemonClient, agent: str, task_id: str) -> None:
        # It goes back by itself when the connection closes, only later.
        with suppress(PilotError):
            await client.call("task.release", agent=agent, task_id=task_id)

    async def _drain_after(self, stop: asyncio.Event, client: DaemonClient) -> None:
        """Take no more, give back what has not begun, let the rest end."""
        await stop.wait()
        self._book.is_draining = True
        with suppress(PilotError, TimeoutError):
            async with asyncio.timeout(self._config.drain_s):
                await client.call("task.drain")
                await self._give_back(client)
                if self._running:
                    logger.info("waiting for %d tasks", len(self._running))
                    await asyncio.wait(list(self._running.values()))

    async def _give_back(self, client: DaemonClient) -> None:
        waiting = list(self._waiting)
        for key in waiting:
            self._running[key].cancel()
        await asyncio.gather(*(self._release(client, *key) for key in waiting))


async def _cancel_all(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
