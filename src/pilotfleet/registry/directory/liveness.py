"""Who is online: soft state, refreshed by heartbeats, never written one by one."""

from __future__ import annotations

import sys
from array import array
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import StorageError
from pilotfleet.registry.directory.idset import IdSet
from pilotfleet.registry.directory.records import seen_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pilotfleet.registry.store.base import Entry

__all__ = ["OnlineTracker", "decode_seen_block", "encode_seen_block", "seen_block"]

BLOCK: Final = 256
"""Nodes whose last-seen times share one stored value."""


class OnlineTracker:
    """The set of nodes heard within the last ``window_s`` seconds.

    A node is filed under the second in which it would go offline and looked at
    again only then, however many heartbeats it sends meanwhile. It is filed once:
    one that goes and comes back all the time would otherwise leave an entry each
    time.
    """

    __slots__ = ("_due", "_filed", "_seconds", "_window_s", "nodes")

    def __init__(self, window_s: float) -> None:
        self.nodes = IdSet()
        self._window_s = window_s
        self._due: dict[int, list[int]] = {}
        self._seconds: list[int] = []
        """The seconds of ``_due``, as a heap."""
        self._filed = IdSet()
        """The nodes in ``_due``, online or not."""

    def fill(self, heard: Iterable[tuple[int, float]], wall: float) -> None:
        """Begin with nodes and when each was heard last, as of ``wall``."""
        online = array("I")
        for node, seen in heard:
            if wall - seen <= self._window_s:
                online.append(node)
                self._file(node, seen)
        self.nodes, self._filed = IdSet.of(online), IdSet.of(online)

    def seen(self, node: int, wall: float) -> bool:
        """Note that ``node`` was heard at ``wall``; tell whether it was offline."""
        came = node not in self.nodes
        if came:
            self.nodes.add(node)
        if node not in self._filed:
            self._filed.add(node)
            self._file(node, wall)
        return came

    def forget(self, node: int) -> bool:
        """Take ``node`` offline at once; tell whether it was online."""
        was_online = node in self.nodes
        self.nodes.discard(node)
        return was_online

    def is_due(self, wall: float) -> bool:
        """Tell whether there is a node to be looked at."""
        return bool(self._seconds) and self._seconds[0] <= wall

    def expire(
        self,
        wall: float,
        last_seen: Callable[[int], float],
        *,
        limit: int = sys.maxsize,
    ) -> list[int]:
        """Take nodes offline whose window has passed at ``wall``; return them.

        Looks at no more than ``limit`` nodes, heard meanwhile or not.
        """
        gone: list[int] = []
        while limit > 0 and self.is_due(wall):
            second = self._seconds[0]
            waiting = self._due[second]
            part = waiting[-limit:]
            del waiting[-limit:]
            limit -= len(part)
            if not waiting:
                heappop(self._seconds)
                del self._due[second]
            gone += [node for node in part if self._has_gone(node, wall, last_seen)]
        return gone

    def _has_gone(
        self, node: int, wall: float, last_seen: Callable[[int], float]
    ) -> bool:
        is_online = node in self.nodes
        seen = last_seen(node) if is_online else 0.0
        if is_online and wall - seen <= self._window_s:
            self._file(node, seen)
            return False
        self._filed.discard(node)
        self.nodes.discard(node)
        return is_online

    def _file(self, node: int, seen: float) -> None:
        second = int(seen + self._window_s) + 1
        waiting = self._due.get(second)
        if waiting is None:
            waiting = self._due[second] = []
            heappush(self._seconds, second)
        waiting.append(node)


def seen_block(node: int) -> int:
    """Return the number of the block that holds a node's last-seen time."""
    return node // BLOCK


def encode_seen_block(block: int, last_seen: Callable[[int], float]) -> bytes:
    """Return the stored form of one block; 0 stands for an unknown time."""
    first = block * BLOCK
    times = array("I", (int(last_seen(first + index)) for index in range(BLOCK)))
    return _little_endian(times).tobytes()


def decode_seen_block(entry: Entry) -> Iterator[tuple[int, int]]:
    """Yield (node, unix time) for the known times of a stored block.

    Raises:
        StorageError: The entry is not such a block.
    """
    value = entry.value or b""
    number = entry.key.removeprefix(seen_key(0)[:-1])
    if len(value) != BLOCK * 4 or not (number.isascii() and number.isdigit()):
        raise StorageError(f"entry {entry.key} is not a block of times")
    times = _little_endian(array("I", value))
    first = int(number) * BLOCK
    return ((first + index, time) for index, time in enumerate(times) if time)


def _little_endian(times: array[int]) -> array[int]:
    if sys.byteorder == "big":
        times.byteswap()
    return times
