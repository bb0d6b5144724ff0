"""The parent of a daemon's processes.

It hosts nothing: it starts the processes, starts again what ends, adds up what they
tell of their start, owns the daemon's socket, and brings connections to where they
belong. A new client belongs to the process of the default agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Final, TypeAlias

from pilotfleet.errors import NotRunning, PilotError, StorageError, error_for_code
from pilotfleet.node.processes.channel import make_pair
from pilotfleet.node.processes.member import Member, Phase
from pilotfleet.node.processes.messages import Take
from pilotfleet.node.processes.restarts import Restarts
from pilotfleet.transport.privatesocket import listen_privately

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from pilotfleet.node.config import HostConfig

__all__ = ["ProcessGroup", "Spawn"]

logger = logging.getLogger(__name__)

Spawn: TypeAlias = (
    "Callable[[int, socket.socket], Awaitable[asyncio.subprocess.Process]]"
)
"""Starts a process, by its number, with its end of a channel."""

BACKLOG: Final = 128
RELAY_BYTES: Final = 64 * 1024
LAST_WORDS_S: Final = 1.0
END_S: Final = 20.0
"""How long a process may take to end before it is killed."""


class ProcessGroup:
    """The processes of one daemon.

    Args:
        parts: What each process hosts, by its number.
        first: The number of the default agent's process.
        socket_path: Where local programs connect.
        spawn: Starts a process; it may write to a pipe as its standard error.
        pass_on: Gets whole lines that processes have written there.
        on_progress: Called during the start: agents registered, agents in all.
    """

    def __init__(
        self,
        parts: Mapping[int, HostConfig],
        *,
        first: int,
        socket_path: Path | None,
        spawn: Spawn,
        pass_on: Callable[[bytes], None],
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._total = sum(len(part.agents) for part in parts.values())
        self._members = {
            number: Member(number, len(part.agents), on_change=self._on_change)
            for number, part in parts.items()
        }
        self._first = self._members[first]
        self._socket_path = socket_path
        self._spawn = spawn
        self._pass_on = pass_on
        self._on_progress = on_progress
        self._progress = 0
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        for member in self._members.values():
            member.on_take = self._route

    @property
    def agents(self) -> int:
        """How many agents are registered."""
        return sum(member.registered for member in self._members.values())

    @property
    def addresses(self) -> dict[str, str]:
        """The address of each agent by its name; there until ``on_ready`` is over."""
        return {
            name: address
            for member in self._members.values()
            for name, address in member.addresses.items()
        }

    @property
    def pids(self) -> dict[int, int]:
        """The process ids of what runs, by number."""
        return {n: m.pid for n, m in self._members.items() if m.pid is not None}

    def stop(self) -> None:
        """Have all processes end in good order."""
        self._stop.set()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Run the processes until :meth:`stop`; cancelled, end them at once.

        Args:
            on_ready: Called when all agents of all processes are started.

        Raises:
            PilotError: A process cannot start, or the socket cannot be made.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for member in self._members.values():
                    name = f"process {member.number}"
                    tasks.create_task(self._keep(member), name=name)
                tasks.create_task(self._serve(on_ready), name="clients")
        except BaseExceptionGroup as group:
            # They mostly lack the same thing; one of them says it.
            raise _first_error(group) from None

    # Private: processes

    async def _keep(self, member: Member) -> None:
        """Run one process, and start it again when it ends by itself."""
        restarts = Restarts(asyncio.get_running_loop().time)
        while True:
            restarts.begin()
            error = await self._run_once(member)
            if self._stop.is_set():
                return
            if not member.was_ready:
                raise error
            pause_s = restarts.pause_s()
            logger.error(
                "%s; its %d agents start again in %.1f s", error, member.agents, pause_s
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()
                    return

    async def _run_once(self, member: Member) -> PilotError:
        """Run a process to its end; return why it ended."""
        try:
            process, end = await self._start(member)
        except OSError as error:
            return NotRunning(f"cannot start a process: {error.strerror}")
        member.begin(process.pid, end)
        helpers = [
            asyncio.create_task(self._end_when_told(process)),
            asyncio.create_task(self._relay(process)),
        ]
        try:
            status = await process.wait()
            await member.hear_out()
            await asyncio.wait(helpers[1:], timeout=LAST_WORDS_S)
        finally:
            await _end(process)
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            member.end()
        return self._reason(member, status)

    async def _start(
        self, member: Member
    ) -> tuple[asyncio.subprocess.Process, socket.socket]:
        ours, theirs = make_pair()
        with theirs:
            try:
                return await self._spawn(member.number, theirs), ours
            except BaseException:
                ours.close()
                raise

    async def _end_when_told(self, process: asyncio.subprocess.Process) -> None:
        await self._stop.wait()
        await _end(process)

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what a process writes: one process alone owns the log file."""
        if process.stderr is None:
            return
        rest = b""
        while data := await process.stderr.read(RELAY_BYTES):
            lines, newline, rest = (rest + data).rpartition(b"\n")
            if newline or len(rest) > RELAY_BYTES:
                whole, rest = (lines + newline, rest) if newline else (rest, b"")
                self._pass_on(whole)
        if rest:
            self._pass_on(rest)

    def _reason(self, member: Member, status: int) -> PilotError:
        title = f"process {member.number} of the daemon"
        failure = member.failure
        if failure is None:
            how = f"exit status {status}" if status >= 0 else f"signal {-status}"
            return NotRunning(f"{title} ended ({how})")
        if member.was_ready:
            return NotRunning(f"{title} cannot start: {failure.message}")
        return error_for_code(failure.code, failure.message, hint=failure.hint or None)

    # Private: what processes tell

    def _on_change(self) -> None:
        self._changed.set()
        done = sum(member.done for member in self._members.values())
        if done > self._progress and not self._is(Phase.READY):
            self._progress = done
            self._on_progress(done, self._total)

    def _is(self, phase: Phase) -> bool:
        return all(member.phase >= phase for member in self._members.values())

    async def _wait_for(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._changed.clear()
            await self._changed.wait()

    def _route(self, take: Take, connection: socket.socket) -> None:
        """Bring a connection to its process; one that is not there ends it."""
        member = self._members.get(take.to)
        if member is None or member.phase < Phase.SERVING:
            connection.close()
        else:
            member.send(take, connection)

    # Private: clients

    async def _serve(self, on_ready: Callable[[], None]) -> None:
        # As with one process: whoever finds the socket finds all that it offers.
        await self._wait_for(lambda: self._is(Phase.SERVING))
        accepting = None
        try:
            if self._socket_path is not None:
                listener = _listen(self._socket_path)
                accepting = asyncio.create_task(
                    self._accept(listener), name="new clients"
                )
            await self._wait_for(lambda: self._is(Phase.READY))
            on_ready()
            for member in self._members.values():
                member.addresses.clear()
            await self._stop.wait()
        finally:
            if accepting is not None:
                assert self._socket_path is not None
                with contextlib.suppress(OSError):
                    self._socket_path.unlink()
                accepting.cancel()
                await asyncio.gather(accepting, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        """Hand new clients to the first process; they wait while it does not run."""
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                await self._wait_for(lambda: self._first.phase >= Phase.SERVING)
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    # Too many open files, or a client that is gone again.
                    logger.warning("cannot accept a client: %s", error.strerror)
                    await asyncio.sleep(random.uniform(0.1, 0.2))
                    continue
                try:
                    # It may have ended while nobody came.
                    await self._wait_for(lambda: self._first.phase >= Phase.SERVING)
                except asyncio.CancelledError:
                    connection.close()
                    raise
                self._route(Take(to=self._first.number), connection)


def _listen(path: Path) -> socket.socket:
    try:
        return listen_privately(path, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot make socket {path}: {reason}") from error


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process in good order, or in the end by force."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        logger.error("process %d did not end in %g s: killed", process.pid, END_S)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
