"""Binary payloads of the daemon's socket, against the recorded ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.ipc import commands as wire
from pilotfleet.protocol.ipc.commands import REPLIES, Command
from tests.protocol.ipc.vectors import FRAMES, frame_payload

if TYPE_CHECKING:
    from collections.abc import Callable

NODE_2 = SocketAddress(Address(0, 2), 3000)


@pytest.mark.parametrize("vector", FRAMES, ids=lambda vector: vector["id"])
def test_command_bytes_have_the_recorded_names(vector: dict[str, Any]) -> None:
    names = {
        "BindOK": "BIND_OK",
        "DialOK": "DIAL_OK",
        "CloseOK": "CLOSE_OK",
        "SendToOK": "SEND_TO_OK",
    }
    command = Command(int(vector["frame"][:2], 16))
    plain = names.get(vector["name"], vector["name"]).replace("_", "").lower()
    assert command.name.replace("_", "").lower() == plain


def test_every_request_has_the_reply_of_the_table() -> None:
    # Section 2: the reply is the next byte, wherever there is one.
    assert all(reply == command + 1 for command, reply in REPLIES.items())
    assert len(REPLIES) == 26  # The extension included.


def test_accept() -> None:
    accept = wire.Accept(3001, 9, SocketAddress(Address(0, 1), 49167))
    assert wire.pack_accept(accept) == frame_payload("accept")
    assert wire.unpack_accept(frame_payload("accept")) == accept


def test_dial_and_datagram_addresses() -> None:
    dialled = SocketAddress(Address(0, 2), 7)
    assert wire.pack_socket_address(dialled) == frame_payload("dial-node2-port7")
    assert wire.pack_socket_address(NODE_2) + b"dg2" == frame_payload("sendto")
    assert wire.unpack_socket_address(frame_payload("sendto"), "") == NODE_2


def test_received_datagram() -> None:
    datagram = wire.ReceivedDatagram(SocketAddress(Address(0, 1), 49161), 3000, b"dg2")
    assert wire.pack_received_datagram(datagram) == frame_payload("recvfrom")
    assert wire.unpack_received_datagram(frame_payload("recvfrom")) == datagram


def test_broadcast() -> None:
    expected = wire.Broadcast(0, 3000, b"adm", b"hi")
    assert wire.unpack_broadcast(frame_payload("broadcast")) == expected


def test_errors() -> None:
    text = "port 3000 already bound"
    assert wire.pack_error(text) == frame_payload("error-bind-taken")
    assert wire.unpack_error(frame_payload("error-bind-taken")) == text
    assert wire.unpack_error(b"") == ""
    assert wire.unpack_error(b"\x00\x01\xff") == "\ufffd"


def test_short_payloads_carry_the_daemons_words() -> None:
    with pytest.raises(DecodeError, match=r"^bind: missing port$"):
        wire.unpack_port(b"\x01", "bind: missing port")
    with pytest.raises(DecodeError, match=r"^broadcast: missing header$"):
        wire.unpack_broadcast(bytes(5))
    with pytest.raises(DecodeError, match=r"^broadcast: truncated token$"):
        wire.unpack_broadcast(bytes(5) + b"\x09" + b"short")


@pytest.mark.parametrize(
    "unpack",
    [
        wire.unpack_accept,
        wire.unpack_received_datagram,
        wire.unpack_broadcast,
        lambda data: wire.unpack_port(data, "missing"),
        lambda data: wire.unpack_connection(data, "missing"),
        lambda data: wire.unpack_socket_address(data, "missing"),
    ],
)
@given(data=st.binary(max_size=40))
def test_garbage_gives_a_value_or_our_error(
    unpack: Callable[[bytes], object], data: bytes
) -> None:
    try:
        unpack(data)
    except DecodeError:
        pass
    else:
        assert data


@given(
    port=st.integers(0, 0xFFFF),
    connection=st.integers(0, 0xFFFF_FFFF),
    network=st.integers(0, 0xFFFF),
    node=st.integers(0, 0xFFFF_FFFF),
    data=st.binary(max_size=100),
)
def test_packing_and_unpacking_are_inverse(
    port: int, connection: int, network: int, node: int, data: bytes
) -> None:
    remote = SocketAddress(Address(network, node), port)
    accept = wire.Accept(port, connection, remote)
    datagram = wire.ReceivedDatagram(remote, port, data)
    assert wire.unpack_accept(wire.pack_accept(accept)) == accept
    packed = wire.pack_received_datagram(datagram)
    assert wire.unpack_received_datagram(packed) == datagram
    assert wire.unpack_port(wire.pack_port(port), "") == port
    assert wire.unpack_connection(wire.pack_node(node), "") == node
