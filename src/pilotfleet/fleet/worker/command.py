"""Run a command for a task: its text on stdin, the result on stdout."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["MAX_RESULT_BYTES", "CommandRunner", "Outcome"]

MAX_RESULT_BYTES: Final = 1_048_576
"""Longest result text (tasks-and-polo.md section 2.3)."""
STDERR_TAIL_BYTES: Final = 2_000
READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run of a task."""

    ok: bool
    result: str = ""
    error: str = ""
    retryable: bool = False
    """The run was cut short from outside: another one may well succeed."""
    wall_ms: int = 0


class CommandRunner:
    """Runs one command line for any number of tasks."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        timeout_s: float,
        folder: Path | None = None,
    ) -> None:
        self._command = tuple(command)
        self._timeout_s = timeout_s
        self._folder = folder

    async def run(self, text: str) -> Outcome:
        """Run the command on ``text``; never raises for what the command does.

        May be cancelled: the command and everything it started is killed.
        """
        started = time.monotonic()
        try:
            process = await self._spawn()
        except OSError as error:
            # Nothing that is wrong with this machine is the task's fault.
            return Outcome(
                ok=False,
                error=f"cannot start {self._command[0]}: {error.strerror}",
                retryable=True,
            )
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._attend(process, text, started)
        except TimeoutError:
            return Outcome(
                ok=False,
                error=f"killed after the time limit of {self._timeout_s:g} s",
                retryable=True,
                wall_ms=_since(started),
            )
        finally:
            await _end(process)

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._folder,
            # A group of its own, so that all that it starts can be killed.
            start_new_session=True,
        )

    async def _attend(
        self, process: asyncio.subprocess.Process, text: str, started: float
    ) -> Outcome:
        """Feed and read the command until it has ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(_feed(process.stdin, text.encode(errors="replace")))
            errors = group.create_task(_read_tail(process.stderr))
            output = await _read_bounded(process.stdout)
            if output is None:
                _kill_group(process)
        status = await process.wait()
        wall_ms = _since(started)
        if output is None:
            error = f"the result is longer than {MAX_RESULT_BYTES} bytes"
            return Outcome(ok=False, error=error, wall_ms=wall_ms)
        if status == 0:
            result = output.decode(errors="replace")
            return Outcome(ok=True, result=result, wall_ms=wall_ms)
        return Outcome(
            ok=False,
            error=_describe(status, errors.result()),
            retryable=status < 0,
            wall_ms=wall_ms,
        )


async def _feed(stdin: asyncio.StreamWriter, data: bytes) -> None:
    # A command need not read what it is given.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stdin.write(data)
        await stdin.drain()
    stdin.close()


async def _read_bounded(stream: asyncio.StreamReader) -> bytes | None:
    """Return everything, or none if it is more than a result may be."""
    output = bytearray()
    while data := await stream.read(READ_BYTES):
        output += data
        if len(output) > MAX_RESULT_BYTES:
            return None
    return bytes(output)


async def _read_tail(stream: asyncio.StreamReader) -> str:
    """Read to the end and return the last of it."""
    tail = b""
    while data := await stream.read(READ_BYTES):
        tail = (tail + data)[-STDERR_TAIL_BYTES:]
    return tail.decode(errors="replace").strip()


def _describe(status: int, errors: str) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            return f"killed by signal {-status} ({name})"
        return f"killed by signal {-status}"
    return f"exit status {status}: {errors}" if errors else f"exit status {status}"


def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave nothing behind: not the command, and not what it left running."""
    if process.returncode is None:
        _kill_group(process)
        await process.wait()


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)
