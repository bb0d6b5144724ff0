"""The process of a command: started, fed, read and ended from the event loop.

asyncio's own subprocesses cost four times the CPU: a thread that waits, three
transports and as many stream objects for each. Here the kernel says through a
descriptor that the process has ended, and its pipes are plain readers of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Child"]

READ_BYTES: Final = 64 * 1024


class Child:
    """One running command in a process group of its own. Must be ended.

    What the command leaves running is killed when it ends: the result is complete
    then, and whoever holds its pipes open must not hold up the worker.
    """

    def __init__(
        self,
        command: Sequence[str],
        data: bytes,
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        max_output: int,
        max_errors: int,
    ) -> None:
        """Start the command with ``data`` on its standard input.

        Args:
            command: The program and its arguments.
            data: What the program may read; it need not.
            folder: Where it runs; None is where we run.
            environment: Its whole environment; None is ours.
            max_output: Bytes of standard output; with more, it is killed.
            max_errors: Bytes kept of the end of its standard error.

        Raises:
            OSError: It cannot be started.
        """
        self._loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=folder,
            env=environment,
            # A group of its own, so that all that it starts can be killed.
            start_new_session=True,
        )
        self._unsent = memoryview(data)
        self._max_output = max_output
        self._max_errors = max_errors
        self._ended = asyncio.Event()
        self.output = bytearray()
        self.errors = b""
        self.is_too_long = False
        """True when it wrote more than ``max_output``."""
        self._watch()

    @property
    def status(self) -> int:
        """The exit status, negative for a signal; once it has ended."""
        status = self._process.returncode
        assert status is not None, "the command runs still"
        return int(status)

    async def wait(self) -> None:
        """Wait until the command has ended and all it wrote was read."""
        await self._ended.wait()

    async def end(self) -> None:
        """Kill the command and what it started, unless it has ended, and reap it."""
        if not self._ended.is_set():
            self._kill_group()
            await self._ended.wait()

    # What the loop calls

    def _watch(self) -> None:
        for pipe in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(pipe.fileno(), False)
        self._loop.add_reader(self._stdout.fileno(), self._read_output)
        self._loop.add_reader(self._stderr.fileno(), self._read_errors)
        self._feed()
        if self._unsent:
            self._loop.add_writer(self._stdin.fileno(), self._feed)
        try:
            exited = os.pidfd_open(self._process.pid)
        except (AttributeError, OSError):  # Not Linux, or one of before 2019.
            threading.Thread(target=self._wait_in_thread, daemon=True).start()
        else:
            self._loop.add_reader(exited, self._on_exit_descriptor, exited)

    def _feed(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[
                    os.write(self._stdin.fileno(), self._unsent) :
                ]
        except BlockingIOError:
            return
        except BrokenPipeError:
            # A command need not read what it is given.
            self._unsent = memoryview(b"")
        self._close(self._stdin)

    def _read_output(self) -> bool:
        data = self._read(self._stdout)
        self.output += data
        if len(self.output) > self._max_output:
            self.is_too_long = True
            self._close(self._stdout)
            self._kill_group()
            return False
        return bool(data)

    def _read_errors(self) -> bool:
        data = self._read(self._stderr)
        self.errors = (self.errors + data)[-self._max_errors :]
        return bool(data)

    def _on_exit_descriptor(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        self._on_exit()

    def _on_exit(self) -> None:
        # Before it is reaped: until then nobody else can get its number.
        self._kill_group()
        self._process.wait()
        while self._read_output():
            pass
        while self._read_errors():
            pass
        for pipe in (self._stdin, self._stdout, self._stderr):
            self._close(pipe)
        self._ended.set()

    # Private

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def _stderr(self) -> IO[bytes]:
        assert self._process.stderr is not None
        return self._process.stderr

    def _read(self, pipe: IO[bytes]) -> bytes:
        """Return what is there; nothing at the end, too."""
        if pipe.closed:
            return b""
        try:
            data = os.read(pipe.fileno(), READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            self._close(pipe)
        return data

    def _close(self, pipe: IO[bytes]) -> None:
        if not pipe.closed:
            self._loop.remove_reader(pipe.fileno())
            self._loop.remove_writer(pipe.fileno())
            pipe.close()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _wait_in_thread(self) -> None:
        self._process.wait()
        # The loop may be closed by now: then nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_exit)
