"""When reading a socket may wait a moment: many peers, each of which says little.

Waking up costs a process more than a small datagram does. A hub that hears a
thousand peers a second, one at a time, would wake up for each of them. A network
card has the same trouble, and the same answer: while a crowd talks, look every few
milliseconds instead.

A round trip must not become longer where somebody waits for it. So it takes many
different peers, more than the last few that could be waiting for each other's
answers, and small datagrams: a bulk stream wants its acknowledgements at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pilotfleet.protocol.address import Endpoint

__all__ = ["GATHER_S", "Crowd"]

# Of our choosing.
GATHER_S: Final = 0.005
"""Between two looks: no longer than an acknowledgement may wait (wire.md 11.6)."""
WINDOW: Final = 64
"""Datagrams that are judged together."""
WINDOW_S: Final = 0.16
"""They came within this: at a lower rate a look finds one or two, and saves nothing."""
PEERS: Final = 32
"""So many of them came from different peers."""
SMALL_SIZE: Final = 512
"""A larger datagram does not count as one that can wait."""
LARGE_BYTES: Final = 64 * 1024
"""More than this in larger ones is a bulk stream, which fills a receive buffer fast."""


class Crowd:
    """Judges what a socket receives.

    Args:
        clock: Monotonic time, asked once for each window, and while a crowd talks.
    """

    __slots__ = ("_clock", "_is_crowd", "_large", "_left", "_since", "_sources")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._is_crowd = False
        """Whether the last window was one of a crowd."""
        self._large = 0
        """Bytes in the large datagrams of this window."""
        self._left = WINDOW
        self._since = 0.0
        # Idle agents are many and their windows long: those remember no peers.
        self._sources: set[Endpoint] | None = None

    @property
    def is_there(self) -> bool:
        """Whether reading may wait for ``GATHER_S``."""
        if not self._is_crowd or self._large > LARGE_BYTES:
            return False
        # A crowd that went away does not fill its last window.
        return self._clock() - self._since <= 2 * WINDOW_S

    def note(self, datagrams: Sequence[tuple[bytes, Endpoint]]) -> None:
        """Take account of what was read."""
        sources = self._sources
        if sources is not None:
            for data, source in datagrams:
                if len(data) <= SMALL_SIZE:
                    sources.add(source)
                else:
                    self._large += len(data)
        self._left -= len(datagrams)
        if self._left <= 0:
            self._judge(self._clock())

    def _judge(self, now: float) -> None:
        is_fast = now - self._since <= WINDOW_S
        sources = self._sources
        is_crowd = is_fast and sources is not None and len(sources) >= PEERS
        self._is_crowd = is_crowd and self._large <= LARGE_BYTES
        self._large = 0
        self._sources = set() if is_fast else None
        self._since = now
        self._left = WINDOW
