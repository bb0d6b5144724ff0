from __future__ import annotations

import pytest

from pilotfleet.protocol.grid import GRID_S
from pilotfleet.protocol.packet import Flag, Packet
from pilotfleet.protocol.stream.config import StreamConfig
from pilotfleet.protocol.stream.events import IDLE, PEER_SILENT, StreamClosed
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
    on_time = pytest.approx([40.0, 80.0, 120.0, 160.0], abs=GRID_S)
    assert [at for at, _ in sent] == on_time
    assert {(p.flags, p.payload, p.window) for _, p in sent} == {(Flag.ACK, b"", 512)}
    network.run(limit_s=3600)
    assert (ours.state, theirs.state) == (State.ESTABLISHED, State.ESTABLISHED)


def test_keepalives_of_connections_opened_together_are_spread() -> None:
    network, a, b = make_pair()
    a.endpoint._rng.chance = 1.0  # type: ignore[attr-defined]
    open_stream(network, a, b)
    assert [at for at, _ in sent_until(a, 40)] == pytest.approx([35.0], abs=GRID_S)


def test_idle_connections_are_looked_at_together() -> None:
    network, a, b = make_pair()
    for _ in range(20):
        open_stream(network, a, b)
        network.run(limit_s=0.01)
    assert len(sent_until(a, 170)) >= 60
    assert all((at / GRID_S).is_integer() for at, _ in a.sent)


def test_new_connections_are_looked_at_together() -> None:
    network, a, b = make_pair()
    network.run(limit_s=0.07)
    connection, _ = open_stream(network, a, b)
    assert (connection.deadline / GRID_S).is_integer()


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


def test_a_doubted_peer_that_stays_silent_is_given_up_after_8_s() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node)
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1))
    begin = network.clock.now
    node.endpoint.doubt_peer(connection.remote.address.node, begin)
    sent = sent_until(node, 20)
    probes = [round(at - begin) for at, packet in sent if packet.payload]
    assert probes == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [round(at - begin) for at, p in sent if p.flags & Flag.FIN][:1] == [8]
    assert connection.reason == PEER_SILENT


def test_a_doubted_peer_is_given_up_also_while_data_is_under_way() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node)
    connection.write(b"x" * 5000, network.clock.now)
    node.endpoint.doubt_peer(connection.remote.address.node, network.clock.now)
    network.run(limit_s=9)
    assert connection.reason == PEER_SILENT


def test_an_answer_ends_the_doubt() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    network.run(limit_s=1)
    a.endpoint.doubt_peer(ours.remote.address.node, network.clock.now)
    assert len([p for _, p in sent_until(a, 30) if p.payload]) == 1
    assert (ours.state, theirs.state) == (State.ESTABLISHED, State.ESTABLISHED)


def test_a_doubt_gives_its_peer_all_probes_and_no_other_peer_any() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node)
    network.run(limit_s=96)
    assert connection._idle._misses == 2
    node.endpoint.doubt_peer(connection.remote.address.node + 1, network.clock.now)
    assert [p for _, p in sent_until(node, 1) if p.payload] == []
    node.endpoint.doubt_peer(connection.remote.address.node, network.clock.now)
    sent = sent_until(node, 20)
    assert len([packet for _, packet in sent if packet.payload]) == 8


def test_a_restarted_peer_of_ours_ends_a_doubted_connection_at_once() -> None:
    network, a, b = make_pair()
    ours, _ = open_stream(network, a, b)
    network.run(limit_s=1)
    b.endpoint._table = None
    a.endpoint.doubt_peer(ours.remote.address.node, network.clock.now)
    network.run(limit_s=1)
    assert not ours.is_active


def test_an_idle_timeout_ends_a_connection_whose_peer_lives() -> None:
    network, node = lonely_node(config=StreamConfig(idle_timeout_s=50.0))
    connection = accept_from_peer(node)
    network.run(limit_s=30)
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1))
    assert next(at for at, p in sent_until(node, 100) if p.flags & Flag.FIN) == 80.0
    assert node.events_of(StreamClosed) == [StreamClosed(connection, IDLE)]
