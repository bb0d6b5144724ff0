from __future__ import annotations

from pilotfleet.protocol.packet import Flag, Packet
from pilotfleet.protocol.stream.events import StreamClosed
from pilotfleet.protocol.stream.state import State
from tests.protocol.stream.support import (
    Node,
    accept_from_peer,
    lonely_node,
    make_pair,
    open_stream,
    packet_from_peer,
    pattern,
)


def sent_until(node: Node, limit_s: float) -> list[tuple[float, Packet]]:
    node.sent.clear()
    node.network.run(limit_s=limit_s)
    return [(round(at, 1), packet) for at, packet in node.sent]


def test_an_idle_connection_sends_an_empty_ack_every_40_s() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    sent = sent_until(a, 170)
    assert [at for at, _ in sent] == [40.0, 80.0, 120.0, 160.0]
    assert {(p.flags, p.payload, p.window) for _, p in sent} == {(Flag.ACK, b"", 512)}
    network.run(limit_s=3600)
    assert (ours.state, theirs.state) == (State.ESTABLISHED, State.ESTABLISHED)


def test_keepalives_of_connections_opened_together_are_spread() -> None:
    network, a, b = make_pair()
    a.endpoint._rng.chance = 1.0  # type: ignore[attr-defined]
    open_stream(network, a, b)
    assert [at for at, _ in sent_until(a, 40)] == [35.0]


def test_a_reference_peer_that_closes_after_120_s_of_silence_stays_open() -> None:
    # The peer receives our empty ACKs, never answers them, and so never probes; it
    # answers only the one-byte segment (wire.md section 11.11).
    network, node = lonely_node()
    connection = accept_from_peer(node)
    heard = 0.0
    while network.clock.now < 900:
        network.run(limit_s=1)
        for packet in node.take_sent():
            assert network.clock.now - heard < 45
            heard = network.clock.now
            if packet.payload:
                assert (packet.seq, len(packet.payload)) == (0, 1)
                node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1))
    assert connection.state is State.ESTABLISHED


def test_a_dead_peer_is_probed_three_times_then_closed_with_a_fin() -> None:
    _, node = lonely_node()
    connection = accept_from_peer(node)
    sent = sent_until(node, 130)
    assert [(at, packet.flags, packet.payload) for at, packet in sent][:5] == [
        (40, Flag.ACK, b""),
        (80, Flag.ACK, b"\0"),
        (95, Flag.ACK, b"\0"),
        (110, Flag.ACK, b"\0"),
        (125, Flag.FIN, b""),
    ]
    assert node.events_of(StreamClosed) == [StreamClosed(connection, "peer is silent")]


def test_an_answered_probe_starts_the_wait_again() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node)
    network.run(limit_s=100)
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1))
    network.run(limit_s=119)
    assert connection.state is State.ESTABLISHED


def test_traffic_makes_keepalives_unnecessary() -> None:
    network, a, b = make_pair()
    ours, _ = open_stream(network, a, b)
    a.take_sent()
    for _ in range(20):
        a.write(ours, pattern(10))
        network.run(limit_s=10)
    assert all(packet.payload for packet in a.take_sent())


def test_a_closed_window_is_not_mistaken_for_a_dead_peer() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    b.reads = False
    data = pattern(600 * 1152)
    a.write(ours, data)
    network.run(limit_s=400)
    assert ours.state is State.ESTABLISHED
    b.reads = True
    b.read(theirs)
    b.pump()
    network.run(limit_s=40)
    assert bytes(b.received[theirs.id]) == data
