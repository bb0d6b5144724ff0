from __future__ import annotations

import pytest

from pilotfleet.errors import Closed, ConnectionReset
from pilotfleet.protocol.packet import Flag
from pilotfleet.protocol.stream.config import StreamConfig
from pilotfleet.protocol.stream.events import (
    DataReceived,
    StreamAccepted,
    StreamClosed,
    StreamEnded,
)
from pilotfleet.protocol.stream.state import State
from pilotfleet.testing.network import Conditions
from tests.protocol.stream.support import (
    A,
    B,
    Node,
    accept_from_peer,
    lonely_node,
    make_pair,
    open_stream,
    packet_from_peer,
    pattern,
)


def sent(node: Node) -> list[tuple[float, int, int, int]]:
    packets = [(round(at, 2), p.flags, p.seq, p.ack) for at, p in node.sent]
    node.sent.clear()
    return packets


def test_a_close_ends_both_directions() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    a.take_sent()
    b.take_sent()
    ours.close(a.now)
    a.pump()
    network.run(limit_s=1)
    # vectors/wire.json, key "packet": FIN and FIN-ACK have these fields.
    assert [(p.flags, p.seq, p.ack, p.window) for p in a.take_sent()] == [
        (Flag.FIN, 1, 0, 0),
        (Flag.FIN | Flag.ACK, 2, 2, 0),
    ]
    assert [(p.flags, p.seq, p.ack, p.window) for p in b.take_sent()] == [
        (Flag.FIN | Flag.ACK, 1, 2, 0)
    ]
    assert (ours.state, theirs.state) == (State.TIME_WAIT, State.TIME_WAIT)
    assert a.events[-1:] == [StreamClosed(ours, None)]
    assert b.events[-2:] == [StreamEnded(theirs), StreamClosed(theirs, None)]


def test_a_finished_connection_is_listed_for_10_s() -> None:
    network, a, b = make_pair()
    ours, _ = open_stream(network, a, b)
    ours.close(a.now)
    a.pump()
    network.run(limit_s=9.9)
    assert [c.state for c in a.endpoint.connections()] == [State.TIME_WAIT]
    assert a.endpoint.open_count == 0
    network.run(limit_s=0.3)
    assert list(a.endpoint.connections()) == []
    assert ours.state is State.CLOSED
    assert a.endpoint.next_timer() is None


def test_writing_after_the_end_says_who_ended_it() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    ours.close(a.now)
    with pytest.raises(Closed, match="closed"):
        ours.write(b"x", a.now)
    a.pump()
    network.run(limit_s=1)
    with pytest.raises(ConnectionReset, match="ended by the peer"):
        theirs.write(b"x", b.now)
    assert not theirs.writable


def test_everything_written_arrives_before_the_end() -> None:
    network, a, b = make_pair(conditions=Conditions(delay_s=0.1))
    ours, theirs = open_stream(network, a, b)
    data = pattern(200_000)
    assert ours.write(data, a.now) == len(data)
    ours.close(a.now)
    a.pump()
    network.run(until=lambda: theirs.at_eof, limit_s=60)
    assert bytes(b.received[theirs.id]) == data


def test_what_arrived_can_be_read_after_the_end() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    b.reads = False
    ours.write(b"last words", a.now)
    ours.close(a.now)
    a.pump()
    network.run(limit_s=1)
    assert theirs.state is State.TIME_WAIT
    assert not theirs.at_eof
    assert theirs.read(4, b.now) == b"last"
    assert theirs.read(100, b.now) == b" words"
    assert theirs.at_eof
    assert theirs.read(100, b.now) == b""


def test_a_close_lingers_5_s_for_data_that_nobody_acknowledges() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node)
    connection.write(b"x", node.now)
    connection.close(node.now)
    node.pump()
    assert connection.state is State.LINGER
    network.run(until=lambda: connection.state is State.FIN_WAIT, limit_s=60)
    assert network.clock.now == 5.0
    reason = "closed before everything was acknowledged"
    assert node.events[-1] == StreamClosed(connection, reason)
    assert sent(node)[-1] == (5.0, Flag.FIN, 2, 0)


