"""Lines to a descriptor that may be slow, stuck or closed.

A thread of its own writes: a pipe that nobody reads stops that thread and nothing else.
It is a daemon thread, not one of ``transport.threads``, since a program that has been
told to stop must not wait for a reader that never comes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pilotfleet.fleet.monitor.outputs.health import OutputCounters

__all__ = ["LineOutput"]

logger = logging.getLogger(__name__)

MAX_LINES: Final = 10_000
MAX_BYTES: Final = 8 * 1024 * 1024
"""Waiting lines; beyond this the oldest give way."""
BATCH_BYTES: Final = 64 * 1024
DRAIN_S: Final = 1.0
"""How long the end waits for a reader."""


class LineOutput:
    """Takes lines at any time and writes them in order. Call ``close`` at the end."""

    def __init__(self, descriptor: int, counters: OutputCounters) -> None:
        """Start to write.

        Args:
            descriptor: Left open at the end.
            counters: Where lines that were lost and faults are counted.
        """
        self._descriptor = descriptor
        self._counters = counters
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._closing = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether lines can still be written."""
        return self._thread.is_alive() and not self._closing

    def write(self, line: bytes) -> None:
        """Take a line, which ends with a newline. Never waits."""
        with self._condition:
            if not self.is_open:
                self._counters.dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            while len(self._lines) > MAX_LINES or self._bytes > MAX_BYTES:
                self._bytes -= len(self._lines.popleft())
                self._counters.dropped += 1
            self._condition.notify()

    async def close(self) -> None:
        """Write what waits, for at most a second."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        await asyncio.to_thread(self._thread.join, DRAIN_S)
        with self._condition:
            self._counters.dropped += len(self._lines)
            self._lines.clear()

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                _write_all(self._descriptor, batch)
        except OSError as error:
            self._counters.errors += 1
            logger.warning("no more lines are written: %s", error.strerror)

    def _next_batch(self) -> bytes:
        """Wait for lines; return nothing when there will be none."""
        with self._condition:
            while not self._lines and not self._closing:
                self._condition.wait()
            batch = bytearray()
            while self._lines and len(batch) < BATCH_BYTES:
                batch += self._lines.popleft()
            self._bytes -= len(batch)
            return bytes(batch)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
