"""Runs tasks on the workers of a fleet, through the socket of one daemon.

The decisions are made in :mod:`pilotfleet.fleet.schedule`. This shell reads tasks
while the schedule has room, refreshes what it knows about workers, carries calls to
the daemon and pushes back, and hands results out. Nothing polls for a task.

With a ``run_id`` of an earlier run it goes on with that one: the daemon still has all
attempts at tasks whose results were not taken. So a program that keeps its tasks, the
run's id and the results may be killed at any moment, and so may the daemon.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.client.hosted import hosted_agents
from pilotfleet.errors import Closed, PilotError, Unavailable
from pilotfleet.fleet.actions import Inspect
from pilotfleet.fleet.dispatch import Dispatch
from pilotfleet.fleet.schedule import (
    Action,
    Cancel,
    Collect,
    Finished,
    Schedule,
    ScheduleConfig,
    Submit,
    TaskResult,
    Update,
)
from pilotfleet.fleet.workerwatch import WorkerWatch

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Awaitable,
        Callable,
        Iterable,
        Sequence,
    )

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.fleet.roster import WorkerInfo
    from pilotfleet.fleet.taskfile import TaskLine

__all__ = ["Orchestrator", "OrchestratorConfig", "TaskResult"]

MAX_CALLS: Final = 512
"""Calls to the daemon under way; its own bound is 1,024 a connection."""
MAX_COLLECTED: Final = 500
"""Task ids in one call."""
WATCH_AGAIN_S: Final = 30.0
"""Where the daemon or the registry refuses to tell who comes and goes."""
LOOK_S: Final = 0.25
"""After news of workers, for more of it."""
SETTLE_S: Final = 5.0
"""How long the daemon may take at the end to hear what is not wanted any more."""


@dataclass(frozen=True, slots=True)
class OrchestratorConfig:
    """Settings of an orchestrator."""

    tags: tuple[str, ...] = ()
    """Only agents with all of these tags are workers."""
    agent: str | None = None
    """The hosted agent that submits; None is the daemon's default one."""
    refresh_s: float = 5.0
    """Between looks at who is there, where the registry does not tell who comes and
    goes (extension ``watch``). Longer costs less, and notices later."""
    deliver_within_s: float = 60.0
    """A worker that cannot be told about its task for this long has lost it. Waiting
    for other deliveries of the daemon does not count."""
    select: Callable[[WorkerInfo], bool] | None = None
    """Which of the agents with the tags are workers; None for all."""
    groups: Callable[[], Sequence[str]] | None = None
    """Asked at each look: only agents that carry one of these tags as well."""
    offset: float = 0.0
    """Workers are taken in a ring; where to begin, as a share of it. Several that use
    the same workers begin at different places."""
    quiet_s: float = 60.0
    """When the source has had nothing to add for so long, or has ended, attempts of an
    earlier run whose tasks it has not named are cancelled: those tasks are done."""
    awaits_taken: bool = False
    """Results stay with the daemon until :meth:`Orchestrator.taken` is called for each;
    otherwise one is taken for safe as soon as the next one is asked for."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


class Orchestrator:
    """Gives tasks to workers and yields what became of them.

    Uses the client alone: nobody else may read its pushes meanwhile.
    """

    def __init__(
        self,
        client: DaemonClient,
        config: OrchestratorConfig | None = None,
        *,
        run_id: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._config = config or OrchestratorConfig()
        self._clock = clock
        self._schedule = Schedule(
            self._config.schedule, run_id=run_id or os.urandom(16).hex()
        )
        self._continues = run_id is not None
        self._results: asyncio.Queue[TaskResult | None] = asyncio.Queue()
        self._has_room = asyncio.Event()
        self._has_all = False
        self._calls: set[asyncio.Future[None]] = set()
        self._slots = asyncio.Semaphore(MAX_CALLS)
        self._collected: list[str] = []
        self._dispatch = Dispatch(
            client,
            self._slots,
            as_agent=self._as_agent(),
            deliver_within_s=self._config.deliver_within_s,
            clock=clock,
            start=self._start,
            refused=self._refused,
        )
        self._own: str | None = None
        self._workers = WorkerWatch(client, self._as_agent())
        self._look: asyncio.TimerHandle | None = None
        self._quiet: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None

    @property
    def worker_count(self) -> int:
        """Workers known at this moment."""
        return self._schedule.worker_count

    def status(self) -> dict[str, int]:
        """Return the numbers of ``workers`` and tasks at this moment.

        Workers are ``busy`` or ``resting`` (after failures); tasks are ``open``, and
        of these ``waiting`` for a worker; ``retried`` ones took more than one attempt.
        """
        return self._schedule.status()

    def lost(self, agent: str, reason: str) -> None:
        """Say that a worker is dead: what it had is done by others at once.

        By address or by name; nothing happens if it is none of ours.
        """
        self._schedule.lost(agent, reason, self._clock())
        self._work()

    def cancel(self, task_id: str) -> None:
        """Let go of a task: it is cancelled, and has no result."""
        self._schedule.cancel(task_id, self._clock())
        self._work()

    async def refresh(self) -> None:
        """Look at once at who is there, not only after a time.

        Raises:
            PilotError: Discovery fails; the workers known stay in use.
        """
        await self._refresh()

    def taken(self, task_id: str) -> None:
        """Say that a result is safe; only needed with ``awaits_taken``."""
        self._schedule.taken(task_id)
        self._work()

    async def run(
        self, tasks: AsyncIterable[TaskLine]
    ) -> AsyncGenerator[TaskResult, None]:
        """Run tasks and yield one result for each, in the order of their ends.

        Ends when all tasks of the source are done; a source may go on for ever. Each
        id stands for one task in all the life of a run. When the caller stops early,
        what is under way is left to the workers, and the result that was yielded last
        counts as not taken.

        Raises:
            PilotError: The daemon went away, or refuses what is needed.
        """
        # What has ended meanwhile is pushed before the watch is answered, and more
        # than fits the client would hold up the answer if nobody read.
        helpers = [self._help(self._read_pushes())]
        try:
            if self._continues:
                await self._adopt()
            await self._client.call("task.watch", **self._as_agent())
            await self._refresh()
            helpers += [self._help(self._feed(tasks)), self._help(self._keep_fresh())]
            while (result := await self._results.get()) is not None:
                yield result
                if not self._config.awaits_taken:
                    self.taken(result.id)
            for helper in helpers:
                if helper.done() and not helper.cancelled():
                    helper.result()
            await self._settle()
        finally:
            await self._stop(helpers)

    # Helpers of a run

    def _help(self, helper: Awaitable[None]) -> asyncio.Future[None]:
        future = asyncio.ensure_future(helper)
        future.add_done_callback(self._helper_done)
        return future

    async def _adopt(self) -> None:
        """Find the attempts of an earlier run at the daemon."""
        cursor = ""
        while True:
            page = await self._client.call(
                "task.open",
                prefix=self._schedule.prefix,
                cursor=cursor,
                **self._as_agent(),
            )
            for row in page.get("tasks", ()):
                texts = [str(row.get(name)) for name in ("task_id", "to", "status")]
                self._schedule.adopt(*texts)
            cursor = str(page.get("next_cursor") or "")
            if not cursor:
                return

    async def _feed(self, tasks: AsyncIterable[TaskLine]) -> None:
        self._await_quiet()
        async for line in tasks:
            if self._quiet is not None:
                self._quiet.cancel()
            while not self._schedule.has_room:
                self._has_room.clear()
                await self._has_room.wait()
            self._schedule.add(line, self._clock())
            self._work()
            self._await_quiet()
        self._give_up_past()
        self._has_all = True
        self._work()

    def _await_quiet(self) -> None:
        if self._schedule.has_past:
            loop = asyncio.get_running_loop()
            self._quiet = loop.call_later(self._config.quiet_s, self._give_up_past)

    def _give_up_past(self) -> None:
        self._schedule.give_up_past()
        self._work()

    async def _read_pushes(self) -> None:
        async for push in self._client.pushes():
            match push.get("push"):
                case "task.update":
                    self._on_update(push)
                case "watch" if self._workers.take(push):
                    self._look_soon()
        raise Closed("the daemon closed the connection")

    async def _keep_fresh(self) -> None:
        """Hear who comes and goes; look again and again where nobody tells."""
        retry_at = 0.0
        while True:
            is_told = False
            # Discovery may fail for a while; the workers known stay in use.
            if self._clock() >= retry_at:
                try:
                    is_told = await self._workers.follow(self._groups())
                except PilotError:
                    retry_at = self._clock() + WATCH_AGAIN_S
            await asyncio.sleep(self._config.refresh_s)
            if is_told and self._workers.is_told:
                # Nothing is asked, but what ``select`` and ``groups`` say may differ.
                self._look_now()
                continue
            with suppress(PilotError):
                await self._refresh()

    def _look_soon(self) -> None:
        # Workers that start together come together.
        if self._look is None:
            loop = asyncio.get_running_loop()
            self._look = loop.call_later(LOOK_S, self._look_now)

    def _look_now(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        # It may have ended since: then it knows nobody.
        if self._workers.is_told:
            self._set_workers(self._workers.workers())

    async def _refresh(self) -> None:
        await self._own_address()
        self._set_workers(await self._workers.search(self._groups()))

    def _groups(self) -> list[tuple[str, ...]]:
        """Return the sets of tags that make an agent a worker."""
        tags = self._config.tags
        if self._config.groups is None:
            return [tags]
        return [(*tags, group) for group in self._config.groups()]

    def _set_workers(self, found: Iterable[WorkerInfo]) -> None:
        own = self._own
        workers = [
            info for info in found if info.address != own and self._is_worker(info)
        ]
        start = int(self._config.offset * len(workers))
        self._schedule.set_workers([*workers[start:], *workers[:start]], self._clock())
        self._work()

    def _is_worker(self, info: WorkerInfo) -> bool:
        return self._config.select is None or self._config.select(info)

    async def _own_address(self) -> str:
        if self._own is None:
            own = ""
            async for row in hosted_agents(self._client):
                if self._config.agent in (None, row.get("name")):
                    own = str(row.get("address", ""))
                    break
            self._own = own
        return self._own

    def _helper_done(self, helper: asyncio.Future[None]) -> None:
        if not helper.cancelled() and helper.exception() is not None:
            self._results.put_nowait(None)

    async def _settle(self) -> None:
        """Let cancellations and collections under way reach the daemon.

        It tells of the end of a cancelled attempt before it answers the call, so
        what there is to collect is known when the calls are done.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while self._calls:
                    await asyncio.wait(self._calls)
                await self._flush_collected()

    async def _stop(self, helpers: Sequence[asyncio.Future[None]]) -> None:
        for timer in (self._timer, self._quiet, self._look):
            if timer is not None:
                timer.cancel()
        self._look = None
        reader, *others = helpers
        try:
            await _end([*others, *self._calls])
            # While somebody still reads pushes, which may be before the answers.
            await self._workers.close()
        finally:
            await _end([reader])

    # Between the schedule and the daemon

    def _work(self) -> None:
        """Do what the schedule wants, and be called again when it next may."""
        while (action := self._schedule.next_action()) is not None:
            self._act(action)
        if self._schedule.has_room:
            self._has_room.set()
        if self._has_all and not self._schedule.open_count:
            self._results.put_nowait(None)
            self._has_all = False
        deadline = self._schedule.next_timer()
        if deadline != self._timer_at:
            self._arm(deadline)

    def _arm(self, deadline: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = deadline
        if deadline is not None:
            delay = max(0.0, deadline - self._clock())
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        self._schedule.handle_timer(self._clock())
        self._work()

    def _act(self, action: Action) -> None:
        match action:
            case Submit():
                self._dispatch.submit(action)
            case Cancel(wire_id):
                self._dispatch.cancel(wire_id)
            case Inspect(wire_id):
                self._start(self._inspect(wire_id))
            case Collect(wire_id):
                if not self._collected:
                    self._start(self._collect_soon())
                self._collected.append(wire_id)
            case Finished(result):
                self._results.put_nowait(result)

    def _start(self, call: Awaitable[None]) -> None:
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def _refused(self, wire_id: str, error: PilotError) -> None:
        is_for_now = isinstance(error, Unavailable)
        reason, now = str(error), self._clock()
        self._schedule.submit_failed(wire_id, reason, now, is_for_now=is_for_now)
        self._work()

    async def _collect_soon(self) -> None:
        # One turn later everything that arrived in the same read is there as well.
        await asyncio.sleep(0)
        await self._flush_collected()

    async def _flush_collected(self) -> None:
        while self._collected:
            batch = self._collected[:MAX_COLLECTED]
            del self._collected[:MAX_COLLECTED]
            # What is not marked is pushed again in a later run, and then marked. The
            # rest is not left behind: it would keep others from being collected.
            with suppress(PilotError):
                async with self._slots:
                    await self._client.call(
                        "task.collect", task_ids=batch, **self._as_agent()
                    )

    def _on_update(self, push: dict[str, Any]) -> None:
        wire_id = str(push.get("task_id"))
        if not self._schedule.is_ours(wire_id):
            return
        is_cut = "results" not in push and push.get("result_size", 0) > 0
        is_wanted = push.get("status") == "SUCCEEDED" and self._schedule.is_live(
            wire_id
        )
        if is_cut and is_wanted:
            self._start(self._fetch(push))
        else:
            self._apply(push, str(push.get("results", "")))

    async def _inspect(self, wire_id: str) -> None:
        """Ask how an attempt ended that an earlier run has submitted."""
        try:
            async with self._slots:
                answer = await self._client.call(
                    "task.show", task_id=wire_id, **self._as_agent()
                )
        except PilotError as error:
            reason = f"how the attempt ended could not be read: {error}"
            self._apply({"task_id": wire_id, "status": "EXPIRED", "error": reason}, "")
        else:
            self._on_update(_ended_push(answer.get("submitted") or {}, wire_id))

    async def _fetch(self, push: dict[str, Any]) -> None:
        """Get a result that was too long for a push, then apply the update."""
        pieces: list[str] = []
        offset: int | None = 0
        try:
            while offset is not None:
                async with self._slots:
                    answer = await self._client.call(
                        "task.result",
                        task_id=push["task_id"],
                        offset=offset,
                        **self._as_agent(),
                    )
                pieces.append(str(answer.get("content", "")))
                offset = answer.get("next_offset")
        except PilotError as error:
            reason = f"the result could not be fetched: {error}"
            lost = {**push, "status": "FAILED", "error": reason, "retryable": True}
            self._apply(lost, "")
        else:
            self._apply(push, "".join(pieces))

    def _apply(self, push: dict[str, Any], result: str) -> None:
        update = Update(
            wire_id=str(push.get("task_id")),
            status=str(push.get("status", "")),
            result=result,
            reason=str(push.get("error") or push.get("justification", "")),
            is_retryable=push.get("retryable") is True,
            is_reachable=push.get("reachable") is not False,
            is_delivered=push.get("delivered") is not False,
        )
        self._schedule.update(update, self._clock())
        self._work()

    def _as_agent(self) -> dict[str, Any]:
        return {"agent": self._config.agent} if self._config.agent else {}


async def _end(running: Sequence[asyncio.Future[None]]) -> None:
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _ended_push(row: dict[str, Any], wire_id: str) -> dict[str, Any]:
    """Return a row of ``task.show`` as the push that somebody else was sent."""
    push = {**row, "task_id": wire_id}
    push["justification"] = row.get("status_justification", "")
    if row.get("result_type") == "file":
        push["results"] = row.get("result_name", "")
    return push
