"""The receiving half of a stream (wire.md sections 11.6, 11.7 and 11.9).

Segments are never trimmed: one that starts at ``expected`` is taken whole, one
that starts later is held by its first byte, one that starts earlier is dropped
whole. Data is not copied between the packet and the reader.

Acknowledging is a wish recorded here (``ack_now``, ``ack_deadline``); whatever
packet leaves next carries it. So a batch of segments costs one acknowledgement,
while every out-of-order segment gets its own, because the sender counts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.stream.config import NEVER, SEGMENT
from pilotfleet.protocol.stream.sack import MAX_BLOCKS
from pilotfleet.protocol.stream.sequence import HALF, MASK

if TYPE_CHECKING:
    from pilotfleet.protocol.stream.sack import Block

__all__ = ["Arrival", "Receiver"]

# From the specification.
QUICK_ACKS: Final = 32
"""Lone segments acknowledged at once before acknowledgements are delayed."""
ACK_DELAY_S: Final = 0.005
SEGMENTS_PER_ACK: Final = 2
REOPENED_S: Final = 60.0
"""How long empty ACKs are answered after the window opened again."""
REOPENED_GAP_S: Final = 0.4

# Of our choosing.
MAX_AHEAD_BYTES: Final = 16 * 1024 * 1024
"""A segment further ahead than any sender's window can reach is not kept."""


class Arrival:
    """What became of a data segment."""

    TAKEN: Final = 0
    HELD: Final = 1
    OLD: Final = 2
    DROPPED: Final = 3


