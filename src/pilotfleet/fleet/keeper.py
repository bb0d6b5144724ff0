"""Keeps one program of a fleet running.

::

    STOPPED ──start──▶ STARTING ──ready──▶ RUNNING
       ▲                  ▲  │ ended          │ ended
       │                  │  ▼                ▼
       │                  └─ WAITING ◀────────┘      0.2 s … 10 s
       │                        │ 5 quick ends in a row
     stop, from anywhere        ▼
                              FAILED

The first start is another matter: whoever asks for it is told that it failed, and
nothing is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import NotRunning, PilotError, TimedOut
from pilotfleet.fleet.plan import Role
from pilotfleet.fleet.processes import ChildProcess
from pilotfleet.transport.backoff import backoff_s
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pilotfleet.fleet.plan import Member

__all__ = ["Command", "Keeper", "MemberState", "MemberStatus"]

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0
STEADY_S: Final = 10.0
"""Whatever ends sooner after its start, or after being ready, ended quickly."""
MAX_QUICK_ENDS: Final = 5
DRAIN_GRACE_S: Final = 40.0
"""For a program that is let finish what it does; longer than its own limit."""
RUNNERS: Final = frozenset([Role.RUNNER, Role.SUBRUNNER])
LOG_CHECK_S: Final = 5.0


class MemberState(StrEnum):
    """What a program of the fleet is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    """It ended, and is started again after a pause."""
    FAILED = "failed"
    """It cannot stay up."""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A program of the fleet, at one moment."""

    name: str
    program: str
    pid: int
    """0 while there is none."""
    state: MemberState
    restarts: int
    """How often it was started again because it had ended."""
    agents: int
    """How many it hosts or serves."""
    since: float
    """Unix time at which it came into this state."""
    last_exit: str
    """How it ended the last time by itself; empty if it never did."""
    log: str
    """Path of what it says."""
    first_agent: str = ""
    """Name of the first of its agents; the others have the following numbers."""

    @property
    def hosts(self) -> list[str]:
        """Names of the agents that it hosts or serves."""
        if self.agents < 2:
            return [self.first_agent][: self.agents]
        prefix = self.first_agent.rstrip("0123456789")
        first = int(self.first_agent.removeprefix(prefix))
        return [f"{prefix}{number}" for number in range(first, first + self.agents)]


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a program now."""

    arguments: tuple[str, ...]
    """Behind the program's name."""
    environment: Mapping[str, str]

    def __repr__(self) -> str:
        # The environment holds the token of the network.
        return f"Command({self.arguments})"


