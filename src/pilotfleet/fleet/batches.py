"""The tasks that a fleet was given: which are open, what came out, who waits for it.

The journal on the disk is the truth; here are the counts and the waiting. A batch is
a namespace for task ids. For daemons an id stands for one task for ever, so to them
a task is ``batch/made/id``: a batch that was forgotten and made again has other tasks.
"""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import Busy, Closed, InvalidState, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from pilotfleet.fleet.journal import Journal
    from pilotfleet.fleet.schedule import TaskResult
    from pilotfleet.fleet.taskfile import TaskLine

__all__ = ["MAX_BATCHES", "MAX_OPEN", "MAX_TASKS", "Batch", "Batches"]

MAX_BATCHES: Final = 1_000
"""More push out the oldest that are done."""
MAX_TASKS: Final = 5_000_000
"""Tasks of all batches; more push out the oldest batches that are done."""
MAX_OPEN: Final = 1_000_000
"""Tasks without a result."""
RESULT_PAGE: Final = 64
"""Results read at a time; each may be a mebibyte."""


class Batch:
    """What is known of a batch without looking at the disk."""

    __slots__ = (
        "call",
        "created",
        "failed",
        "followers",
        "name",
        "retried",
        "succeeded",
        "tasks",
    )

    def __init__(self, name: str, created: float) -> None:
        self.name = name
        self.created = created
        """Unix seconds."""
        self.call = f"{name}/{round(created * 1e6)}"
        """What the names of its tasks begin with; a batch's name has no slash."""
        self.tasks = 0
        self.succeeded = 0
        self.failed = 0
        self.retried = 0
        """Tasks that took more than one attempt."""
        self.followers = 0

    @property
    def open(self) -> int:
        """Tasks without a result."""
        return self.tasks - self.succeeded - self.failed

    def count(self, result: TaskResult) -> None:
        """Count a result."""
        self.succeeded += result.status == "SUCCEEDED"
        self.failed += result.status != "SUCCEEDED"
        self.retried += result.attempts > 1

    def status(self) -> dict[str, Any]:
        """Return the counts."""
        return {
            "name": self.name,
            "tasks": self.tasks,
            "open": self.open,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "retried": self.retried,
            "created": self.created,
        }


