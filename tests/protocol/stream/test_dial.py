from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import Busy, Closed
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.packet import Flag, Packet
from pilotfleet.protocol.stream.events import (
    RelayWanted,
    StreamAccepted,
    StreamClosed,
    StreamFailed,
    StreamOpened,
)
from pilotfleet.protocol.stream.state import State
from tests.protocol.stream.support import (
    PORT,
    A,
    B,
    Node,
    lonely_node,
    make_pair,
    open_stream,
    packet_from_peer,
)

if TYPE_CHECKING:
    from collections.abc import Hashable


def times(node: Node) -> list[float]:
    return [round(moment, 3) for moment, _ in node.sent]


def syn_ack(
    *, ack: int = 1, seq: int = 0, dst_port: int = 49152, window: int = 512
) -> Packet:
    return packet_from_peer(
        Flag.SYN | Flag.ACK,
        seq=seq,
        ack=ack,
        src_port=PORT,
        dst_port=dst_port,
        window=window,
    )


def test_handshake_bytes_are_those_of_the_reference() -> None:
    # vectors/wire.json, key "packet": SYN, SYN-ACK and third ACK.
    network, a, _ = make_pair()
    seen: list[str] = []

    def watch(data: bytes, source: Hashable, destination: Hashable) -> bool:
        seen.append(data.hex())
        return True

    network.filter = watch
    a.connect()
    network.run(limit_s=1)
    assert seen == [
        "110100000000000003e9000000000bbac000004d0000000000000000020024229542",
        "13010000000000000bba0000000003e9004dc000000000000000000102003700dea3",
        "120100000000000003e9000000000bbac000004d000000010000000102002e5db26c",
    ]


def test_both_ends_open() -> None:
    network, a, b = make_pair(isn_a=5, isn_b=0xFFFF_FFFF)
    ours, theirs = open_stream(network, a, b)
    assert a.events_of(StreamOpened) == [StreamOpened(ours)]
    assert (ours.state, theirs.state) == (State.ESTABLISHED, State.ESTABLISHED)
    assert (ours.local_port, theirs.local_port) == (49152, PORT)
    assert theirs.remote == SocketAddress(Address(0, A), 49152)
    assert (ours.id, theirs.id) == (1, 1)


def test_a_dial_uses_the_network_it_dials_into() -> None:
    network, a, b = make_pair()
    a.connect(network=9)
    network.run(limit_s=1)
    theirs = b.events_of(StreamAccepted)[0].connection
    assert theirs.remote.address == Address(9, A)
    assert a.events_of(StreamOpened)
    assert a.sent[0][1].src_network == 9


def test_ladder_goes_direct_three_times_then_by_relay() -> None:
    network, a = lonely_node()
    connection = a.connect()
    network.run(until=lambda: bool(a.events_of(StreamFailed)), limit_s=60)
    assert times(a) == [0, 0.25, 0.75, 1.75, 2.25, 3.25, 5.25, 9.25]
    assert a.events == [
        RelayWanted(B),
        StreamFailed(connection, "no answer from the peer", refused=False),
    ]
    assert network.clock.now == 17.25
    assert connection.state is State.CLOSED
    assert a.endpoint.open_count == 0


def test_relay_is_wanted_at_the_fourth_syn() -> None:
    network, a = lonely_node()
    a.connect()
    network.run(until=lambda: bool(a.events_of(RelayWanted)), limit_s=60)
    assert network.clock.now == 1.75


def test_ladder_begins_when_the_tunnel_is_ready() -> None:
    network, a = lonely_node()
    a.endpoint.has_tunnel = lambda peer: False
    a.connect()
    network.run(limit_s=6)
    assert times(a) == [0]
    a.endpoint.tunnel_ready(B, a.now)
    a.endpoint.tunnel_ready(12345, a.now)
    a.pump()
    network.run(limit_s=2)
    assert times(a) == [0, 6.25, 6.75, 7.75]


def test_a_new_tunnel_hastens_the_next_syn_without_adding_one() -> None:
    network, a = lonely_node()
    connection = a.connect()
    network.run(limit_s=6)
    a.endpoint.tunnel_ready(B, a.now)
    a.pump()
    network.run(until=lambda: not connection.is_active, limit_s=60)
    assert times(a)[-2:] == [5.25, 6.25]
    assert len(a.sent) == 8


def test_a_dial_without_a_tunnel_fails_after_10_s() -> None:
    network, a = lonely_node()
    a.endpoint.has_tunnel = lambda peer: False
    a.connect()
    assert network.run(until=lambda: bool(a.events_of(StreamFailed)), limit_s=60)
    assert network.clock.now == 10
    assert not a.events_of(StreamFailed)[0].refused


def test_a_failed_tunnel_fails_its_dials_only() -> None:
    _, a = lonely_node()
    dial = a.connect(B)
    other = a.connect(4004)
    a.endpoint.tunnel_failed(B, "node 3002 is not registered", a.now)
    a.pump()
    assert a.events == [
        StreamFailed(dial, "node 3002 is not registered", refused=False)
    ]
    assert other.state is State.SYN_SENT