class Keeper:
    """Starts one program, starts it again whenever it ends, and stops it."""

    def __init__(
        self,
        member: Member,
        home: Path,
        *,
        command: Callable[[Member], Command],
        on_ready: Callable[[Member, dict[str, Any]], None],
        on_death: Callable[[Keeper], None],
        on_failure: Callable[[PilotError], None],
    ) -> None:
        """Prepare to keep ``member``.

        Args:
            member: The program.
            home: The fleet's home.
            command: Asked before each start: addresses are known better then.
            on_ready: Told what the program says of itself when it is ready.
            on_death: Told each time that it ended by itself.
            on_failure: Told once, when it cannot stay up.
        """
        self.member = member
        self._home = home
        self._command = command
        self._on_ready = on_ready
        self._on_death = on_death
        self._on_failure = on_failure
        self._child: ChildProcess | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._state = MemberState.STOPPED
        self._since = time.time()
        self._changed_at = time.monotonic()
        self._restarts = 0
        self._last_exit = ""

    @property
    def status(self) -> MemberStatus:
        """Where it stands."""
        child = self._child
        return MemberStatus(
            name=self.member.name,
            program=self.member.program,
            pid=child.pid if child is not None and child.is_running else 0,
            state=self._state,
            restarts=self._restarts,
            agents=len(self.member.hosts),
            since=self._since,
            last_exit=self._last_exit,
            log=str(ChildProcess.log_file(self._home, self.member.name)),
            first_agent=self.member.hosts[0] if self.member.hosts else "",
        )

    async def start(self) -> None:
        """Start the program, return when it is ready, and keep it running.

        Raises:
            NotRunning: It ended instead.
            TimedOut: It was not ready in time.
        """
        try:
            child = await self._launch()
            await self._wait_ready(child)
        except BaseException:
            await self.stop()
            raise
        self._keep_on(child)

    async def stop(self, *, drain: bool = False) -> None:
        """Stop the program, and do not start it again.

        Args:
            drain: Let a worker program finish the tasks that it has begun.
        """
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
        if self._child is not None:
            if self.member.role not in RUNNERS:
                await self._child.stop()
            elif drain:
                await self._child.stop(grace_s=DRAIN_GRACE_S)
            else:
                # To a worker program the second signal says: at once.
                await self._child.stop((signal.SIGTERM, signal.SIGINT))
        self._enter(MemberState.STOPPED)

    async def replace(self, member: Member) -> None:
        """Stop the program and start it as another ``member`` of the same name.

        Where that does not come up, the old one is on its way again.

        Raises:
            PilotError: The new one did not come up.
        """
        old = self.member
        await self.stop(drain=True)
        self.member = member
        try:
            await self.start()
        except BaseException:
            self.resume(old)
            raise

    def resume(self, member: Member) -> None:
        """Start ``member`` as if it had ended just now: as often as it takes."""
        self.member = member
        self._keep_on(None)

    async def _launch(self) -> ChildProcess:
        member = self.member
        ready = ChildProcess.ready_file(self._home, member.name)
        command = self._command(member)
        try:
            self._child = await ChildProcess.start(
                member.name,
                [member.program, *command.arguments, "--ready-file", str(ready)],
                home=self._home,
                environment=command.environment,
            )
        except OSError as error:
            raise NotRunning(
                f"cannot start {member.program} ({member.name}): {error.strerror}"
            ) from None
        self._enter(MemberState.STARTING)
        return self._child

    async def _wait_ready(self, child: ChildProcess) -> None:
        self._on_ready(self.member, await child.wait_ready(self.member.ready_s))
        self._enter(MemberState.RUNNING)

    def _keep_on(self, child: ChildProcess | None) -> None:
        self._keeping = asyncio.create_task(
            self._keep(child), name=f"keeper of {self.member.name}"
        )
        self._keeping.add_done_callback(self._note_end)

    async def _keep(self, child: ChildProcess | None) -> None:
        """Start the program again whenever it ends, until it cannot stay up."""
        quick_ends = 0
        while True:
            error = await self._until_end(child)
            is_quick = time.monotonic() - self._changed_at < STEADY_S
            quick_ends = quick_ends + 1 if is_quick else 0
            self._note_death(error)
            if quick_ends >= MAX_QUICK_ENDS:
                self._fail(error, quick_ends)
                return
            pause_s = backoff_s(
                quick_ends, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S
            )
            await asyncio.sleep(pause_s)
            self._restarts += 1
            child = None

    async def _until_end(self, child: ChildProcess | None) -> PilotError:
        """Return why the program does not run, after it did or did not start."""
        try:
            if child is None:
                child = await self._launch()
                await self._wait_ready(child)
            return await self._watch(child)
        except TimedOut as error:
            if self._child is not None:
                await self._child.stop()
            return error
        except PilotError as error:
            return error

    async def _watch(self, child: ChildProcess) -> NotRunning:
        """Keep the log bounded until the program ends; return how it did."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOG_CHECK_S):
                    return await child.wait()
            if child.has_large_log:
                await run_blocking(child.bound_log)

    def _note_death(self, error: PilotError) -> None:
        exit_text = self._child.exit_text if self._child is not None else ""
        self._last_exit = exit_text or str(error)
        self._enter(MemberState.WAITING)
        self._on_death(self)

    def _fail(self, error: PilotError, ends: int) -> None:
        self._enter(MemberState.FAILED)
        self._on_failure(
            NotRunning(
                f"{self.member.name} does not stay up ({ends} quick ends in a row):"
                f" {error}",
                hint=error.hint,
            )
        )

    def _note_end(self, keeping: asyncio.Task[None]) -> None:
        """Tell of a defect: nobody keeps the program any more."""
        error = None if keeping.cancelled() else keeping.exception()
        if error is not None:
            name = self.member.name
            self._on_failure(NotRunning(f"{name} is not kept running: {error!r}"))

    def _enter(self, state: MemberState) -> None:
        self._state = state
        self._since = time.time()
        self._changed_at = time.monotonic()
