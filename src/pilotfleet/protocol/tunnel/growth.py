"""Larger payloads between pilotfleet nodes: an extension, found out by pings.

A node whose stream has moved some data greets the peer with a ping that carries
`HELLO`. A peer that greets back is a pilotfleet node, and is pinged with ever larger
packets; each one that comes back proves that the path carries its size. Official
peers pong the greeting and send none, so they are never probed.
"""

from __future__ import annotations

from typing import Final

from pilotfleet.protocol.tunnel.config import SEGMENT_SIZE

__all__ = ["PROBE_SIZES", "Growth"]

# Ours.
PROBE_SIZES: Final = (8192, 16384, 32768, 60000)
"""Payload bytes; the largest leaves room for headers, tag and relay in a datagram."""
_HELLO_SENDS: Final = 3
_ANSWER_TIMEOUT: Final = 1.0

_NEVER: Final = float("inf")


class Growth:
    """How much payload one peer's path has proven to carry."""

    __slots__ = (
        "_hellos",
        "_step",
        "deadline",
        "is_pilotfleet",
        "probing",
        "size",
        "wanted",
    )

    def __init__(self) -> None:
        self.is_pilotfleet = False
        self.wanted = False
        self.size = SEGMENT_SIZE
        self.probing = 0
        """Size under way, 0 for none."""
        self.deadline = _NEVER
        self._step = 0
        self._hellos = 0

    def next_hello(self, now: float) -> bool:
        """Tell whether a greeting is to be sent, which the pong then confirms."""
        if self._hellos >= _HELLO_SENDS:
            self.deadline = _NEVER
            return False
        self._hellos += 1
        self.deadline = now + _ANSWER_TIMEOUT
        return True

    @property
    def has_greeted(self) -> bool:
        """A greeting was sent."""
        return self._hellos > 0

    def hello_answered(self) -> None:
        """Note the pong: greet no more."""
        self._hellos = _HELLO_SENDS
        if not self.probing:
            self.deadline = _NEVER

    def next_probe(self, now: float) -> int:
        """Return the payload size to try, or 0."""
        ready = self.wanted and self.is_pilotfleet and not self.probing
        if not ready or self._step >= len(PROBE_SIZES):
            return 0
        self.probing = PROBE_SIZES[self._step]
        self.deadline = now + _ANSWER_TIMEOUT
        return self.probing

    def probe_answered(self, size: int) -> bool:
        """Note a pong; True if it is the one that was waited for."""
        if size != self.probing:
            return False
        self.size = size
        self.probing = 0
        self.deadline = _NEVER
        self._step += 1
        return True

    def probe_lost(self) -> None:
        """Stop growing: the path does not carry that size."""
        self.probing = 0
        self.deadline = _NEVER
        self._step = len(PROBE_SIZES)

    def fall_back(self) -> bool:
        """Begin anew on another path; True if the size shrank."""
        shrank = self.size != SEGMENT_SIZE
        self.size = SEGMENT_SIZE
        self._step = 0
        if self.probing:
            self.probing = 0
            self.deadline = _NEVER
        return shrank