class Batches:
    """All batches of a fleet."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._batches: dict[str, Batch] = {}
        self._bells: dict[str, asyncio.Event] = {}
        self._given: set[str] = set()
        """What the present reader of lines has and has not finished."""
        self._adding = asyncio.Lock()
        self._additions: set[asyncio.Future[int]] = set()
        """Under way; some of them were given up by who asked for them."""
        self._news = asyncio.Event()
        self._returned = asyncio.Event()
        self._is_closed = False
        self._is_over = False

    async def load(self) -> None:
        """Read from the disk what there is."""
        for info in await self._journal.batches():
            batch = self._batches.get(info.name)
            if batch is None:
                batch = self._batches[info.name] = Batch(info.name, info.created)
            batch.tasks = info.tasks
            batch.succeeded = info.succeeded
            batch.failed = info.failed
            batch.retried = info.retried

    @property
    def open_count(self) -> int:
        """Tasks without a result."""
        return sum(batch.open for batch in self._batches.values())

    def status(self) -> list[dict[str, Any]]:
        """Return the counts of each batch, the oldest first."""
        return [batch.status() for batch in self._batches.values()]

    def find(self, name: str) -> Batch:
        """Return a batch.

        Raises:
            NotFound: There is none of that name.
        """
        batch = self._batches.get(name)
        if batch is None:
            raise NotFound(
                f"there is no batch {name!r}", hint="see: pilotctl fleet status"
            )
        return batch

    # Giving tasks

    async def add(self, name: str, lines: Sequence[TaskLine]) -> int:
        """Take tasks on and return how many are new; they are on the disk then.

        Cancelled, it takes them on all the same: what is on the disk must be counted
        and given out.

        Raises:
            AlreadyExists: The batch has another task of the same id.
            Busy: There are too many already.
        """
        adding = asyncio.ensure_future(self._add(name, lines))
        self._additions.add(adding)
        adding.add_done_callback(self._additions.discard)
        return await asyncio.shield(adding)

    async def _add(self, name: str, lines: Sequence[TaskLine]) -> int:
        async with self._adding:
            await self._make_room(name, len(lines))
            room = max(0, MAX_OPEN - self.open_count)
            added = await self._journal.add(name, lines, most=room)
            batch = self._batches.get(name)
            if batch is None:
                batch = await self._made(name)
            batch.tasks += added
        self._news.set()
        return added

    async def lines(self) -> AsyncGenerator[TaskLine, None]:
        """Yield what has no result: higher priority first, then older.

        Waits for more until :meth:`close`. For one reader at a time; a new reader is
        given everything that has no result, whatever an earlier one was given.
        """
        self._given.clear()
        await self._recount()
        while not self._is_closed:
            self._news.clear()
            async with aclosing(self._look()) as lines:
                async for line in lines:
                    self._given.add(line.id)
                    yield line
                    if self._news.is_set():
                        # What was added may be more urgent than what comes next.
                        break
            await self._news.wait()
        # Whoever reads ends with the last line, so not before all results are safe.
        while self._given:
            self._returned.clear()
            await self._returned.wait()

    async def _recount(self) -> None:
        """Count what an earlier reader was still keeping when it was stopped."""
        async with self._adding:
            await self.load()
        for name in list(self._bells):
            self._ring(name)

    async def _made(self, name: str) -> Batch:
        """Return a batch that is new on the disk, which knows when it was made."""
        for info in await self._journal.batches():
            if info.name == name:
                batch = self._batches[name] = Batch(name, info.created)
                return batch
        raise NotFound(f"batch {name!r} was forgotten")

    async def _look(self) -> AsyncGenerator[TaskLine, None]:
        """Yield what was not given yet, in one look through the journal.

        What is finished meanwhile may still come up, so those given before are noted
        now. Those that this look gives do not come up again in it.
        """
        before = set(self._given)
        async with aclosing(self._journal.iter_pending()) as pending:
            async for name, line in pending:
                batch = self._batches.get(name)
                # One that is being made is news as soon as it is known.
                task = f"{batch.call}/{line.id}" if batch is not None else ""
                if task and task not in before:
                    yield msgspec.structs.replace(line, id=task)

    def close(self) -> None:
        """Give out no more; the reader of lines ends when all it has is returned."""
        self._is_closed = True
        self._news.set()

    async def end(self) -> None:
        """Have whoever waits for results wait no longer; let additions end."""
        self._is_over = True
        for name in list(self._bells):
            self._ring(name)
        await asyncio.gather(*self._additions, return_exceptions=True)

    # Taking results

    async def finish(self, result: TaskResult) -> TaskResult | None:
        """Keep a result; returns it under the task's own id, when it counts.

        It is on the disk before anybody hears of it. None when the task had a result
        already, or its batch is gone.
        """
        return (await self.finish_all([result]))[0]

    async def finish_all(
        self, results: Sequence[TaskResult]
    ) -> list[TaskResult | None]:
        """Do the same for many, in one write."""
        known: list[tuple[Batch, TaskResult] | None] = []
        for result in results:
            name, made, task_id = result.id.split("/", 2)
            batch = self._batches.get(name)
            if batch is not None and batch.call == f"{name}/{made}":
                known.append((batch, dataclasses.replace(result, id=task_id)))
            else:
                known.append(None)
        rows = [(each[0].name, each[1]) for each in known if each is not None]
        are_kept = iter(await self._journal.finish_all(rows) if rows else ())
        counted: list[TaskResult | None] = []
        for each in known:
            if each is None or not next(are_kept):
                counted.append(None)
                continue
            batch, own = each
            batch.count(own)
            counted.append(own)
        for name in {batch.name for batch, _ in filter(None, known)}:
            self._ring(name)
        return counted

    def returned(self, task_id: str) -> None:
        """Note that a task, by the name it was given under, is not under way any more.

        After its result was kept: what is on the disk as open could be given again.
        """
        self._given.discard(task_id)
        self._returned.set()

    async def results(
        self, name: str, *, after: int = 0, follow: bool = False
    ) -> AsyncGenerator[tuple[int, TaskResult], None]:
        """Yield numbered results of a batch; ``follow`` ends when the batch is done.

        Raises:
            NotFound: There is no such batch.
            Closed: The fleet was stopped before it was done.
        """
        batch = self.find(name)
        batch.followers += 1
        try:
            while True:
                # Before the look at the disk: what comes in between rings it.
                bell = self._bells.setdefault(name, asyncio.Event())
                is_done = not batch.open
                page = await self._journal.results(name, after, RESULT_PAGE)
                for after, result in page:
                    yield after, result
                if page:
                    continue
                if is_done or not follow:
                    return
                await bell.wait()
                if self._is_over:
                    raise Closed("the fleet has stopped")
        finally:
            batch.followers -= 1

    async def forget(self, name: str) -> None:
        """Forget a batch that is done, and its results.

        Raises:
            NotFound: There is no such batch.
            InvalidState: It is not done.
        """
        batch = self.find(name)
        if batch.open:
            raise InvalidState(f"batch {name!r} has {batch.open} open tasks")
        await self.drop(name)

    async def drop(self, name: str) -> None:
        """Forget a batch if there is one, also with open tasks.

        Those are not given out again; only while none are, nothing of it is done.
        """
        self._batches.pop(name, None)
        await self._journal.forget(name)
        self._ring(name)

    def _ring(self, name: str) -> None:
        bell = self._bells.pop(name, None)
        if bell is not None:
            bell.set()

    async def _make_room(self, name: str, more: int) -> None:
        is_new = name not in self._batches
        for batch in list(self._batches.values()):
            tasks = sum(each.tasks for each in self._batches.values())
            if len(self._batches) + is_new <= MAX_BATCHES and tasks + more <= MAX_TASKS:
                return
            if not batch.open and not batch.followers and batch.name != name:
                await self.forget(batch.name)
        if len(self._batches) + is_new > MAX_BATCHES:
            raise Busy(f"the fleet has {len(self._batches)} unfinished batches")