def test_tunnel_news_without_connections_is_nothing() -> None:
    _, a = lonely_node()
    a.endpoint.tunnel_ready(B, 0.0)
    a.endpoint.tunnel_failed(B, "gone", 0.0)
    assert a.endpoint.next_event() is None


def test_a_reset_refuses_the_dial() -> None:
    network, a, _ = make_pair()
    connection = a.connect(port=9)
    network.run(limit_s=1)
    assert a.events == [StreamFailed(connection, "connection refused", refused=True)]
    assert connection.state is State.CLOSED
    with pytest.raises(Exception, match="connection refused"):
        connection.write(b"x", a.now)


def test_a_fin_fails_the_dial_and_is_answered() -> None:
    _, a = lonely_node(isn=7)
    a.connect()
    a.take_sent()
    a.inject(packet_from_peer(Flag.FIN, seq=3, src_port=PORT, dst_port=49152))
    [reply] = a.take_sent()
    assert (reply.flags, reply.seq, reply.ack) == (Flag.FIN | Flag.ACK, 8, 4)
    assert [type(event) for event in a.events] == [StreamFailed]


def test_data_before_the_syn_ack_is_ignored() -> None:
    _, a = lonely_node()
    a.connect()
    a.take_sent()
    a.inject(
        packet_from_peer(
            Flag.ACK, seq=1, ack=1, payload=b"x", src_port=PORT, dst_port=49152
        )
    )
    assert a.take_sent() == []


def test_a_syn_ack_for_an_earlier_life_is_reset_and_the_dial_goes_on() -> None:
    network, a = lonely_node(isn=1000)
    connection = a.connect()
    a.take_sent()
    a.inject(syn_ack(ack=77))
    [reset] = a.take_sent()
    assert reset.flags == Flag.RST
    assert not a.events
    network.run(limit_s=0.3)
    a.inject(syn_ack(ack=1001))
    assert a.events == [StreamOpened(connection)]


def test_a_repeated_syn_ack_is_ignored() -> None:
    _, a = lonely_node()
    a.connect()
    a.inject(syn_ack())
    a.take_sent()
    a.inject(syn_ack())
    assert a.take_sent() == []


def test_data_written_before_the_answer_leaves_with_the_third_packet() -> None:
    _, a = lonely_node()
    connection = a.connect()
    a.take_sent()
    assert connection.write(b"early", a.now) == 5
    a.pump()
    assert a.take_sent() == []
    a.inject(syn_ack())
    [packet] = a.take_sent()
    assert (packet.flags, packet.seq, packet.ack) == (Flag.ACK, 1, 1)
    assert packet.payload == b"early"


@pytest.mark.parametrize("verb", ["close", "abort", "shut_down"])
def test_closing_a_dial_ends_it_with_a_reset(verb: str) -> None:
    _, a = lonely_node()
    connection = a.connect()
    a.take_sent()
    getattr(connection, verb)(a.now)
    a.pump()
    assert [packet.flags for packet in a.take_sent()] == [Flag.RST]
    assert [type(event) for event in a.events] == [StreamFailed]
    assert connection.state is State.CLOSED


def test_ports_go_round_and_are_free_again_when_a_connection_is_forgotten() -> None:
    network, a, _ = make_pair()
    first = a.connect(port=9)
    network.run(limit_s=1)
    second = a.connect(port=9)
    assert (first.local_port, second.local_port) == (49152, 49153)
    a.endpoint.listen(49154)
    third = a.connect(port=9)
    assert third.local_port == 49155


def test_a_dial_fails_when_all_ports_are_in_use() -> None:
    _, a = lonely_node()
    remote = SocketAddress(Address(0, B), PORT)
    dials = [a.endpoint.connect(remote, 0.0) for _ in range(16384)]
    with pytest.raises(Busy, match="ephemeral"):
        a.endpoint.connect(remote, 0.0)
    dials[100].abort(0.0)
    assert a.endpoint.connect(remote, 0.0).local_port == 49152 + 100


def test_a_lost_third_packet_is_covered_by_data() -> None:
    network, a, b = make_pair()
    a.connect()
    network.filter = lambda data, source, destination: source != A
    network.run(limit_s=0.1)
    network.filter = None
    connection = a.connect()
    network.filter = lambda data, source, destination: data[1] != 1 or data[0] != 0x12
    network.run(limit_s=0.1)
    network.filter = None
    a.write(connection, b"hello")
    network.run(limit_s=5)
    theirs = b.events_of(StreamAccepted)[-1].connection
    assert bytes(b.received[theirs.id]) == b"hello"


def test_a_node_can_dial_itself() -> None:
    network, a = lonely_node()
    ours = a.connect(A)
    network.run(limit_s=1)
    theirs = a.events_of(StreamAccepted)[0].connection
    a.write(ours, b"to myself")
    network.run(limit_s=1)
    assert bytes(a.received[theirs.id]) == b"to myself"
    ours.close(a.now)
    a.pump()
    network.run(limit_s=1)
    assert {event.connection for event in a.events_of(StreamClosed)} == {ours, theirs}
    with pytest.raises(Closed):
        ours.write(b"x", a.now)
