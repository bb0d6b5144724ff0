"""The life of a stream connection (wire.md sections 11.2, 11.3 and 11.12).

A connection moves only by the table below. An input without an entry for the
current state is ignored: that is what the wire asks for in every such case (a
SYN-ACK on an open connection, a FIN on a finished one, a RST for nothing).

Three things differ from TCP and explain the table's size. The responder is open
as soon as it has answered the SYN, so there is no SYN_RECV. There is no
half-close: one FIN, from either side, ends both directions. And a FIN needs no
acknowledgement, so a finished connection waits only for its residence to end.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["TRANSITIONS", "Input", "State"]


class State(Enum):
    """Where a connection is in its life; the value is what ``conn_list`` shows."""

    CLOSED = "CLOSED"
    SYN_SENT = "SYN_SENT"
    ESTABLISHED = "ESTABLISHED"
    LINGER = "CLOSING"
    """Closed by the application; data is still to be acknowledged before the FIN."""
    FIN_WAIT = "FIN_WAIT"
    TIME_WAIT = "TIME_WAIT"

    # By identity: an Enum's own runs in Python, and every packet is looked up by it.
    __hash__ = object.__hash__


class Input(Enum):
    """What moves a connection on."""

    DIAL = "dial"
    ACCEPT = "accept"
    SYN_ACK = "SYN-ACK received"
    FIN = "FIN received"
    RST = "RST received"
    CLOSE = "close"
    SEND_FIN = "send FIN"
    GIVE_UP = "give up"
    EXPIRE = "expire"


TRANSITIONS: Final = {
    (State.CLOSED, Input.DIAL): State.SYN_SENT,
    (State.CLOSED, Input.ACCEPT): State.ESTABLISHED,
    (State.SYN_SENT, Input.SYN_ACK): State.ESTABLISHED,
    (State.SYN_SENT, Input.FIN): State.TIME_WAIT,
    (State.SYN_SENT, Input.RST): State.CLOSED,
    (State.SYN_SENT, Input.CLOSE): State.CLOSED,
    (State.SYN_SENT, Input.GIVE_UP): State.CLOSED,
    (State.ESTABLISHED, Input.FIN): State.TIME_WAIT,
    (State.ESTABLISHED, Input.RST): State.CLOSED,
    (State.ESTABLISHED, Input.CLOSE): State.LINGER,
    (State.ESTABLISHED, Input.GIVE_UP): State.CLOSED,
    (State.LINGER, Input.FIN): State.TIME_WAIT,
    (State.LINGER, Input.RST): State.CLOSED,
    (State.LINGER, Input.SEND_FIN): State.FIN_WAIT,
    (State.LINGER, Input.GIVE_UP): State.CLOSED,
    (State.FIN_WAIT, Input.FIN): State.TIME_WAIT,
    (State.FIN_WAIT, Input.RST): State.CLOSED,
    (State.FIN_WAIT, Input.GIVE_UP): State.CLOSED,
    (State.FIN_WAIT, Input.EXPIRE): State.CLOSED,
    (State.TIME_WAIT, Input.RST): State.CLOSED,
    (State.TIME_WAIT, Input.EXPIRE): State.CLOSED,
}
