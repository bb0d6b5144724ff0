"""The sending half of a stream (wire.md sections 11.8 and 11.9).

Bytes wait in ``unsent`` until the windows let them go; only then are segments
cut, so that small writes become full segments while the path is busy. From the
first sending on, a segment keeps its boundaries, because receivers drop or keep
segments whole.

Loss recovery follows New Reno with SACK. During a recovery every hole is sent
again at most once (``_hole`` is how far that has got); if the repetition is lost
too, the retransmission timer takes over.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.stream.config import NEVER, SEGMENT
from pilotfleet.protocol.stream.congestion import DUPLICATES_FOR_LOSS
from pilotfleet.protocol.stream.rtt import RttEstimator
from pilotfleet.protocol.stream.sack import looks_like_sack
from pilotfleet.protocol.stream.sequence import HALF, MASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.protocol.stream.congestion import CongestionControl
    from pilotfleet.protocol.stream.sack import Block

__all__ = ["Recovery", "Segment", "Sender"]

# From the specification.
MAX_SENDS: Final = 8
NAGLE_S: Final = 0.04
PROBE_FIRST_S: Final = 0.5
PROBE_MAX_S: Final = 30.0
MAX_PROBES: Final = 30

# Of our choosing.
RESENDS_PER_ACK: Final = 2
"""Segments sent again per acknowledgement after a timeout: slow start."""
RESENT_BYTES_PER_ACK: Final = 2 * SEGMENT
"""The same in bytes, if the segments are small: a peer that defers its
acknowledgements counts these, and would let two small segments wait."""


class Recovery(Enum):
    """Why segments are being sent again."""

    NONE = "none"
    FAST = "duplicate acknowledgements"
    TIMEOUT = "timeout"


class Segment:
    """A piece of the stream that was sent and is not acknowledged yet."""

    __slots__ = ("end", "payload", "sacked", "sends", "sent_at", "seq")

    def __init__(self, seq: int, payload: bytes, now: float) -> None:
        self.seq = seq
        self.end = (seq + len(payload)) & MASK
        self.payload = payload
        self.sent_at = now
        self.sends = 1
        self.sacked = False


class Sender:
    """Cuts, sends, and sends again until it is acknowledged."""

    __slots__ = (
        "_has_sack",
        "_hole",
        "_max_outstanding",
        "_nagle_deadline",
        "_probe_gap",
        "_push",
        "_recover",
        "_resend",
        "_sacked_bytes",
        "_segment_bytes",
        "_short_end",
        "congestion",
        "dup_acks",
        "duplicates",
        "fast_retransmits",
        "next",
        "no_delay",
        "peer_window",
        "probe_deadline",
        "probes",
        "recovery",
        "retransmits",
        "rto_deadline",
        "rtt",
        "segment_size",
        "segments",
        "una",
        "unsent",
    )

    def __init__(
        self, isn: int, congestion: CongestionControl, *, max_outstanding: int
    ) -> None:
        # The SYN takes the first number.
        self.una = self.next = (isn + 1) & MASK
        """``una`` is the highest acknowledgement received, ``next`` is unused yet."""
        self.congestion = congestion
        self.rtt = RttEstimator()
        self.segment_size = SEGMENT
        # Nothing leaves before the peer has named its window; zero means closed, not
        # unknown as in 1.2 (section 11.8).
        self.peer_window = 0
        self.no_delay = False
        # A bytearray and not a list of writes: cutting from its front is cheap, and
        # many tiny writes cost no objects.
        self.unsent = bytearray()
        self.segments: list[Segment] = []
        self.recovery = Recovery.NONE
        self.dup_acks = 0
        self.rto_deadline = NEVER
        self.probe_deadline = NEVER
        self.probes = 0
        self.retransmits = self.fast_retransmits = self.duplicates = 0
        self._max_outstanding = max_outstanding
        self._segment_bytes = 0
        self._sacked_bytes = 0
        self._resend: list[Segment] = []
        self._recover = self._hole = 0
        self._has_sack = False
        self._push = False
        self._short_end: int | None = None
        self._nagle_deadline = NEVER
        self._probe_gap = PROBE_FIRST_S

    @property
    def in_flight(self) -> int:
        """Bytes taken to be in the network.

        Fast recovery counts SACKed bytes too: there the window itself grows with
        each segment that left.
        """
        if self.recovery is Recovery.FAST:
            return self._segment_bytes
        return self._segment_bytes - self._sacked_bytes

    @property
    def is_drained(self) -> bool:
        """Whether everything written is acknowledged."""
        return not self.segments and not self.unsent

    @property
    def deadline(self) -> float:
        """The earliest of the timers."""
        return min(self.rto_deadline, self._nagle_deadline, self.probe_deadline)

    def write(self, data: bytes | memoryview, room: int) -> int:
        """Take up to ``room`` bytes and return how many."""
        size = len(data)
        if size > room:
            data, size = memoryview(data)[:room], room
        self.unsent += data
        if size >= SEGMENT:
            # Nagle's rule is for small writes; a large one leaves with its tail.
            self._push = True
        return size

    def push(self) -> None:
        """Let what is unsent go without waiting for more."""
        self._push = True

    def segments_to_send(self, now: float) -> list[Segment]:
        """Return what may leave now: first repetitions, then new segments."""
        # Repetitions ignore both windows: their bytes are counted as under way already,
        # and the peer needs them before it can take anything newer.
        out = self._take_resends(now) if self._resend else []
        if self.unsent:
            self._cut_segments(out, now)
            self._watch_zero_window(now)
        # The timer is for the oldest segment and is not moved by newer ones: a steady
        # writer could otherwise put off a repetition for ever.
        if self.segments and self.rto_deadline == NEVER:
            self.rto_deadline = now + self.rtt.rto
        return out

    def receive_window(self, window: int) -> None:
        """Take the window of a SYN or SYN-ACK."""
        self.peer_window = window

    def receive_ack(
        self,
        ack: int,
        window: int,
        now: float,
        *,
        is_pure: bool,
        blocks: Sequence[Block] = (),
    ) -> None:
        """Take an acknowledgement; ``is_pure`` if the packet carried no data."""
        # Distances are compared, so that the wrap after 4 GB needs no thought: an older
        # number shows up as a huge distance.
        acked = (ack - self.una) & MASK
        if acked > (self.next - self.una) & MASK:
            # Older than the last one, or for something never sent. Its window is
            # out of date as well.
            return
        same_window = window == self.peer_window
        self.peer_window = window
        if window:
            self._close_probing()
        # Before the acknowledgement: what it repeats depends on which segments the same
        # packet reports as held.
        if blocks:
            self._mark_sacked(blocks, now)
        if acked:
            self._receive_new_ack(ack, acked, now)
        # An unchanged number with another window is a window update. With SACK there is
        # no doubt: a segment has arrived behind a gap (section 11.8).
        elif is_pure and self.segments and (blocks or same_window):
            self._receive_duplicate()

    def handle_timer(self, now: float, chance: float) -> bool:
        """Run the timers that are due; False if the peer must be given up.

        ``chance`` is random in [0, 1). A due ``probe_deadline`` is left to
        :meth:`take_probe`.
        """
        # No longer than this, since the peer may in turn be delaying the very ACK that
        # a short segment waits for.
        if self._nagle_deadline <= now:
            self._nagle_deadline = NEVER
            self._push = True
        if self.rto_deadline <= now:
            return self._time_out(now, chance)
        return self.probe_deadline > now or self.probes < MAX_PROBES

    def take_probe(self, now: float) -> bool:
        """Return whether a zero-window probe is due, and plan the next one."""
        if self.probe_deadline > now:
            return False
        # Not an empty ACK as in 1.18.0, which that release itself leaves unanswered,
        # but a byte that the peer has already: its answer carries the window (section
        # 11.9).
        self.probes += 1
        self._probe_gap = min(2 * self._probe_gap, PROBE_MAX_S)
        self.probe_deadline = now + self._probe_gap
        return True

    def set_segment_size(self, size: int, max_window: int) -> None:
        """Use another size for segments cut from now on.

        Smaller than before means that the path no longer carries what is under
        way. That data can only arrive in smaller pieces, so here alone boundaries
        change; only peers that take such pieces were ever sent large segments.
        """
        if size < self.segment_size:
            self._split_segments(size)
        self.segment_size = size
        self.congestion.on_segment_size(size, max_window)

    def drop(self) -> None:
        """Forget all data and stop all timers."""
        self.unsent = bytearray()
        self.segments = []
        self._resend = []
        self._segment_bytes = self._sacked_bytes = 0
        self.recovery = Recovery.NONE
        self.rto_deadline = self._nagle_deadline = self.probe_deadline = NEVER

    # New segments.

    def _cut_segments(self, out: list[Segment], now: float) -> None:
        window = self.peer_window
        # The peer counts its free room in segments, so its window bounds their number
        # as well as their bytes, whatever their size (section 11.8).
        limit = min(self.congestion.window, window * SEGMENT)
        # Beyond 128 the peer's out-of-order buffer would overflow after one loss, and
        # everything behind it would have to be sent again.
        most = min(window, self._max_outstanding)
        flight = self.in_flight
        unsent, segments, size = self.unsent, self.segments, self.segment_size
        # Bytes under way may exceed the limit by less than one segment, as in the
        # reference. Waiting for room for a whole one would be for ever where the window
        # is smaller than a segment.
        while unsent and flight < limit and len(segments) < most:
            if len(unsent) < size and self._must_wait(now):
                break
            segment = self._cut(now)
            flight += len(segment.payload)
            out.append(segment)

    def _must_wait(self, now: float) -> bool:
        """Apply Nagle's rule in Minshall's form to a short segment."""
        # Minshall's form looks only at short segments under way. With Nagle's own, the
        # tail of every message would wait for the full segments before it.
        if self.no_delay or self._push or self._short_end is None:
            return False
        if self._nagle_deadline == NEVER:
            self._nagle_deadline = now + NAGLE_S
        return True

    def _cut(self, now: float) -> Segment:
        unsent = self.unsent
        size = min(len(unsent), self.segment_size)
        # Released before the bytes are deleted: a bytearray cannot shrink while a view
        # of it exists.
        with memoryview(unsent) as view:
            payload = bytes(view[:size])
        if payload[0] == 0x53 and looks_like_sack(payload):
            # Any receiver would take this for SACK and drop it (section 11.6).
            # One byte alone is no SACK, and what follows begins with another letter.
            payload = payload[:1]
            self._push = True
        del unsent[: len(payload)]
        segment = Segment(self.next, payload, now)
        self.segments.append(segment)
        self._segment_bytes += len(payload)
        self.next = segment.end
        if len(payload) < self.segment_size:
            self._short_end = segment.end
        if not unsent:
            self._push = False
            self._nagle_deadline = NEVER
        return segment

    def _watch_zero_window(self, now: float) -> None:
        """Probe while the window alone holds us; otherwise the RTO does the job."""
        if self.peer_window or not self.unsent or self.segments:
            self._close_probing()
        elif self.probe_deadline == NEVER:
            self.probe_deadline = now + self._probe_gap

    def _close_probing(self) -> None:
        if self.probe_deadline != NEVER:
            self.probe_deadline = NEVER
            self.probes = 0
            self._probe_gap = PROBE_FIRST_S

    # Acknowledgements.

    def _receive_new_ack(self, ack: int, acked: int, now: float) -> None:
        self.una = ack
        self.dup_acks = 0
        self._remove_acknowledged(ack, now)
        if self._short_end is not None and (ack - self._short_end) & MASK < HALF:
            self._short_end = None
            self._nagle_deadline = NEVER
        if self.recovery is Recovery.NONE:
            self.congestion.on_acknowledged(acked)
        # Everything that was under way at the loss has arrived. Until then further
        # losses are of the same event and must not halve the window again.
        elif (ack - self._recover) & MASK < HALF:
            if self.recovery is Recovery.FAST:
                self.congestion.on_recovered()
            self.recovery = Recovery.NONE
        elif self.recovery is Recovery.FAST:
            # A partial acknowledgement is proof of another hole right there: one SACKed
            # segment above suffices, no three duplicates are needed.
            self.congestion.on_partial(acked)
            self._resend_lost(sacked_above=1)
        else:
            self.congestion.on_acknowledged(acked)
            # After a timeout all of it counts as lost. The reference repeats one
            # segment per acknowledgement, which takes a round trip for each: two double
            # per round trip, as slow start does.
            self._resend_from(self.segments, RESENDS_PER_ACK, RESENT_BYTES_PER_ACK)
        self.rto_deadline = now + self.rtt.rto if self.segments else NEVER

    def _remove_acknowledged(self, ack: int, now: float) -> None:
        """Drop covered segments and take a round-trip sample (Karn's rule)."""
        segments = self.segments
        count = 0
        repeated_at = -NEVER
        for segment in segments:
            # Covered in part, it stays whole: receivers know no parts of segments.
            if (ack - segment.end) & MASK >= HALF:
                break
            count += 1
            self._segment_bytes -= len(segment.payload)
            if segment.sacked:
                self._sacked_bytes -= len(segment.payload)
            if segment.sends > 1:
                repeated_at = max(repeated_at, segment.sent_at)
        if repeated_at != -NEVER:
            self.rtt.ease(now - repeated_at)
        elif count:
            self.rtt.add_sample(now - segments[0].sent_at)
        del segments[:count]

    def _mark_sacked(self, blocks: Sequence[Block], now: float) -> None:
        self._has_sack = True
        base = self.una
        spans = [
            ((left - base) & MASK, (right - base) & MASK) for left, right in blocks
        ]
        newest: Segment | None = None
        for segment in self.segments:
            if segment.sacked:
                continue
            start = (segment.seq - base) & MASK
            end = start + len(segment.payload)
            # Only whole segments are marked. Receivers never trim, so a partly covered
            # one must be sent again all the same.
            for left, right in spans:
                if left <= start and end <= right:
                    segment.sacked = True
                    self._sacked_bytes += len(segment.payload)
                    newest = segment
                    break
        if newest is not None and newest.sends == 1:
            # Under steady loss most acknowledgements cover a repetition, and Karn's
            # rule alone would leave the timeout at its first, long value.
            self.rtt.add_sample(now - newest.sent_at)

    def _receive_duplicate(self) -> None:
        self.duplicates += 1
        self.dup_acks += 1
        if self.recovery is Recovery.FAST:
            # The segment that left makes room either for a repetition or, through
            # a larger window, for a new segment.
            if not self._resend_lost(sacked_above=DUPLICATES_FOR_LOSS):
                self.congestion.on_duplicate()
        elif self.recovery is Recovery.NONE and self.dup_acks == DUPLICATES_FOR_LOSS:
            # Before the recovery begins, because ``in_flight`` means something else in
            # it.
            self.congestion.on_loss(self.in_flight)
            self._begin_recovery(Recovery.FAST)
            self.fast_retransmits += 1
            self._resend_first()

    # Repetition.

    def _begin_recovery(self, recovery: Recovery) -> None:
        self.recovery = recovery
        # The holes are followed by number and not by index: the list is cut from its
        # front by every acknowledgement.
        self._recover = self.next
        self._hole = self.segments[0].seq

    def _resend_lost(self, *, sacked_above: int) -> bool:
        """Plan the next segment that duplicates or a partial ack show to be lost.

        A segment counts as lost when enough above it are SACKed. Of a peer that
        never sends SACK only the first one is known to be missing.
        """
        segments = self.segments
        last = len(segments)
        above = 0
        while last and above < sacked_above:
            last -= 1
            above += segments[last].sacked
        # Repeating more without SACK would be guessing: most of what is behind the
        # first hole has usually arrived.
        if not last and not self._has_sack:
            last = 1
        return self._resend_from(segments[:last], 1)

    def _resend_from(self, segments: list[Segment], count: int, size: int = 0) -> bool:
        """Plan ``count`` of these segments that were not yet repeated.

        Small ones go on to ``size`` bytes, as far as the congestion window reaches.
        """
        planned = planned_bytes = 0
        room = self.congestion.window
        for segment in segments:
            if (segment.seq - self._recover) & MASK < HALF:
                break
            if planned >= count and (
                planned_bytes >= size or (segment.end - self.una) & MASK > room
            ):
                break
            if not segment.sacked and (segment.seq - self._hole) & MASK < HALF:
                self._resend.append(segment)
                self._hole = segment.end
                planned += 1
                planned_bytes += len(segment.payload)
        return planned > 0

    def _resend_first(self) -> None:
        segment = next((s for s in self.segments if not s.sacked), None)
        if segment is not None:
            self._resend.append(segment)
            self._hole = segment.end

    def _take_resends(self, now: float) -> list[Segment]:
        """Return the planned repetitions that are still needed, and count them."""
        # Planning and sending are apart: an acknowledgement later in the same batch of
        # input often makes a repetition needless.
        planned, self._resend = self._resend, []
        una = self.una
        out = []
        for segment in planned:
            if not segment.sacked and 0 < (segment.end - una) & MASK < HALF:
                segment.sends += 1
                segment.sent_at = now
                out.append(segment)
        self.retransmits += len(out)
        if out:
            self.rto_deadline = now + self.rtt.rto
        return out

    def _time_out(self, now: float, chance: float) -> bool:
        segments = self.segments
        if segments[0].sacked:
            # Still not acknowledged though reported as held: the peer dropped it.
            self._clear_sack_marks()
        # While its window is closed a live peer drops segments without a word.
        # Eight unanswered sends, about a minute, mean that it is gone (section 11.8).
        limit = MAX_SENDS if self.peer_window else MAX_PROBES
        if segments[0].sends >= limit:
            return False
        self.congestion.on_timeout(self.in_flight)
        self.rtt.back_off(chance)
        self.dup_acks = 0
        # One segment only (section 11.8): a timeout says that the path may be full or
        # dead, and a burst would make it worse or be lost as well.
        self._begin_recovery(Recovery.TIMEOUT)
        self._resend_first()
        self.rto_deadline = now + self.rtt.rto
        return True

    def _clear_sack_marks(self) -> None:
        for segment in self.segments:
            segment.sacked = False
        self._sacked_bytes = 0

    def _split_segments(self, size: int) -> None:
        pieces: list[Segment] = []
        for segment in self.segments:
            payload = segment.payload
            # What the peer holds need not travel again, whatever its size.
            if segment.sacked or len(payload) <= size:
                pieces.append(segment)
                continue
            for start in range(0, len(payload), size):
                seq = (segment.seq + start) & MASK
                piece = Segment(seq, payload[start : start + size], segment.sent_at)
                # Repeated at least once, so that no round trip is measured by it.
                piece.sends = 2
                pieces.append(piece)
        # Plans name segments that no longer exist; the timeout or the next duplicate
        # makes new ones.
        self.segments = pieces
        self._resend = []