class Receiver:
    """Puts segments in order and keeps them for the reader."""

    __slots__ = (
        "_answered_at",
        "_deferred_s",
        "_head",
        "_held",
        "_held_bytes",
        "_max_held",
        "_queue",
        "_quick",
        "_reopened_until",
        "_unacknowledged",
        "ack_deadline",
        "ack_now",
        "advertised",
        "expected",
        "limit_units",
        "queued_bytes",
    )

    def __init__(self, limit_units: int, max_held: int) -> None:
        self.expected = 0
        """The next sequence number in order."""
        self.limit_units = limit_units
        self.queued_bytes = 0
        self.ack_now = False
        self.ack_deadline = NEVER
        self.advertised = limit_units
        """The window the peer was told last."""
        self._max_held = max_held
        self._queue: list[bytes] = []
        self._head = 0
        self._held: dict[int, bytes] | None = None
        self._held_bytes = 0
        self._deferred_s = 0.0
        self._quick = QUICK_ACKS
        self._unacknowledged = 0
        self._reopened_until = 0.0
        self._answered_at = 0.0

    @property
    def held_count(self) -> int:
        """How many out-of-order segments are kept."""
        return len(self._held) if self._held else 0

    def window(self) -> int:
        """Return the free units: the scarcer of segments and bytes decides."""
        # Segments are what the peer counts (section 11.6), bytes are what we pay for:
        # tiny segments must not fill the list, nor large ones the memory. What is held
        # does not count, as in the reference: a window that moved with every loss would
        # make duplicate acknowledgements look like window updates.
        used = max(len(self._queue), -(-self.queued_bytes // SEGMENT))
        return self.limit_units - used if used < self.limit_units else 0

    def widen(self, limit_units: int) -> None:
        """Let the reader leave more unread; never less than before."""
        self.limit_units = max(self.limit_units, limit_units)

    def defer_acks(self, delay_s: float) -> None:
        """Let less than two full segments wait so long for data to carry their ACK."""
        self._deferred_s = delay_s
        self._quick = self._unacknowledged = 0

    def sack_blocks(self) -> list[Block]:
        """Return up to four ranges of held data, the highest ones, ascending."""
        held, base = self._held, self.expected
        if not held:
            return []
        blocks: list[Block] = []
        left = right = -1
        for offset in sorted([(seq - base) & MASK for seq in held]):
            if offset > right:
                if right >= 0:
                    blocks.append(((base + left) & MASK, (base + right) & MASK))
                left = offset
            right = max(right, offset + len(held[(base + offset) & MASK]))
        blocks.append(((base + left) & MASK, (base + right) & MASK))
        return blocks[-MAX_BLOCKS:]

    def receive(self, seq: int, payload: bytes, now: float) -> int:
        """Take a data segment and return its fate as a value of :class:`Arrival`."""
        ahead = (seq - self.expected) & MASK
        if ahead == 0:
            return self._take(payload, now)
        if ahead < HALF:
            return self._hold(seq, payload, ahead)
        # Also the answer to a one-byte window probe (section 11.9).
        self.ack_now = True
        return Arrival.OLD

    def read(self, limit: int, now: float) -> bytes:
        """Remove and return up to ``limit`` bytes; wish for a window update."""
        queue = self._queue
        if not queue or limit <= 0:
            return b""
        # The usual case of a reader that keeps up: the packet's bytes are handed on
        # without a copy.
        if len(queue) == 1 and not self._head and len(queue[0]) <= limit:
            data = queue[0]
            self._queue = []
        elif limit >= self.queued_bytes:
            if self._head:
                queue[0] = queue[0][self._head :]
            data = b"".join(queue)
            self._queue = []
            self._head = 0
        else:
            data = self._read_part(limit)
        self.queued_bytes -= len(data)
        self._announce_room(now)
        return data

    def window_sent(self, window: int) -> None:
        """Note that a packet with the current ``expected`` and window left."""
        self.advertised = window
        self.ack_now = False
        self.ack_deadline = NEVER
        self._unacknowledged = 0

    def answer_empty(self, now: float) -> None:
        """Wish for one ACK if the last window update may have been lost."""
        # Sparingly and not for long, because empty ACKs are otherwise never answered:
        # two ends that did so would not stop (section 11.6).
        if now < self._reopened_until and now - self._answered_at >= REOPENED_GAP_S:
            self._answered_at = now
            self.ack_now = True

    def handle_timer(self, now: float) -> None:
        """End the delay of an acknowledgement."""
        if self.ack_deadline <= now:
            self.ack_deadline = NEVER
            self.ack_now = True
            if not self._deferred_s:
                self._quick = QUICK_ACKS

    def drop_held(self) -> None:
        """Forget out-of-order data; nothing more will be taken."""
        self._held = None
        self._held_bytes = 0
        self.ack_now = False
        self.ack_deadline = NEVER

    def _take(self, payload: bytes, now: float) -> int:
        queue = self._queue
        used_bytes = self.queued_bytes
        if len(queue) >= self.limit_units or used_bytes >= self.limit_units * SEGMENT:
            # Full, and the window said so: the sender repeats it later.
            return Arrival.DROPPED
        queue.append(payload)
        self.queued_bytes = used_bytes + len(payload)
        self.expected = (self.expected + len(payload)) & MASK
        # New data shows that the peer knows of the open window.
        self._reopened_until = 0.0
        had_gap = bool(self._held)
        if had_gap:
            self._drain()
        self._plan_ack(len(payload), now, had_gap=had_gap)
        return Arrival.TAKEN

    def _drain(self) -> None:
        """Move held data that is in order now; it does not count as over-full."""
        held = self._held
        assert held is not None
        expected = self.expected
        while (payload := held.pop(expected, None)) is not None:
            self._queue.append(payload)
            self.queued_bytes += len(payload)
            self._held_bytes -= len(payload)
            expected = (expected + len(payload)) & MASK
        self.expected = expected
        # Segments of other boundaries may have been overtaken.
        for seq in [seq for seq in held if (seq - expected) & MASK >= HALF]:
            self._held_bytes -= len(held.pop(seq))
        if not held:
            self._held = None

    def _hold(self, seq: int, payload: bytes, ahead: int) -> int:
        if self._held is None:
            self._held = {}
        self.ack_now = True
        held = self._held
        if seq in held or len(held) >= self._max_held or ahead > MAX_AHEAD_BYTES:
            return Arrival.DROPPED
        # Segments may have 64 KB, so their number alone bounds nothing. Whoever
        # respects our window never has more under way than fits beside the queue.
        if self.queued_bytes + self._held_bytes >= self.limit_units * SEGMENT:
            return Arrival.DROPPED
        held[seq] = payload
        self._held_bytes += len(payload)
        return Arrival.HELD

    def _plan_ack(self, size: int, now: float, *, had_gap: bool) -> None:
        # While a gap is open each segment is news to the sender's recovery, and so is
        # the one that fills it (RFC 5681, section 4.2). The quick ones feed its slow
        # start, which grows by acknowledgements; after those a lone segment waits a
        # moment for data to carry its ACK.
        if self._deferred_s:
            self._unacknowledged += size
            is_much = self._unacknowledged >= SEGMENTS_PER_ACK * SEGMENT
        else:
            self._unacknowledged += 1
            is_much = self._unacknowledged >= SEGMENTS_PER_ACK
        if had_gap or is_much:
            self.ack_now = True
        elif self._quick:
            self._quick -= 1
            self.ack_now = True
        elif self.ack_deadline == NEVER:
            self.ack_deadline = now + (self._deferred_s or ACK_DELAY_S)

    def _read_part(self, limit: int) -> bytes:
        queue, head = self._queue, self._head
        parts: list[bytes] = []
        wanted = limit
        count = 0
        while wanted:
            part = queue[count][head : head + wanted]
            parts.append(part)
            wanted -= len(part)
            head += len(part)
            if head == len(queue[count]):
                count += 1
                head = 0
        del queue[:count]
        self._head = head
        return b"".join(parts)

    def _announce_room(self, now: float) -> None:
        half = self.limit_units // 2
        # Mostly there is less than that to tell.
        if self.limit_units - self.advertised < half:
            return
        window = self.window()
        if self.advertised == 0 and window > 0:
            # This update may be lost, so empty ACKs are answered for a while.
            self._reopened_until = now + REOPENED_S
            self._answered_at = now
            self.ack_now = True
        # Not every read: updates of a few bytes make the sender cut small segments
        # (silly window), and cost a packet each.
        elif window - self.advertised >= half:
            self.ack_now = True
