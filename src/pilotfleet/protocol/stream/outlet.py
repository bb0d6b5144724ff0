"""The packets of one connection (wire.md sections 11.3 to 11.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.stream.packets import (
    ACK,
    FIN,
    RST,
    SYN,
    encode_stream_packet,
)
from pilotfleet.protocol.stream.sack import encode_sack
from pilotfleet.protocol.stream.sequence import MASK

if TYPE_CHECKING:
    from pilotfleet.protocol.address import SocketAddress
    from pilotfleet.protocol.stream.receiver import Receiver
    from pilotfleet.protocol.stream.sender import Segment, Sender
    from pilotfleet.protocol.stream.table import ConnectionTable

__all__ = ["Outlet"]

PROBE_BYTE: Final = b"\0"


class Outlet:
    """Turns what the two halves of a stream know into packets, and counts them."""

    __slots__ = (
        "_receiver",
        "_sender",
        "_table",
        "bytes_sent",
        "isn",
        "local",
        "remote",
        "sack_sent",
        "segments_sent",
        "sent_at",
    )

    def __init__(
        self,
        local: SocketAddress,
        remote: SocketAddress,
        *,
        isn: int,
        sender: Sender,
        receiver: Receiver,
        table: ConnectionTable,
    ) -> None:
        self.local = local
        self.remote = remote
        self.isn = isn
        """The sequence number of our SYN."""
        self.bytes_sent = self.segments_sent = self.sack_sent = 0
        self.sent_at = table.now
        """When the last packet left that shows the peer we are alive."""
        self._sender = sender
        self._receiver = receiver
        self._table = table

    def send_syn(self) -> None:
        """Send the first packet of a dial."""
        self._put(SYN, self.isn, window=self._receiver.window())

    def send_syn_ack(self) -> None:
        """Answer a SYN: original number, current acknowledgement."""
        receiver = self._receiver
        # Zero has no agreed meaning here: old peers take it for "no limit".
        window = receiver.window() or 1
        self._put(SYN | ACK, self.isn, ack=receiver.expected, window=window)

    def send_segment(self, segment: Segment) -> None:
        """Send data, for the first time or again."""
        self.segments_sent += 1
        if segment.sends == 1:
            self.bytes_sent += len(segment.payload)
        self._send(ACK, segment.seq, segment.payload)

    def send_ack(self) -> None:
        """Send an acknowledgement alone, with what is held out of order."""
        blocks = self._receiver.sack_blocks()
        if blocks:
            self.sack_sent += 1
        self._send(ACK, self._sender.next, encode_sack(blocks) if blocks else b"")

    def send_probe(self) -> None:
        """Send a byte that the peer has already: a live peer answers with an ACK."""
        self._send(ACK, (self._sender.una - 1) & MASK, PROBE_BYTE)

    def send_fin(self) -> None:
        """Send our FIN, whose number is the last one used."""
        self._put(FIN, (self._sender.next - 1) & MASK)

    def send_fin_ack(self, fin: int) -> None:
        """Answer the peer's FIN."""
        self._put(FIN | ACK, self._sender.next, ack=(fin + 1) & MASK)

    def send_rst(self) -> None:
        """Break the connection off."""
        self._put(RST, 0)

    def _send(self, flags: int, seq: int, payload: bytes) -> None:
        receiver = self._receiver
        window = receiver.window()
        receiver.window_sent(window)
        self.sent_at = self._table.now
        self._put(flags, seq, ack=receiver.expected, window=window, payload=payload)

    def _put(
        self, flags: int, seq: int, ack: int = 0, window: int = 0, payload: bytes = b""
    ) -> None:
        remote = self.remote
        data = encode_stream_packet(
            self.local, remote, flags, seq, ack, window, payload
        )
        self._table.outbox.append((remote.address.node, data))
