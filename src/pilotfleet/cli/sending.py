"""Sending messages to one peer: new and old receivers, lost answers, clocks.

A message is offered in its newest form first. A receiver that does not know the form
says so and stores nothing, and is offered an older one on the same stream
(services.md section 4.5).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pilotfleet.cli.exchange import is_unknown, max_frame, open_exchange
from pilotfleet.cli.steps import milliseconds
from pilotfleet.errors import ConnectionFailed, DecodeError, PilotError, TimedOut
from pilotfleet.protocol.durations import format_duration
from pilotfleet.protocol.services.dataexchange import (
    FrameType,
    Tags,
    Trace,
    decode_trace_answer,
    encode_tagged,
    encode_trace,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.cli.exchange import Exchange
    from pilotfleet.cli.invocation import Context
    from pilotfleet.cli.steps import Steps
    from pilotfleet.protocol.address import Address

__all__ = ["Message", "Sender"]

ANSWER_S: Final = 30.0
"""How long a receiver may take to store a message."""


class Message(NamedTuple):
    """A message with its IDs."""

    type: FrameType
    data: bytes
    tags: Tags

    @property
    def id(self) -> str:
        """The message ID."""
        return self.tags.message_id or ""


class _NoAnswer(PilotError):
    """A message may have arrived or not."""


class Sender:
    """Sends messages to one peer, each over a stream of its own or all over one.

    Args:
        context: Whose daemon sends.
        peer: The receiver.
        target: What the user calls it.
        steps: Where to note how long each step took.
        reuses: Keep the stream for the next message.
        resends: Send a message a second time when its answer was lost.
    """

    def __init__(
        self,
        context: Context,
        peer: Address,
        *,
        target: str,
        steps: Steps,
        reuses: bool,
        resends: bool,
    ) -> None:
        self._context = context
        self._peer = peer
        self._steps = steps
        self._reuses = reuses
        self._exchange: Exchange | None = None
        self.target = target
        self.resends = resends

    def send(self, message: Message, seq: int) -> dict[str, Any]:
        """Send a message and return its row of the result.

        The row says ``ack_error`` instead of ``ack`` when the receiver may or may not
        have the message.

        Raises:
            ConnectionFailed: The peer cannot be reached.
            TimedOut: The time of the whole command is over.
        """
        row: dict[str, Any] = {
            "seq": seq,
            "bytes": len(message.data),
            "reused": self._exchange is not None,
            "message_id": message.id,
        }
        if message.tags.reply_to:
            row["reply_to"] = message.tags.reply_to
        if not seq:
            self._steps.mark("dial+send")
        try:
            row["ack"], row["tagged"] = self._deliver(message, row)
        except _NoAnswer as error:
            row["ack_error"] = str(error)
        else:
            if self._steps.is_on:
                row.update(_clocks(row["ack"]))
        if not self._reuses:
            self.close()
        return row

    def repeat(self, message: Message) -> None:
        """Send a message once more; it does not matter if that fails."""
        try:
            self._attempt(message, time.time_ns())
        except (ConnectionFailed, TimedOut, _NoAnswer) as error:
            self._context.output.note(f"sending it again failed: {error}")
        self.close()

    def close(self) -> None:
        """End the stream, if one is open."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def _deliver(self, message: Message, row: dict[str, Any]) -> tuple[str, bool]:
        """Send, and a second time over a new stream if the answer was lost."""
        try:
            return self._attempt(message, time.time_ns())
        except _NoAnswer as error:
            self.close()
            if not self.resends:
                raise
            self._context.output.note(f"{error}; sending the message again")
        row["retried"] = True
        return self._attempt(message, time.time_ns())

    def _attempt(self, message: Message, started_ns: int) -> tuple[str, bool]:
        """Offer the message until the receiver knows its form.

        Returns:
            The receiver's answer, and whether the message went with its IDs.

        Raises:
            _NoAnswer: The stream was opened, but no answer came.
        """
        exchange, limit = self._open(), self._context.daemon().limit
        answer, frame_type = "", 0
        for frame_type, payload in self._forms(message, started_ns):
            try:
                exchange.send(frame_type, payload, deadline=limit)
                answer = exchange.receive_text(limit.within(ANSWER_S))
            except ConnectionFailed as error:
                raise _NoAnswer(str(error)) from error
            except TimedOut as error:
                if limit.has_passed:
                    raise
                within = format_duration(ANSWER_S)
                raise _NoAnswer(f"no answer within {within}") from error
            if not is_unknown(answer, frame_type):
                break
        return answer, frame_type == FrameType.TAGGED

    def _forms(self, message: Message, sent_at_ns: int) -> Iterator[tuple[int, bytes]]:
        """Yield type and payload of the frames to try, newest form first."""
        forms: list[tuple[int, bytes]] = [(message.type, message.data)]
        if self._steps.is_on:
            trace = Trace(message.type, sent_at_ns, message.data)
            forms.append((FrameType.TRACE, encode_trace(trace)))
        inner_type, inner = forms[-1]
        forms.append((FrameType.TAGGED, encode_tagged(message.tags, inner_type, inner)))
        for frame_type, payload in reversed(forms):
            # A message that fills a frame has no room for what is put around it.
            if len(payload) <= max_frame() or frame_type == message.type:
                yield frame_type, payload

    def _open(self) -> Exchange:
        if self._exchange is None:
            limit = self._context.daemon().limit
            self._exchange = open_exchange(
                self._context, self._peer, target=self.target, deadline=limit
            )
            self._steps.mark("dataexchange.Dial")
        return self._exchange


def _clocks(answer: str) -> dict[str, Any]:
    """Return the times of the way there and back, if the receiver told its own."""
    now = time.time_ns()
    try:
        trace = decode_trace_answer(answer.encode())
    except DecodeError:
        return {}
    # Across two machines meaningful as far as their clocks agree.
    return {
        "inner_ack": trace.inner_ack,
        "to_receiver_ms": _span(trace.sent_at_ns, trace.received_at_ns),
        "receiver_process_ms": _span(trace.received_at_ns, trace.ack_sent_at_ns),
        "return_trip_ms": _span(trace.ack_sent_at_ns, now),
        "total_ms": _span(trace.sent_at_ns, now),
    }


def _span(start_ns: int, end_ns: int) -> float:
    return milliseconds((end_ns - start_ns) / 1e9)