def test_lingering_goes_on_while_acknowledgements_come() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node, window=1)
    connection.write(bytes(1152 * 8), node.now)
    connection.close(node.now)
    node.pump()
    for count in range(1, 8):
        network.run(limit_s=3)
        assert connection.state is State.LINGER
        ack = 1 + 1152 * count
        node.inject(packet_from_peer(Flag.ACK, seq=1, ack=ack, window=1))
    network.run(limit_s=1)
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1 + 1152 * 8, window=1))
    assert node.events[-1] == StreamClosed(connection, None)
    assert connection.state is State.FIN_WAIT


def test_lingering_has_an_end_even_with_progress() -> None:
    network, node = lonely_node(config=StreamConfig(max_linger_s=8.0))
    connection = accept_from_peer(node, window=1)
    connection.write(bytes(1152 * 8), node.now)
    connection.close(node.now)
    node.pump()
    for count in range(1, 4):
        network.run(limit_s=2.5)
        ack = 1 + 1152 * count
        node.inject(packet_from_peer(Flag.ACK, seq=1, ack=ack, window=1))
    network.run(until=lambda: connection.state is State.FIN_WAIT, limit_s=60)
    assert network.clock.now == 8.0


def test_unacknowledged_data_is_repeated_after_the_fin_and_the_fin_with_it() -> None:
    config = StreamConfig(fin_sends=1)
    network, node = lonely_node(config=config)
    connection = accept_from_peer(node)
    connection.write(b"x", node.now)
    connection.close(node.now)
    node.pump()
    network.run(limit_s=5.001)
    node.sent.clear()
    network.run(limit_s=6)
    later = [(flags, seq) for _, flags, seq, _ in sent(node)]
    assert later
    assert later == [(Flag.ACK, 1), (Flag.FIN, 2)] * (len(later) // 2)


def test_a_lone_fin_is_repeated_for_a_silent_peer_then_given_up() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node)
    connection.close(node.now)
    node.pump()
    network.run(until=lambda: connection.state is State.CLOSED, limit_s=60)
    packets = sent(node)
    assert [packet[1:] for packet in packets] == [(Flag.FIN, 1, 0)] * 4
    assert network.clock.now == 10
    assert node.endpoint.next_timer() is None or node.endpoint.open_count == 0


def test_an_acknowledged_fin_is_not_repeated() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node)
    connection.close(node.now)
    node.pump()
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=2))
    network.run(limit_s=8)
    assert len(sent(node)) == 1


def test_a_lost_fin_still_ends_the_peer() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    network.partition([A], [B])
    ours.close(a.now)
    a.pump()
    network.run(limit_s=0.1)
    network.heal()
    network.run(limit_s=2)
    assert theirs.state is State.TIME_WAIT
    assert ours.state is State.TIME_WAIT


def test_a_fin_is_answered_once_however_often_it_comes() -> None:
    _, node = lonely_node()
    accept_from_peer(node)
    for _ in range(3):
        node.inject(packet_from_peer(Flag.FIN, seq=1))
    assert sent(node) == [(0, Flag.FIN | Flag.ACK, 1, 2)]


def test_a_fin_in_answer_to_ours_is_answered_once() -> None:
    _, node = lonely_node()
    connection = accept_from_peer(node)
    connection.close(node.now)
    node.pump()
    for _ in range(2):
        node.inject(packet_from_peer(Flag.FIN | Flag.ACK, seq=1, ack=2))
    assert [packet[1:] for packet in sent(node)] == [
        (Flag.FIN, 1, 0),
        (Flag.FIN | Flag.ACK, 2, 2),
    ]


def test_an_early_fin_waits_for_its_data() -> None:
    _, node = lonely_node()
    connection = accept_from_peer(node)
    node.inject(packet_from_peer(Flag.ACK, seq=4, ack=1, payload=b"def"))
    node.take_sent()
    node.inject(packet_from_peer(Flag.FIN, seq=7))
    [packet] = node.take_sent()
    assert (packet.flags, packet.ack, len(packet.payload)) == (Flag.ACK, 1, 13)
    assert connection.state is State.ESTABLISHED
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1, payload=b"abc"))
    assert [type(event) for event in node.events[-3:]] == [
        DataReceived,
        StreamEnded,
        StreamClosed,
    ]
    assert bytes(node.received[connection.id]) == b"abcdef"
    assert node.take_sent()[-1].flags == Flag.FIN | Flag.ACK


