"""A fleet that runs: its programs, its tasks, and whoever controls it.

The launcher keeps the programs alive, the journal keeps tasks and results, the
pattern brings the two together. Each may lose the others for a while: a result is on
the disk before anybody is told, so that a pattern which lost its daemon, or a
controller that was killed, begins again with what has no result.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from pilotfleet.errors import (
    AlreadyExists,
    Busy,
    InvalidState,
    StorageError,
)
from pilotfleet.fleet.batches import Batches
from pilotfleet.fleet.control import (
    CONTROL_SOCKET,
    Down,
    Forget,
    Results,
    Rollout,
    Scale,
    Status,
    Submit,
)
from pilotfleet.fleet.controlserver import ControlServer
from pilotfleet.fleet.journal import Journal
from pilotfleet.fleet.launcher import Launcher
from pilotfleet.fleet.livefigures import LiveFigures
from pilotfleet.fleet.patterns import open_pattern
from pilotfleet.fleet.spec import check_spec
from pilotfleet.fleet.work import Work
from pilotfleet.transport.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType

    from pilotfleet.fleet.control import Request
    from pilotfleet.fleet.controlserver import Reply
    from pilotfleet.fleet.launcher import MemberStatus, Part
    from pilotfleet.fleet.patterns import PatternRun
    from pilotfleet.fleet.spec import FleetSpec
    from pilotfleet.fleet.taskfile import TaskLine
    from pilotfleet.transport.tls import TlsConfig

__all__ = ["DESCRIPTION", "DRAIN_S", "JOURNAL", "Controller"]

logger = logging.getLogger(__name__)

JOURNAL: Final = "journal.db"
DESCRIPTION: Final = "fleet.json"
"""Name and pattern of the fleet."""
DRAIN_S: Final = 30.0
"""How long tasks under way may take when the fleet is stopped. What is not done then
is done when it is up again."""


class Controller:
    """One running fleet, as an asynchronous context manager.

    Entering takes the home, :meth:`start` starts the programs, and :meth:`run` works
    until it is told to stop. Leaving stops everything, in order.
    """

    def __init__(
        self,
        spec: FleetSpec,
        home: Path,
        *,
        part: Part | None = None,
        progress: Callable[[str], None] | None = None,
        tls: TlsConfig | None = None,
    ) -> None:
        """Prepare the fleet whose files live in ``home``.

        Args:
            spec: What it consists of.
            home: Its folder; made when it is missing.
            part: Which part of it runs on this machine; None for all.
            progress: Told in a few words what is being done.
            tls: How to check a registry that runs already; None for plain TCP.
        """
        self.spec = spec
        self.home = home
        self.part = part
        self._progress = progress or (lambda _: None)
        self._tls = tls
        self._listeners: set[Callable[[str], None]] = set()
        self._state = "starting"
        self._since = time.time()
        self._stack = AsyncExitStack()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        """Set when not even tasks under way are waited for."""
        self._is_over = asyncio.Event()
        self._change: asyncio.Future[Any] | None = None
        """A scale or rollout under way."""
        self._figures = LiveFigures(spec.fleet.name)
        self._server: ControlServer | None = None
        self.launcher: Launcher
        self.batches: Batches
        self.work: Work

    @property
    def has_hub(self) -> bool:
        """Whether tasks are given out on this machine."""
        return self.part is None or self.part.index == 1

    async def __aenter__(self) -> Self:
        """Take the home, its journal and its socket; starts no program yet.

        Raises:
            AlreadyExists: A fleet runs there.
            StorageError: The home cannot be used.
        """
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def start(self) -> None:
        """Start every program; returns when all of them are up.

        Raises:
            PilotError: One is not, and why. The others are stopped at the end.
        """
        await self._stack.enter_async_context(self.launcher)
        self._state = "up"

    async def _open(self) -> None:
        enter = self._stack.enter_async_context
        self._stack.enter_context(_lock_home(self.home))
        self._journal = await enter(Journal(self.home / JOURNAL))
        self.batches = Batches(self._journal)
        await self.batches.load()
        self._stack.push_async_callback(self.batches.end)
        self.work = Work(self.batches, self._open_pattern)
        self.launcher = Launcher(
            self.spec, self.home, part=self.part, progress=self._say, tls=self._tls
        )
        self.launcher.deaths = self._on_death
        server = ControlServer(self.home / CONTROL_SOCKET, self._answer)
        self._server = await server.__aenter__()
        # Under the lock, or it could be the socket of the next one.
        self._stack.callback(server.stop_listening)
        _describe(self.spec, self.home)

    async def _close(self) -> None:
        """Stop everything; whoever asked for that hears of it last."""
        self._state = "stopping"
        try:
            await self._stack.aclose()
        finally:
            self._is_over.set()
            if self._server is not None:
                await self._server.__aexit__(None, None, None)

    async def run(self) -> None:
        """Heal, give out tasks and keep results until :meth:`stop`.

        Only after :meth:`start`.

        Raises:
            NotRunning: A program of the fleet does not stay up.
            StorageError: Results cannot be kept any more.
        """
        jobs: list[Coroutine[Any, Any, None]] = [self.launcher.run()]
        if self.has_hub:
            jobs += [self.work.run(), self._figures.run(self.launcher.hub_socket)]
        running = [asyncio.ensure_future(job) for job in jobs]
        stop = asyncio.ensure_future(self._stop.wait())
        hurry = asyncio.ensure_future(self._hurry.wait())
        try:
            await asyncio.wait([*running, stop], return_when=asyncio.FIRST_COMPLETED)
            _raise_first(running)
            if self.has_hub and not self._hurry.is_set():
                await self._drain([*running, hurry])
            _raise_first(running)
        finally:
            change = [self._change] if self._change is not None else []
            for task in (*running, stop, hurry, *change):
                task.cancel()
            await asyncio.gather(*running, stop, hurry, *change, return_exceptions=True)

    def stop(self, *, now: bool = False) -> None:
        """Have :meth:`run` return, ``now`` without an end of tasks under way."""
        self._stop.set()
        if now:
            self._hurry.set()

    def status(self) -> dict[str, Any]:
        """Return the state of everything, as ``fleet status`` shows it."""
        batches = self.batches.status()
        total = {
            key: sum(batch[key] for batch in batches)
            for key in ("tasks", "open", "succeeded", "failed", "retried")
        }
        return {
            "name": self.spec.fleet.name,
            "pattern": str(self.spec.fleet.pattern),
            "state": self._state,
            "home": str(self.home),
            "pid": os.getpid(),
            "part": str(self.part) if self.part is not None else None,
            "since": self._since,
            "agents": self.spec.workers.count,
            "monitor": self.launcher.monitor_url,
            "members": [_member(member) for member in self.launcher.members()],
            "tasks": total,
            "batches": batches,
            **self._figures.status(),
            **self.work.status(),
        }

    # Parts of a run

    async def _drain(self, until: Sequence[asyncio.Future[Any]]) -> None:
        """Give out no more, and let what is under way end, or the first of these."""
        self._state = "draining"
        self._say("draining")
        self.work.end()
        await asyncio.wait(until, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)

    async def _open_pattern(self) -> AbstractAsyncContextManager[PatternRun]:
        entries = self.launcher.entries()
        return await open_pattern(self.spec, entries, run_id=self._journal.run_id)

    def _on_death(self, member: MemberStatus) -> None:
        self.work.lost(member.hosts)

    # What is asked on the socket

    async def _answer(self, request: Request, reply: Reply) -> dict[str, Any]:
        match request:
            case Status():
                return self.status()
            case Submit(batch, lines):
                return await self._submit(batch, lines)
            case Results(batch, after, follow):
                found = self.batches.results(batch, after=after, follow=follow)
                async with aclosing(found) as results:
                    async for seq, result in results:
                        await reply.item({"seq": seq, "result": result})
                return {}
            case Forget(batch):
                await self.batches.forget(batch)
                return {}
            case Scale(workers):
                return await self._alone(lambda: self._scale(workers), reply)
            case Rollout(batch, spec):
                return await self._alone(lambda: self._rollout(batch, spec), reply)
            case Down(now):
                with self._told(reply):
                    self.stop(now=now)
                    await self._is_over.wait()
                return {}

    async def _submit(self, batch: str, lines: list[TaskLine]) -> dict[str, Any]:
        if not self.has_hub:
            raise InvalidState(
                f"part {self.part} of the fleet gives out no tasks",
                hint="submit on the machine of part 1",
            )
        if self._stop.is_set():
            raise InvalidState("the fleet is being stopped")
        added = await self.batches.add(batch, lines)
        return {"added": added, "tasks": self.batches.find(batch).tasks}

    async def _alone(
        self, change: Callable[[], Awaitable[dict[str, Any]]], reply: Reply
    ) -> dict[str, Any]:
        """Change the fleet, one change at a time.

        One whose client leaves is carried on: half of it would be worse than all.
        """
        if self._state != "up" or self._stop.is_set():
            raise InvalidState(f"the fleet is {self._state}, and cannot be changed now")
        if self._change is not None and not self._change.done():
            raise Busy("another scale or rollout is under way")
        self._change = asyncio.ensure_future(change())
        self._change.add_done_callback(_log_failure)
        with self._told(reply):
            return await asyncio.shield(self._change)

    async def _scale(self, count: int) -> dict[str, Any]:
        spec = self.spec.with_count(count)
        await self.launcher.scale(count)
        self.spec = spec
        # Who gives tasks out, and how many to whom, may be others now.
        self.work.renew()
        return {"workers": count}

    async def _rollout(self, batch: int, spec: FleetSpec | None) -> dict[str, Any]:
        if spec is not None:
            check_spec(spec)
        await self.launcher.rollout(batch=batch, spec=spec, check=self.work.try_out)
        if spec is not None:
            self.spec = self.launcher.spec
            # How many tasks a worker is given, and how often they are tried.
            self.work.renew()
        return {"members": len(self.launcher.members())}

    @contextmanager
    def _told(self, reply: Reply) -> Iterator[None]:
        """Let a client hear what is being done."""
        self._listeners.add(reply.say)
        try:
            yield
        finally:
            self._listeners.discard(reply.say)

    def _say(self, doing: str) -> None:
        self._progress(doing)
        for listener in self._listeners:
            listener(doing)


def _member(member: MemberStatus) -> dict[str, Any]:
    return {
        "name": member.name,
        "program": member.program,
        "state": str(member.state),
        "pid": member.pid,
        "agents": member.agents,
        "restarts": member.restarts,
        "since": member.since,
        "last_exit": member.last_exit,
        "log": str(member.log),
    }


def _describe(spec: FleetSpec, home: Path) -> None:
    """Write down whose home this is, for who looks at it when nothing runs there."""
    text = {"name": spec.fleet.name, "pattern": str(spec.fleet.pattern)}
    try:
        replace_file(home / DESCRIPTION, msgspec.json.encode(text) + b"\n")
    except OSError as error:
        raise StorageError(
            f"cannot use {home} as the fleet's home: {error.strerror}"
        ) from None


def _raise_first(running: Sequence[asyncio.Future[None]]) -> None:
    """Raise why a job ended, if one did before it should."""
    for job in running:
        if job.done():
            job.result()


def _log_failure(change: asyncio.Future[Any]) -> None:
    if not change.cancelled() and (error := change.exception()) is not None:
        logger.warning("%s", error)


@contextmanager
def _lock_home(home: Path) -> Iterator[None]:
    """Keep other controllers out of the home: they would write the same files.

    Raises:
        AlreadyExists: One runs there.
        StorageError: The folder cannot be made.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        lock = os.open(home / "control.lock", flags, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot use {home} as the fleet's home: {error.strerror}"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise AlreadyExists(
            f"a fleet runs in {home} already",
            hint="stop it with: pilotctl fleet down; or choose another --home",
        ) from None
    finally:
        os.close(lock)
