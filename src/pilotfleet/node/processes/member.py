"""One process of a daemon, as its parent knows it."""

from __future__ import annotations

import asyncio
import contextlib
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from pilotfleet.node.processes.channel import Channel
from pilotfleet.node.processes.messages import (
    Addresses,
    Failed,
    Message,
    Progress,
    Ready,
    Serving,
    Take,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["Member", "Phase"]


LAST_WORDS_S: Final = 1.0


class Phase(IntEnum):
    """How far a process is."""

    DOWN = 0
    STARTING = 1
    SERVING = 2
    """Its first agent is registered, and it takes clients."""
    READY = 3


class Member:
    """One process: what it has told, and the way to it.

    Args:
        number: Which one.
        agents: How many agents it hosts.
        on_change: Called when its phase or its progress has changed.
    """

    def __init__(
        self, number: int, agents: int, *, on_change: Callable[[], None]
    ) -> None:
        self.number = number
        self.agents = agents
        self.phase = Phase.DOWN
        self.was_ready = False
        """Whether it ever was, in this life or an earlier one."""
        self.done = 0
        """Agents that its start has come to."""
        self.registered = 0
        self.addresses: dict[str, str] = {}
        self.failure: Failed | None = None
        """Why it could not start."""
        self.pid: int | None = None
        self.on_take: Callable[[Take, socket.socket], None] | None = None
        """Gets the connections that it gives away."""
        self._on_change = on_change
        self._channel: Channel | None = None
        self._has_told_all = asyncio.Event()

    def begin(self, pid: int, end: socket.socket) -> None:
        """Note that the process runs, and listen to it."""
        self.pid = pid
        self.failure = None
        self.done = 0
        self.phase = Phase.STARTING
        self._has_told_all.clear()
        self._channel = Channel(end, on_message=self._take, on_end=self._channel_ended)
        self._on_change()

    async def hear_out(self) -> None:
        """Take in what the process has said before it ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._has_told_all.wait()

    def end(self) -> None:
        """Note that the process has ended."""
        self.pid = None
        self.phase = Phase.DOWN
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._on_change()

    def send(self, message: Message, connection: socket.socket) -> None:
        """Give the process a connection; it ends if the process does not read."""
        if self._channel is None:
            connection.close()
        else:
            self._channel.send(message, connection)

    # Private

    def _take(self, message: Message, connection: socket.socket | None) -> None:
        if isinstance(message, Take) and connection is not None:
            assert self.on_take is not None
            self.on_take(message, connection)
            return
        if connection is not None:
            connection.close()
        match message:
            case Progress(done=done):
                self.done = done
            case Serving():
                self.phase = Phase.SERVING
            case Addresses(addresses=addresses):
                self.addresses.update(addresses)
                return
            case Ready(agents=agents):
                self.registered = agents
                self.phase = Phase.READY
                self.was_ready = True
            case Failed():
                self.failure = message
                return
        self._on_change()

    def _channel_ended(self) -> None:
        # Its end is noted when the process is waited for; nothing goes to it any more.
        self.phase = Phase.DOWN
        self._channel = None
        self._has_told_all.set()
        self._on_change()