def test_an_early_fin_is_taken_after_15_s_of_silence() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node)
    node.inject(packet_from_peer(Flag.FIN, seq=7))
    network.run(limit_s=10)
    node.inject(packet_from_peer(Flag.FIN, seq=99))
    network.run(limit_s=14.9)
    assert connection.state is State.ESTABLISHED
    network.run(limit_s=0.2)
    assert node.sent[-1][1].ack == 8
    assert next(iter(node.endpoint.connections())).state is State.TIME_WAIT


def test_closing_while_the_peers_fin_is_held_ends_it() -> None:
    _, node = lonely_node()
    connection = accept_from_peer(node)
    node.inject(packet_from_peer(Flag.FIN, seq=7))
    connection.close(node.now)
    node.pump()
    assert node.take_sent()[-1].flags == Flag.FIN | Flag.ACK
    assert connection.state is State.TIME_WAIT


def test_a_syn_while_the_fin_is_held_opens_a_new_connection() -> None:
    _, node = lonely_node()
    old = accept_from_peer(node)
    node.inject(packet_from_peer(Flag.FIN, seq=7))
    node.inject(packet_from_peer(Flag.SYN))
    assert old.reason == "peer started over"
    assert len(node.events_of(StreamAccepted)) == 2
    assert node.endpoint.open_count == 1


def test_data_after_the_fin_is_ignored_in_silence() -> None:
    _, node = lonely_node()
    accept_from_peer(node)
    node.inject(packet_from_peer(Flag.FIN, seq=1))
    node.take_sent()
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1, payload=b"late"))
    assert node.take_sent() == []


def test_a_reset_closes_at_once_without_an_answer() -> None:
    _, node = lonely_node()
    connection = accept_from_peer(node)
    node.inject(packet_from_peer(Flag.RST, seq=12345))
    assert node.take_sent() == []
    assert node.events[-1] == StreamClosed(connection, "connection reset by peer")
    with pytest.raises(ConnectionReset, match="reset by peer"):
        connection.write(b"x", node.now)
    assert connection.at_eof


def test_a_reset_forgets_a_finished_connection() -> None:
    _, node = lonely_node()
    connection = accept_from_peer(node)
    node.inject(packet_from_peer(Flag.FIN, seq=1))
    events = len(node.events)
    node.inject(packet_from_peer(Flag.RST))
    assert connection.state is State.CLOSED
    assert list(node.endpoint.connections()) == []
    assert len(node.events) == events
    node.inject(packet_from_peer(Flag.RST))


def test_aborting_sends_a_reset() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    ours.abort(a.now)
    ours.abort(a.now)
    a.pump()
    network.run(limit_s=1)
    assert a.events[-1] == StreamClosed(ours, "aborted on this side")
    assert b.events[-1] == StreamClosed(theirs, "connection reset by peer")


def test_a_stopping_node_sends_every_fin_at_once() -> None:
    network, a, b = make_pair()
    first, _ = open_stream(network, a, b)
    second, _ = open_stream(network, a, b)
    first.write(pattern(100), a.now)
    second.close(a.now)
    a.take_sent()
    a.endpoint.shut_down(a.now)
    a.endpoint.shut_down(a.now)
    a.pump()
    assert [p.flags for p in a.take_sent()] == [Flag.FIN, Flag.FIN]


def test_the_oldest_finished_connections_leave_first() -> None:
    network, a, b = make_pair(config=StreamConfig(max_finished=3))
    for _ in range(5):
        ours, _ = open_stream(network, a, b)
        ours.close(a.now)
        a.pump()
        network.run(limit_s=0.1)
    assert [c.id for c in a.endpoint.connections()] == [3, 4, 5]
