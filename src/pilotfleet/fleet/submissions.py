"""Tasks that one program submits for an agent, and waits for.

One connection to the daemon serves all of them: it watches the agent's tasks, and
each update finds the handle of its task.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import Busy, Closed, ConnectionFailed, NotFound, PilotError
from pilotfleet.fleet.schedule import TaskResult

if TYPE_CHECKING:
    from collections.abc import Generator

    from pilotfleet.client.daemon import DaemonClient

__all__ = ["Submissions", "TaskHandle"]

MAX_OPEN: Final = 10_000
"""Handles that wait; a daemon keeps as many open tasks of an agent."""
_ENDS: Final = frozenset(["SUCCEEDED", "FAILED", "DECLINED", "CANCELLED", "EXPIRED"])


class TaskHandle:
    """A task that was submitted. Await it for the :class:`TaskResult`."""

    __slots__ = ("_future", "_owner", "_started", "target", "task_id")

    def __init__(self, owner: Submissions, task_id: str, target: str) -> None:
        self.task_id = task_id
        self.target = target
        """Who does it, as it was named."""
        self._owner = owner
        self._started = time.monotonic()
        self._future: asyncio.Future[TaskResult] = (
            asyncio.get_running_loop().create_future()
        )

    def __repr__(self) -> str:
        return f"<TaskHandle {self.task_id} to {self.target}>"

    def __await__(self) -> Generator[Any, None, TaskResult]:
        """Wait for the end of the task, however it ends. May be cancelled.

        Raises:
            ConnectionFailed: The daemon went away. It goes on with the task.
        """
        return asyncio.shield(self._future).__await__()

    @property
    def is_done(self) -> bool:
        """Whether the task has ended."""
        return self._future.done()

    async def cancel(self) -> None:
        """Give the task up; awaiting it then gives a result that says so.

        Nothing happens to a task that has ended.
        """
        await self._owner.cancel(self)

    def _end(self, status: str, result: str, error: str) -> None:
        if self._future.done():
            return
        wall_ms = round((time.monotonic() - self._started) * 1000, 3)
        self._future.set_result(
            TaskResult(
                id=self.task_id,
                status=status,
                agent=self.target,
                result=result,
                attempts=1,
                wall_ms=wall_ms,
                error=error,
            )
        )

    def _fail(self, error: PilotError) -> None:
        if not self._future.done():
            self._future.set_exception(error)
            # Nobody has to wait for it.
            self._future.exception()


class Submissions:
    """The open tasks of one agent, over a connection of their own."""

    def __init__(self, client: DaemonClient) -> None:
        self._client = client
        self._handles: dict[str, TaskHandle] = {}
        self._fetches: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to watch the agent's tasks."""
        await self._client.call("task.watch")
        self._reader = asyncio.create_task(self._read(), name="task updates")

    async def close(self) -> None:
        """Stop waiting; what was submitted goes on."""
        running = [*self._fetches, *([self._reader] if self._reader else ())]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.close()
        self._give_up(Closed("the agent was closed; its task goes on"))

    async def submit(self, target: str, text: str, **options: Any) -> TaskHandle:
        """Hand a task to the daemon. It is on disk when this returns.

        Raises:
            NotFound: The target cannot be resolved.
            Busy: Too many tasks are open.
        """
        if len(self._handles) >= MAX_OPEN:
            raise Busy(f"{MAX_OPEN} tasks are open; wait for some of them")
        handle = TaskHandle(self, str(uuid.uuid4()), target)
        # Before the call: updates may overtake its answer.
        self._handles[handle.task_id] = handle
        try:
            await self._client.call(
                "task.submit",
                target=target,
                task=text,
                task_id=handle.task_id,
                wait=False,
                **options,
            )
        except BaseException:
            self._handles.pop(handle.task_id, None)
            raise
        return handle

    async def cancel(self, handle: TaskHandle) -> None:
        """Give a task up."""
        if handle.is_done:
            return
        try:
            await self._client.call("task.cancel", task_id=handle.task_id)
        except NotFound:
            return  # It has ended meanwhile, and its end is on its way.

    async def _read(self) -> None:
        async for push in self._client.pushes():
            if push.get("push") == "task.update":
                self._on_update(push)
        self._give_up(ConnectionFailed("the daemon closed the connection"))

    def _on_update(self, push: dict[str, Any]) -> None:
        task_id = str(push.get("task_id"))
        status = str(push.get("status"))
        if status not in _ENDS or task_id not in self._handles:
            return
        handle = self._handles.pop(task_id)
        fetch = asyncio.create_task(self._take(handle, status, push))
        self._fetches.add(fetch)
        fetch.add_done_callback(self._fetches.discard)

    async def _take(
        self, handle: TaskHandle, status: str, push: dict[str, Any]
    ) -> None:
        error = str(push.get("error") or push.get("justification") or "")
        result = str(push.get("results", ""))
        try:
            if "results" not in push and push.get("result_size", 0) > 0:
                result = await self._fetch(handle.task_id)
            await self._client.call("task.collect", task_ids=[handle.task_id])
        except PilotError as failure:
            handle._fail(failure)
        else:
            handle._end(status, result, "" if status == "SUCCEEDED" else error)

    async def _fetch(self, task_id: str) -> str:
        """Get a result that was too long for a push."""
        pieces: list[str] = []
        offset: int | None = 0
        while offset is not None:
            answer = await self._client.call(
                "task.result", task_id=task_id, offset=offset
            )
            pieces.append(str(answer.get("content", "")))
            offset = answer.get("next_offset")
        return "".join(pieces)

    def _give_up(self, error: PilotError) -> None:
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            handle._fail(error)
