"""Virtual time: events in order, and processes that wait for them.

A process is a generator. It yields a number of seconds to sleep, or a function that
starts something and is given how to resume the process with its outcome. The same seed
gives the same events in the same order, and ``trace`` is a digest of them.
"""

from __future__ import annotations

import heapq
import random
import struct
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from hashlib import blake2b
from itertools import count
from typing import Any, TypeAlias

Resume: TypeAlias = Callable[[Any], None]
Command: TypeAlias = "float | Callable[[Resume], None]"
Process: TypeAlias = Generator[Command, Any, Any]

WALL_START = 1_795_000_000.0
_MARK = struct.Struct("<dIII")


class Kernel:
    """A clock that jumps from event to event."""

    def __init__(self, seed: int) -> None:
        self.time = 0.0
        self.rng = random.Random(seed)
        self._events: list[
            tuple[float, int, Callable[..., Awaitable[None] | None], Any]
        ] = []
        self._numbers = count()
        self._digest = blake2b(digest_size=16)
        self.events = 0

    # The two clocks of `pilotfleet.transport.clock.Clock`.

    def now(self) -> float:
        """Return the virtual monotonic time."""
        return self.time

    def wall(self) -> float:
        """Return the virtual unix time."""
        return WALL_START + self.time

    @property
    def trace(self) -> str:
        """A digest of everything that happened so far."""
        return self._digest.copy().hexdigest()

    def mark(self, who: int, what: int, how: int) -> None:
        """Make something that happened now part of the trace."""
        self._digest.update(_MARK.pack(self.time, who, what, how))

    def at(
        self, when: float, act: Callable[..., Awaitable[None] | None], *args: Any
    ) -> None:
        """Have ``act`` called at a time; what is due together keeps its order."""
        heapq.heappush(self._events, (when, next(self._numbers), act, args))

    def after(
        self, delay: float, act: Callable[..., Awaitable[None] | None], *args: Any
    ) -> None:
        """Have ``act`` called in so many seconds."""
        self.at(self.time + delay, act, *args)

    def spawn(self, process: Process) -> None:
        """Begin a process in this instant."""
        self.at(self.time, self._step, process, None)

    async def run(self, until: float, done: Callable[[], bool] | None = None) -> None:
        """Let everything happen that is due by ``until``, or until it is ``done``."""
        events = self._events
        while events and events[0][0] <= until and not (done and done()):
            self.time, _, act, args = heapq.heappop(events)
            self.events += 1
            waiting = act(*args)
            if waiting is not None:
                await waiting
        if not (done and done()):
            self.time = max(self.time, until)

    def _step(self, process: Process, value: Any) -> None:
        try:
            command = process.send(value)
        except StopIteration:
            return
        if isinstance(command, int | float):
            self.after(command, self._step, process, None)
        else:
            command(partial(self._step, process))
