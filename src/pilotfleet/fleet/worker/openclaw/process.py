"""The process of a gateway: started, watched for its end, ended with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Final

from pilotfleet.fleet.exitstatus import describe_exit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["GatewayProcess"]

TAIL_BYTES: Final = 2_000
"""Kept of the end of what it prints."""
MAX_LINES: Final = 6
MAX_WORDS: Final = 600
"""Characters of its last words in a message."""
READ_SIZE: Final = 16 * 1024
STOP_GRACE_S: Final = 5.0
PR_SET_PDEATHSIG: Final = 1
"""From ``linux/prctl.h``."""

_STAMP: Final = re.compile(r"\x1b\[[0-9;]*m|^\d{4}-\d\d-\d\dT\S+")
"""Colours, and the time that a line begins with."""


class GatewayProcess:
    """One process and its group. Must be ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._tail = b""
        self._reading = asyncio.create_task(self._read(), name="gateway output")

    @classmethod
    async def start(
        cls, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]
    ) -> GatewayProcess:
        """Start ``command`` in ``folder``.

        Raises:
            OSError: It cannot be started.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=folder,
            env=environment,
            # A group of its own, so that all that it starts can be ended.
            start_new_session=True,
            preexec_fn=_end_with_worker,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """The process ID, and that of its group."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    @property
    def last_words(self) -> str:
        """What it printed last, in one line."""
        lines = self._tail.decode(errors="replace").splitlines()
        said = [_STAMP.sub("", line).strip() for line in lines]
        return (
            "; ".join(filter(None, said[-MAX_LINES:]))[:MAX_WORDS] or "it said nothing"
        )

    async def wait(self) -> str:
        """Wait until it ends; return how, and its last words if it ended by itself."""
        status = await self._process.wait()
        if status < 0:
            return describe_exit(status)
        await asyncio.wait([self._reading], timeout=1.0)
        return f"{describe_exit(status)}: {self.last_words}"

    async def end(self) -> None:
        """End the group: ask, and after a moment kill. Nothing of it runs on."""
        if self.is_running:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_GRACE_S):
                    await self._process.wait()
        self._signal(signal.SIGKILL)
        await self._process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(READ_SIZE):
            self._tail = (self._tail + data)[-TAIL_BYTES:]

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def _end_with_worker() -> None:
    """Have the kernel end this process when the worker is gone, even by SIGKILL.

    Called in the child. A gateway takes more than a gigabyte, and nobody else knows
    where to find one whose worker was killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
