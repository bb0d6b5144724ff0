"""One stream connection: handshake, data, idle rules, end (wire.md section 11).

The two halves, :class:`Sender` and :class:`Receiver`, know nothing of each other;
this class joins them into packets and adds what concerns both. Its life is the
table in :mod:`pilotfleet.protocol.stream.state`.

Input changes state and marks the connection dirty; :meth:`StreamConnection.flush`,
called once per batch of input, sends segments and acknowledgements. Packets whose
number matters leave at once: one ACK per out-of-order segment, the answer to a FIN,
RST.

Longer than 600 lines, because every rule that concerns both halves meets here; what
stands alone (dialling, closing, idling, the halves) has a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import Closed, ConnectionReset, InvalidArgument
from pilotfleet.protocol.stream.closing import CloseStep, CloseWatch
from pilotfleet.protocol.stream.config import MAX_SEGMENT, NEVER, SEGMENT
from pilotfleet.protocol.stream.congestion import Reno
from pilotfleet.protocol.stream.dial import Dial, DialStep
from pilotfleet.protocol.stream.events import (
    IDLE,
    PEER_SILENT,
    DataReceived,
    RelayWanted,
    StreamAccepted,
    StreamClosed,
    StreamEnded,
    StreamFailed,
    StreamOpened,
    Writable,
)
from pilotfleet.protocol.stream.idle import IdleStep, IdleWatch
from pilotfleet.protocol.stream.outlet import Outlet
from pilotfleet.protocol.stream.receiver import Arrival, Receiver
from pilotfleet.protocol.stream.sack import decode_sack, is_sack
from pilotfleet.protocol.stream.sender import Sender
from pilotfleet.protocol.stream.sequence import MASK, is_after
from pilotfleet.protocol.stream.state import TRANSITIONS, Input, State
from pilotfleet.protocol.stream.stats import conn_list_row

if TYPE_CHECKING:
    import random

    from pilotfleet.protocol.address import SocketAddress
    from pilotfleet.protocol.packet import Packet
    from pilotfleet.protocol.stream.config import StreamConfig
    from pilotfleet.protocol.stream.table import ConnectionTable

__all__ = ["StreamConnection"]

# Of our choosing.
KEEPALIVE_SPREAD: Final = 0.125
"""Keepalives come up to this share early, so that connections opened together do
not stay in step."""
MAX_PLAIN_SEGMENT: Final = 4096
"""No program but ours sends larger segments, so it may fill a larger window."""

_OPEN: Final = frozenset({State.ESTABLISHED, State.LINGER})
_WRITABLE: Final = frozenset({State.SYN_SENT, State.ESTABLISHED})


class StreamConnection:
    """A reliable byte stream in each direction. Performs no I/O."""

    __slots__ = (
        "_closing",
        "_config",
        "_dial",
        "_idle",
        "_is_blocked",
        "_is_closed_here",
        "_peer_isn",
        "_rng",
        "_syn_ack_at",
        "_table",
        "bytes_received",
        "deadline",
        "id",
        "is_active",
        "is_announced",
        "is_dirty",
        "key",
        "outlet",
        "owner",
        "reason",
        "receiver",
        "sack_received",
        "scheduled",
        "segments_received",
        "sender",
        "state",
    )

    def __init__(
        self,
        number: int,
        local: SocketAddress,
        remote: SocketAddress,
        *,
        table: ConnectionTable,
        rng: random.Random,
        config: StreamConfig,
    ) -> None:
        self.id = number
        """Unique on this node; never on the wire."""
        self.key = (
            local.port,
            remote.address.network,
            remote.address.node,
            remote.port,
        )
        self.state = State.CLOSED
        self.is_active = False
        """Whether packets of this connection still mean anything."""
        self.reason: str | None = None
        """Why the connection was broken off, if it was."""
        self.owner: object | None = None
        """For the shell that reads and writes the stream."""
        self.deadline = NEVER
        self.scheduled = NEVER
        self.is_dirty = False
        self.is_announced = False
        """Whether a ``DataReceived`` is waiting to be taken."""
        self._table = table
        self._rng = rng
        self._config = config
        # 1.18.0 starts at 0 in both roles (section 11.3). A random start lets the peer
        # tell our restart from a repeated SYN, and keeps late packets of an older
        # connection with the same ports out of this one's window.
        isn = rng.getrandbits(32)
        self.sender = Sender(
            isn, Reno(config.max_cwnd_bytes), max_outstanding=config.max_outstanding
        )
        self.receiver = Receiver(config.receive_window_units, config.max_held_segments)
        self.outlet = Outlet(
            local,
            remote,
            isn=isn,
            sender=self.sender,
            receiver=self.receiver,
            table=table,
        )
        spread = 1 - KEEPALIVE_SPREAD * rng.random()
        self._idle = IdleWatch(
            table.now,
            interval_s=config.keepalive_s * spread,
            probe_idle_s=config.probe_idle_s,
            timeout_s=config.idle_timeout_s,
        )
        self._dial: Dial | None = None
        self._syn_ack_at: float | None = None
        self._peer_isn = 0
        # Most connections are open and idle most of their time, so what serves only
        # their beginning or end is made when it is needed.
        self._closing: CloseWatch | None = None
        self._is_blocked = False
        self._is_closed_here = False
        self.bytes_received = self.segments_received = self.sack_received = 0

    def __repr__(self) -> str:
        return f"<StreamConnection {self.id} to {self.remote} {self.state.value}>"

    @property
    def local_port(self) -> int:
        """The port on this node."""
        return self.outlet.local.port

    @property
    def remote(self) -> SocketAddress:
        """The peer and its port."""
        return self.outlet.remote

    @property
    def readable_bytes(self) -> int:
        """Bytes in order that nobody has read."""
        return self.receiver.queued_bytes

    @property
    def at_eof(self) -> bool:
        """Whether everything was read that will ever come."""
        return not (self.is_active or self.receiver.queued_bytes)

    @property
    def has_to_acknowledge(self) -> bool:
        """Whether something is to be sent though there may be no data."""
        return self.receiver.ack_now

    @property
    def writable(self) -> bool:
        """Whether :meth:`write` would take at least one byte."""
        room = self._config.send_buffer_bytes - len(self.sender.unsent)
        return room > 0 and self.state in _WRITABLE

    @property
    def no_delay(self) -> bool:
        """Whether short writes leave at once instead of waiting for company."""
        return self.sender.no_delay

    @no_delay.setter
    def no_delay(self, value: bool) -> None:
        self.sender.no_delay = value

    def defer_acks(self, delay_s: float) -> None:
        """Let acknowledgements wait for data to carry them, and data for nothing.

        For streams with data both ways whose writers gather by themselves, and whose
        both ends do this: others send again after 0.2 s without an ACK. Less than half
        a second (RFC 1122).
        """
        self.receiver.defer_acks(delay_s)
        self.sender.rtt.expect_late_acks()
        # It would wait for the very acknowledgements that wait now.
        self.sender.no_delay = True

    @property
    def segment_size(self) -> int:
        """Bytes in segments cut from now on; more only with peers that probed it."""
        return self.sender.segment_size

    @segment_size.setter
    def segment_size(self, size: int) -> None:
        if not 0 < size <= MAX_SEGMENT:
            raise InvalidArgument(f"segment size {size} is not 1 to {MAX_SEGMENT}")
        is_large = size > SEGMENT
        config = self._config
        self.sender.set_segment_size(
            size, config.large_max_cwnd_bytes if is_large else config.max_cwnd_bytes
        )
        # Both windows count units of 1152 bytes: the small ones hold no more than ten
        # segments of 60 KB.
        if is_large:
            self.receiver.widen(config.large_receive_window_units)

    def stats(self) -> dict[str, Any]:
        """Return a ``conn_list`` row (ipc.md section 10.3)."""
        return conn_list_row(self)

    # The application's side.

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes written here that the peer has not acknowledged."""
        sender = self.sender
        return ((sender.next - sender.una) & MASK) + len(sender.unsent)

    def write(self, data: bytes | memoryview, now: float) -> int:
        """Take what fits into the send buffer and return how many bytes that were.

        After a write that took less than it was given, ``Writable`` tells when half
        of the buffer is free.

        Raises:
            Closed: The stream was closed on this side.
            ConnectionReset: The peer ended or broke it.
        """
        if self.state not in _WRITABLE:
            raise self._write_error()
        sender = self.sender
        room = self._config.send_buffer_bytes - len(sender.unsent)
        taken = sender.write(data, room) if room > 0 else 0
        # Only a writer that was cut short is told of room: events for all others would
        # cost a wake-up per acknowledgement.
        if taken < len(data):
            self._is_blocked = True
        self._table.mark_dirty(self, now)
        return taken

    def read(self, limit: int, now: float) -> bytes:
        """Return up to ``limit`` bytes; empty when nothing is there."""
        data = self.receiver.read(limit, now)
        # 1.18.0 never announces that its reader caught up, so its peer waits for the
        # next probe, up to 30 s. Section 11.9 asks for better.
        if self.receiver.ack_now and self.is_active:
            self._table.mark_dirty(self, now)
        return data

    def close(self, now: float) -> None:
        """End the stream once everything written is acknowledged, or time is up."""
        if self.state is State.SYN_SENT:
            self.abort(now)
        elif self.state is State.ESTABLISHED:
            if self._closing is not None and self._closing.held_fin is not None:
                # Both ends have closed; nobody will read what is missing.
                self._take_fin(self._closing.held_fin, now)
                return
            self._advance(Input.CLOSE)
            # The FIN waits for the acknowledgements: releases up to 1.17 act on a FIN
            # at once and lose the data that was still missing before it (section
            # 11.12).
            self._is_closed_here = True
            self.sender.push()
            self._closing = CloseWatch.linger(self.sender.una, self._config, now)
            self._table.mark_dirty(self, now)

    def abort(self, now: float) -> None:
        """Break the stream off with a RST; what was not sent is lost."""
        if self.is_active:
            self._table.now = now
            self._give_up("aborted on this side")

    def doubt(self, now: float) -> None:
        """Probe whether the peer still knows this connection; end it if not."""
        if self.state in _OPEN:
            self._idle.doubt(now)
            self._table.mark_dirty(self, now)

    def shut_down(self, now: float) -> None:
        """Send the FIN without waiting for anything, as a stopping node does."""
        if self.state is State.SYN_SENT:
            self.abort(now)
        elif self._advance(Input.CLOSE) or self.state is State.LINGER:
            self._end(now, None)

    # Opening.

    def dial(self, now: float, *, has_tunnel: bool) -> None:
        """Send the first SYN."""
        self._advance(Input.DIAL)
        # Without a tunnel the SYN waits in the tunnel's queue. Its attempts are counted
        # from the key on, or a slow key exchange would use them up (11.10).
        self._dial = Dial(
            now, has_tunnel=has_tunnel, tunnel_wait_s=self._config.tunnel_wait_s
        )
        self.outlet.send_syn()
        self._table.mark_dirty(self, now)

    def tunnel_ready(self, now: float) -> None:
        """Start counting SYNs: the tunnel can carry them now."""
        if self._dial is not None:
            self._dial.start(now)
            self._table.mark_dirty(self, now)

    def fail_dial(self, reason: str, *, refused: bool = False) -> None:
        """Give the dial up."""
        self._advance(Input.GIVE_UP)
        self._leave(reason)
        self._table.emit(StreamFailed(self, reason, refused))

    def accept(self, packet: Packet, now: float) -> None:
        """Answer a SYN; the connection is open from here on."""
        self._advance(Input.ACCEPT)
        # There is no SYN_RECV: as in the reference, data before the third packet of the
        # handshake is taken (section 11.3).
        self._peer_isn = packet.seq
        self.receiver.expected = (packet.seq + 1) & MASK
        self.sender.receive_window(packet.window)
        self._syn_ack_at = now
        self.outlet.send_syn_ack()
        self._table.emit(StreamAccepted(self))
        self._table.mark_dirty(self, now)

    def repeats_syn(self, packet: Packet) -> bool:
        """Return whether a SYN is a copy of the one that opened this connection.

        If not, the peer has started over and no longer knows this connection. The
        reference always begins at 0, so its restart cannot be told from a copy.
        """
        return (
            self.state in _OPEN
            and (self._closing is None or self._closing.held_fin is None)
            and packet.seq == self._peer_isn
        )

    def resend_syn_ack(self, now: float) -> None:
        """Answer a copy of the SYN: original number, current acknowledgement."""
        # An acknowledgement may now be for either copy, so it measures nothing (Karn's
        # rule).
        self._syn_ack_at = None
        self.outlet.send_syn_ack()
        self._table.mark_dirty(self, now)

    def receive_syn_ack(self, packet: Packet, now: float) -> None:
        """Open the connection that we dialled."""
        # A copy of it, for a connection that is open already, gets no answer: the peer
        # does not wait for one (section 11.3).
        if self._dial is None:
            return
        if packet.ack != self.sender.una:
            # The peer answers for a connection from before our restart. It forgets
            # that one by the RST, and the next SYN of the ladder opens a new one.
            self.outlet.send_rst()
            return
        self._advance(Input.SYN_ACK)
        round_trip = self._dial.round_trip(now)
        if round_trip is not None:
            self.sender.rtt.add_sample(round_trip)
        self._dial = None
        self._table.dialling.pop(self.id, None)
        self._peer_isn = packet.seq
        self.receiver.expected = (packet.seq + 1) & MASK
        # The third packet of the handshake. If it is lost, our first data or the
        # keepalive stands in for it.
        self.receiver.ack_now = True
        self.sender.receive_window(packet.window)
        self._idle.heard_at = now
        self._table.emit(StreamOpened(self))
        self._table.mark_dirty(self, now)

    # Data.

    def receive_ack(self, packet: Packet, now: float) -> None:
        """Take a packet with ACK alone: acknowledgement, SACK blocks or data."""
        if self._dial is not None:
            return
        # Any packet proves the peer alive, even one whose numbers are out of date.
        self._idle.heard_at = now
        self._table.mark_dirty(self, now)
        payload = packet.payload
        sender = self.sender
        if self._syn_ack_at is not None:
            sender.rtt.add_sample(now - self._syn_ack_at)
            self._syn_ack_at = None
        # Window and acknowledgement come first, then SACK or data (section 11.6). A
        # packet with data never counts as a duplicate acknowledgement: in a stream both
        # ways each segment of the peer would repeat the last number.
        if not payload:
            sender.receive_ack(packet.ack, packet.window, now, is_pure=True)
            self.receiver.answer_empty(now)
        elif is_sack(payload):
            self.sack_received += 1
            blocks = decode_sack(payload)
            sender.receive_ack(
                packet.ack, packet.window, now, is_pure=True, blocks=blocks
            )
        else:
            sender.receive_ack(packet.ack, packet.window, now, is_pure=False)
            # After either FIN nothing is taken, and nothing is answered: there is no
            # half-close, and an ACK would promise data to a reader who is gone.
            if self.state in _OPEN:
                self._receive_data(packet.seq, payload, now)

    def flush(self, now: float) -> None:
        """Send what may leave now, and work out the next deadline."""
        if self._dial is not None:
            self.deadline = self._dial.deadline
            return
        sender, receiver, outlet = self.sender, self.receiver, self.outlet
        segments = sender.segments_to_send(now)
        for segment in segments:
            outlet.send_segment(segment)
        if receiver.ack_now:
            outlet.send_ack()
        if self._is_blocked:
            self._announce_room()
        # Last, because nothing is acknowledged after our FIN, and the peer shall have
        # the ACK that was due.
        if self.state is State.LINGER and sender.is_drained:
            self._end(now, None)
        elif segments and self._closing is not None and self._closing.has_sent_fin:
            # Older data is repeated after our FIN, so that may be lost as well.
            self._send_fin(self._closing, now)
        self.deadline = min(sender.deadline, receiver.ack_deadline, self._idle.deadline)
        if self._closing is not None:
            self.deadline = min(self.deadline, self._closing.deadline)

    def _receive_data(self, seq: int, payload: bytes, now: float) -> None:
        self.segments_received += 1
        fate = self.receiver.receive(seq, payload, now)
        if fate == Arrival.HELD:
            # The sender counts these, so they are never joined into one.
            self.outlet.send_ack()
        # Data in order that found no room is not acknowledged: the window said so
        # already, and an ACK would look like a duplicate and start a recovery.
        elif fate == Arrival.TAKEN:
            self.bytes_received += len(payload)
            # One event stands for all data until it is taken, so that a batch of
            # segments wakes the reader once and the queue of events stays short.
            if not self.is_announced and self.state is State.ESTABLISHED:
                self.is_announced = True
                self._table.emit(DataReceived(self))
            # The sender changes to large segments without telling us, so their size
            # shows it. Up to 4096 bytes they may be of release 1.2 (section 11.1).
            if len(payload) > MAX_PLAIN_SEGMENT:
                self.receiver.widen(self._config.large_receive_window_units)
            if self._closing is not None:
                self._check_held_fin(self._closing.held_fin, now)

    def _check_held_fin(self, fin: int | None, now: float) -> None:
        if fin is not None and not is_after(fin, self.receiver.expected):
            self._take_fin(fin, now)

    def _announce_room(self) -> None:
        if len(self.sender.unsent) <= self._config.send_buffer_bytes // 2:
            self._is_blocked = False
            self._table.emit(Writable(self))

    # The end.

    def receive_fin(self, packet: Packet, now: float) -> None:
        """Take the peer's FIN, or hold it while data before it is missing."""
        self._idle.heard_at = now
        # A FIN without its data must not end the stream: the reader would take what it
        # has for all of it. In other states nobody reads any more.
        is_early = is_after(packet.seq, self.receiver.expected)
        if self.state is not State.ESTABLISHED or not is_early:
            self._take_fin(packet.seq, now)
            return
        if self._closing is None:
            # A later copy changes nothing, whatever its number.
            self._closing = CloseWatch.hold(packet.seq, self._config, now)
        self.outlet.send_ack()
        self._table.mark_dirty(self, now)

    def receive_rst(self) -> None:
        """Close at once; a RST is neither checked nor answered."""
        # No number is checked, by the specification (11.5). It cannot be forged from
        # outside: the tunnel proved the sender, and the key holds his node.
        if self._dial is not None:
            self.fail_dial("connection refused", refused=True)
            return
        self._break_off(Input.RST, "connection reset by peer")

    def replace(self) -> None:
        """Leave without a word: the peer has opened a new connection in our place."""
        self._break_off(Input.GIVE_UP, "peer started over")

    def expire(self) -> None:
        """Leave the table at the end of the residence."""
        self._advance(Input.EXPIRE)
        self._leave(self.reason)

    def _take_fin(self, seq: int, now: float) -> None:
        """End both directions; a FIN is answered exactly once."""
        # Answered here and nowhere else: TIME_WAIT ignores further FINs, or two peers
        # could answer each other's for ever (section 11.12).
        was_open, was_dialling = self.state in _OPEN, self._dial is not None
        self._advance(Input.FIN)
        self.outlet.send_fin_ack(seq)
        self._table.now = now
        self._drop_data()
        # The residence keeps the ports, so that late segments are not taken for those
        # of a new connection.
        self.deadline = now + self._config.residence_s
        self._table.finish(self)
        if was_dialling:
            self._dial = None
            self._table.emit(StreamFailed(self, "closed by peer", refused=False))
        elif was_open:
            self._table.emit(StreamEnded(self))
            self._table.emit(StreamClosed(self, None))

    def _end(self, now: float, reason: str | None) -> None:
        """Send our FIN; nothing new is taken from here on."""
        self._advance(Input.SEND_FIN)
        self.reason = reason
        # What is under way stays: it is repeated below our FIN until the peer has it or
        # is given up.
        self.sender.unsent = bytearray()
        # The FIN takes one number, like a byte.
        self.sender.next = (self.sender.next + 1) & MASK
        if self._closing is None:
            self._closing = CloseWatch(self._config, now)
        self._send_fin(self._closing, now)
        self.receiver.drop_held()
        self._table.emit(StreamClosed(self, reason))
        self._table.mark_dirty(self, now)

    def _send_fin(self, closing: CloseWatch, now: float) -> None:
        self.outlet.send_fin()
        closing.fin_sent(now, self.sender.rtt.rto)

    def _give_up(self, reason: str) -> None:
        """Break the connection off and tell the peer."""
        self.outlet.send_rst()
        if self._dial is not None:
            self.fail_dial(reason)
        else:
            self._break_off(Input.GIVE_UP, reason)

    def _break_off(self, step: Input, reason: str) -> None:
        was_open = self.state in _OPEN
        self._advance(step)
        self._leave(reason)
        if was_open:
            self._table.emit(StreamClosed(self, reason))

    def _leave(self, reason: str | None) -> None:
        self.reason = reason
        self._dial = None
        self._drop_data()
        self.deadline = NEVER
        self._table.remove(self)

    def _drop_data(self) -> None:
        """Free what can no longer be sent; the reader keeps what it has."""
        self.sender.drop()
        self.receiver.drop_held()
        self._closing = None

    def _write_error(self) -> Closed | ConnectionReset:
        if self.reason is not None:
            return ConnectionReset(f"stream to {self.remote} is broken: {self.reason}")
        if self.state is State.TIME_WAIT and not self._is_closed_here:
            return ConnectionReset(f"stream to {self.remote} was ended by the peer")
        return Closed(f"stream to {self.remote} is closed")

    # Timers.

    def handle_timer(self, now: float) -> None:
        """Run the timers that are due."""
        if self._dial is not None:
            self._step_dial(self._dial, now)
            return
        sender = self.sender
        self.receiver.handle_timer(now)
        # Randomness and time come in from outside, so that a test or a bug report can
        # be replayed exactly.
        if not sender.handle_timer(now, self._rng.random()):
            self._give_up("peer does not acknowledge")
            return
        if sender.take_probe(now):
            self.outlet.send_probe()
        self._watch_idle(now)
        if self._closing is not None and self._closing.deadline <= now:
            self._step_close(self._closing, now)

    def _step_dial(self, dial: Dial, now: float) -> None:
        match dial.take_step(now):
            case DialStep.NO_TUNNEL:
                self.fail_dial("no tunnel to the peer in time")
            case DialStep.NO_ANSWER:
                self.fail_dial("no answer from the peer")
            case DialStep.SEND_BY_RELAY:
                self._table.emit(RelayWanted(self.remote.address.node))
                self.outlet.send_syn()
            case DialStep.SEND:
                self.outlet.send_syn()

    def _watch_idle(self, now: float) -> None:
        # After our FIN the close watch alone decides; probes would keep alive what we
        # have ended.
        if self.state not in _OPEN:
            self._idle.deadline = NEVER
            return
        # While data is under way the retransmission timer judges the peer. Two judges
        # would give up at different times for the same silence.
        is_waiting = not self.sender.is_drained
        match self._idle.take_step(now, self.outlet.sent_at, is_waiting=is_waiting):
            case IdleStep.SEND_ACK:
                self.outlet.send_ack()
            case IdleStep.SEND_PROBE:
                self.outlet.send_probe()
            case IdleStep.GIVE_UP:
                self._advance(Input.CLOSE)
                self._end(now, PEER_SILENT)
            case IdleStep.TIME_OUT:
                self._advance(Input.CLOSE)
                self._end(now, IDLE)
            case IdleStep.NOTHING:
                pass

    def _step_close(self, closing: CloseWatch, now: float) -> None:
        sender = self.sender
        if self.state is State.LINGER:
            step = closing.check_linger(now, sender.una)
        elif self.state is State.FIN_WAIT:
            is_acknowledged = sender.una == sender.next
            step = closing.check_fin_wait(now, is_acknowledged=is_acknowledged)
        else:
            step = closing.check_held_fin(now, self._idle.heard_at)
        match step:
            case CloseStep.TAKE_HELD_FIN:
                assert closing.held_fin is not None
                self._take_fin(closing.held_fin, now)
            case CloseStep.END:
                self._end(now, "closed before everything was acknowledged")
            case CloseStep.REPEAT_FIN:
                self._send_fin(closing, now)
            case CloseStep.EXPIRE:
                self.expire()
            case CloseStep.NOTHING:
                pass

    def _advance(self, step: Input) -> bool:
        """Move by the table; an input that is not in it changes nothing."""
        state = TRANSITIONS.get((self.state, step))
        if state is None:
            return False
        self.state = state
        # Kept, because every packet and every read asks for it.
        self.is_active = state is not State.TIME_WAIT and state is not State.CLOSED
        return True
