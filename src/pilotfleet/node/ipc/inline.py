"""Commands that run where their frame is read, in order (ipc.md section 4).

They touch memory only. Stream bytes and datagrams keep their order by this, and
Health answers however busy the daemon is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.errors import DecodeError, NotFound, PermissionDenied
from pilotfleet.node.ipc.texts import encode_json, encode_list
from pilotfleet.protocol.address import BACKBONE, BROADCAST_NODE, Address
from pilotfleet.protocol.ipc import commands as wire
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.packet import MAX_PAYLOAD

if TYPE_CHECKING:
    from pilotfleet.node.ipc.session import IpcSession

__all__ = ["INLINE", "InlineHandler"]

InlineHandler: TypeAlias = Callable[["IpcSession", bytes], None]

_CONNECTION_SIZE: Final = 4
_ADDRESS_SIZE: Final = 8


def bind(session: IpcSession, payload: bytes) -> None:
    """Claim a virtual port for this client."""
    port = wire.unpack_port(payload, "bind: missing port")
    session.agent.listen(port, session.accept)
    session.ports.add(port)
    session.reply(Command.BIND_OK, wire.pack_port(port))


def unbind(session: IpcSession, payload: bytes) -> None:
    """Release a port; streams that were accepted live on."""
    if len(payload) != 2:
        raise DecodeError("unbind: port is required")
    port = wire.unpack_port(payload, "unbind: port is required")
    if port not in session.ports:
        raise NotFound("unbind: port is not owned by this client")
    session.ports.discard(port)
    session.agent.unlisten(port)
    session.reply(Command.UNBIND_OK, payload)


def send(session: IpcSession, payload: bytes) -> None:
    """Write to a stream, of this client or of another one of the agent's.

    Never answers: an Error frame would be taken by some other request.
    """
    if len(payload) < _CONNECTION_SIZE:
        return
    number = wire.unpack_connection(payload, "send: missing conn_id")
    entry = session.streams.get(number) or session.server.find_stream(session, number)
    if entry is not None:
        entry.write(memoryview(payload)[_CONNECTION_SIZE:])


def close(session: IpcSession, payload: bytes) -> None:
    """Close any stream of the agent; answer also for unknown ones.

    Closing a live stream gives its owner a second CloseOK, the push that every
    end of a stream gives (ipc.md section 5.3).
    """
    number = wire.unpack_connection(payload, "close: missing conn_id")
    session.reply(Command.CLOSE_OK, wire.pack_connection(number))
    session.server.close_stream(session, number)


def send_to(session: IpcSession, payload: bytes) -> None:
    """Send a datagram; never answers."""
    if _ADDRESS_SIZE <= len(payload) <= _ADDRESS_SIZE + MAX_PAYLOAD:
        remote = wire.unpack_socket_address(payload, "sendto: missing header")
        if remote.address.node != BROADCAST_NODE:
            session.datagrams.put(remote, payload[_ADDRESS_SIZE:], confirm=False)


def send_to_confirm(session: IpcSession, payload: bytes) -> None:
    """Send a datagram and answer when the tunnel has it."""
    remote = wire.unpack_socket_address(payload, "sendto: missing header")
    if remote.address.node == BROADCAST_NODE:
        raise PermissionDenied(
            "sendto: broadcast address requires admin token: use BroadcastDatagram"
        )
    size = len(payload) - _ADDRESS_SIZE
    if size > MAX_PAYLOAD:
        raise DecodeError(
            f"sendto: marshal: payload too large: {size} bytes (max {MAX_PAYLOAD})"
        )
    session.datagrams.put(remote, payload[_ADDRESS_SIZE:], confirm=True)


def info(session: IpcSession, payload: bytes) -> None:
    """Tell everything about the agent (ipc.md section 10.1)."""
    body = session.agent.info()
    # When rows must be cut, peers with open streams stay (section 10.1).
    linked = {connection["remote_addr"] for connection in body["conn_list"]}
    body["peer_list"].sort(key=lambda row: _address(row) not in linked)
    data = encode_list(body, "peer_list", "conn_list", newest_last=False)
    session.reply(Command.INFO_OK, data)


def health(session: IpcSession, payload: bytes) -> None:
    """Answer from memory, whatever else goes on (ipc.md section 10.4)."""
    session.reply(Command.HEALTH_OK, encode_json(session.agent.health()))


def cancel(session: IpcSession, payload: bytes) -> None:
    """Abort all dials of this client; each answers for itself."""
    for task in session.dials:
        task.cancel()


INLINE: Final[dict[int, InlineHandler]] = {
    Command.BIND: bind,
    Command.UNBIND: unbind,
    Command.SEND: send,
    Command.CLOSE: close,
    Command.SEND_TO: send_to,
    Command.SEND_TO_CONFIRM: send_to_confirm,
    Command.INFO: info,
    Command.HEALTH: health,
    Command.CANCEL: cancel,
}


def _address(row: dict[str, Any]) -> str:
    return str(Address(BACKBONE, row["node_id"]))
