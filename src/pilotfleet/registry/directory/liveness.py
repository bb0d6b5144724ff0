"""Who is online: soft state, refreshed by heartbeats, never written one by one."""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import StorageError
from pilotfleet.registry.directory.idset import IdSet
from pilotfleet.registry.directory.records import seen_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

    __slots__ = ("_due", "_filed", "_window_s", "nodes")

    def __init__(self, window_s: float) -> None:
        self.nodes = IdSet()
        self._window_s = window_s
        self._due: dict[int, list[int]] = {}
        self._filed = IdSet()
        """The nodes in ``_due``, online or not."""

    def seen(self, node: int, wall: float) -> None:
        """Note that ``node`` was heard at ``wall``."""
        self.nodes.add(node)
        if node not in self._filed:
            self._filed.add(node)
            self._file(node, wall)

    def forget(self, node: int) -> None:
        """Take ``node`` offline at once."""
        self.nodes.discard(node)

    def expire(self, wall: float, last_seen: Callable[[int], float]) -> None:
        """Take nodes offline whose window has passed at ``wall``."""
        for second in sorted(second for second in self._due if second <= wall):
            for node in self._due.pop(second):
                seen = last_seen(node) if node in self.nodes else 0.0
                if node in self.nodes and wall - seen <= self._window_s:
                    self._file(node, seen)
                else:
                    self.nodes.discard(node)
                    self._filed.discard(node)

    def _file(self, node: int, seen: float) -> None:
        self._due.setdefault(int(seen + self._window_s) + 1, []).append(node)


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
