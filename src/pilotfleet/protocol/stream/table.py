"""The connections of one endpoint, and what they want to send and to tell.

A node has a table only while it has something to put into it: thousands of idle
nodes share a process, and a dictionary each would be most of their memory.

Connections do not send when they are spoken to. They mark themselves dirty, and
one flush after a batch of input lets each send what it then can. Their timers lie
in one heap. Deadlines move with nearly every packet, mostly to later, so the heap
holds a lower bound for each connection and is corrected when that bound passes.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, TypeAlias

from pilotfleet.protocol.stream.config import NEVER
from pilotfleet.protocol.stream.events import DataReceived, StreamAccepted
from pilotfleet.protocol.stream.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.protocol.stream.connection import StreamConnection
    from pilotfleet.protocol.stream.events import StreamEvent

__all__ = ["ConnectionTable", "Key"]

Key: TypeAlias = tuple[int, int, int, int]
"""Local port, remote network, remote node, remote port. The same node seen from
another network is another peer (wire.md section 11.2)."""

STALE_ENTRIES_PER_CONNECTION: Final = 4
MIN_HEAP: Final = 64


class ConnectionTable:
    """Active and finished connections with their timers, packets and events."""

    __slots__ = (
        "_accepting",
        "_active_on",
        "_dirty",
        "_events",
        "_finished_on",
        "_heap",
        "_max_finished",
        "_ticket",
        "active",
        "dialling",
        "finished",
        "now",
        "outbox",
    )

    def __init__(self, now: float, *, max_finished: int) -> None:
        self.now = now
        """The latest time an owner gave us; a flush happens at it."""
        self.active: dict[Key, StreamConnection] = {}
        self.finished: dict[Key, StreamConnection] = {}
        """Connections in TIME_WAIT, the oldest first."""
        self.dialling: dict[int, StreamConnection] = {}
        self.outbox: list[tuple[int, bytes]] = []
        self._dirty: list[StreamConnection] = []
        self._events: deque[StreamEvent] = deque()
        self._heap: list[tuple[float, int, StreamConnection]] = []
        self._ticket = 0
        self._active_on: dict[int, int] = {}
        self._finished_on: dict[int, int] = {}
        self._accepting: dict[int, int] = {}
        self._max_finished = max_finished

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost by dropping the table."""
        return not (self.active or self.finished or self.outbox or self._events)

    def __iter__(self) -> Iterator[StreamConnection]:
        yield from self.active.values()
        yield from self.finished.values()

    def has_port(self, port: int) -> bool:
        """Return whether a connection holds this local port."""
        return port in self._active_on or port in self._finished_on

    def count_on_port(self, port: int) -> int:
        """Return how many active connections use this local port."""
        return self._active_on.get(port, 0)

    def count_accepting(self, port: int) -> int:
        """Return how many accepted streams of this port nobody has taken over."""
        return self._accepting.get(port, 0)

    # Membership.

    def add(self, connection: StreamConnection) -> None:
        """Enter an active connection."""
        self.active[connection.key] = connection
        self._count(self._active_on, connection.local_port, 1)
        if connection.state is State.SYN_SENT:
            self.dialling[connection.id] = connection

    def remove(self, connection: StreamConnection) -> None:
        """Take a connection out, whether active or finished."""
        key, port = connection.key, connection.local_port
        connection.scheduled = NEVER
        if self.active.get(key) is connection:
            del self.active[key]
            self._count(self._active_on, port, -1)
        elif self.finished.get(key) is connection:
            del self.finished[key]
            self._count(self._finished_on, port, -1)
        self.dialling.pop(connection.id, None)

    def finish(self, connection: StreamConnection) -> None:
        """Move a connection to those that only wait for their residence to end."""
        self.remove(connection)
        older = self.finished.get(connection.key)
        if older is not None:
            older.expire()
        if len(self.finished) >= self._max_finished:
            next(iter(self.finished.values())).expire()
        self.finished[connection.key] = connection
        self._count(self._finished_on, connection.local_port, 1)

    # Output.

    def mark_dirty(self, connection: StreamConnection, now: float) -> None:
        """Have the connection flushed before anything is handed out."""
        self.now = now
        if not connection.is_dirty:
            connection.is_dirty = True
            self._dirty.append(connection)

    def emit(self, event: StreamEvent) -> None:
        """Queue an event."""
        self._events.append(event)
        if isinstance(event, StreamAccepted):
            self._count(self._accepting, event.connection.local_port, 1)

    @property
    def has_events(self) -> bool:
        """Whether events wait."""
        return bool(self._events)

    def next_event(self) -> StreamEvent | None:
        """Return the next event, flushing first if that may bring one."""
        if not self._events:
            if self._dirty:
                self.flush()
            if not self._events:
                return None
        event = self._events.popleft()
        if isinstance(event, DataReceived):
            event.connection.is_announced = False
        elif isinstance(event, StreamAccepted):
            self._count(self._accepting, event.connection.local_port, -1)
        return event

    def flush(self) -> None:
        """Let each dirty connection send what it can, and set its timer."""
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                connection.is_dirty = False
                if connection.is_active:
                    connection.flush(self.now)
                    self._schedule(connection)

    def take_packets(self) -> list[tuple[int, bytes]]:
        """Return everything to be sent."""
        if self._dirty:
            self.flush()
        outbox = self.outbox
        if outbox:
            self.outbox = []
        return outbox

    # Timers.

    def handle_timer(self, now: float) -> None:
        """Run the timers that are due."""
        self.now = now
        self.flush()
        heap = self._heap
        while heap and heap[0][0] <= now:
            deadline, _, connection = heappop(heap)
            if deadline != connection.scheduled:
                continue
            connection.scheduled = NEVER
            if connection.deadline <= now:
                connection.handle_timer(now)
                self.mark_dirty(connection, now)
            else:
                self._schedule(connection)
        self._expire_finished(now)

    def next_timer(self) -> float:
        """Return a lower bound of the next deadline."""
        if self._dirty:
            self.flush()
        heap = self._heap
        while heap and heap[0][0] != heap[0][2].scheduled:
            heappop(heap)
        first = heap[0][0] if heap else NEVER
        for connection in self.finished.values():
            return min(first, connection.deadline)
        return first

    def _schedule(self, connection: StreamConnection) -> None:
        deadline = connection.deadline
        if deadline >= connection.scheduled:
            return
        if len(self._heap) > MIN_HEAP + STALE_ENTRIES_PER_CONNECTION * len(self.active):
            self._heap = [
                entry for entry in self._heap if entry[0] == entry[2].scheduled
            ]
            heapify(self._heap)
        connection.scheduled = deadline
        # The ticket keeps equal deadlines from comparing connections.
        self._ticket += 1
        heappush(self._heap, (deadline, self._ticket, connection))

    def _expire_finished(self, now: float) -> None:
        while self.finished:
            connection = next(iter(self.finished.values()))
            if connection.deadline > now:
                break
            connection.expire()

    @staticmethod
    def _count(counts: dict[int, int], port: int, change: int) -> None:
        count = counts.get(port, 0) + change
        if count:
            counts[port] = count
        else:
            del counts[port]
