from __future__ import annotations

import pytest

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.packet import Flag
from pilotfleet.protocol.stream.events import DataReceived, Writable
from pilotfleet.protocol.stream.sack import decode_sack
from pilotfleet.protocol.stream.state import State
from pilotfleet.testing.network import Conditions
from tests.protocol.stream.support import (
    B,
    accept_from_peer,
    lonely_node,
    make_pair,
    open_stream,
    packet_from_peer,
    pattern,
)

# ipc.md section 10.3.
ROW = """
id local_port remote_addr remote_port state cong_win ssthresh in_flight srtt_ms
rttvar_ms unacked ooo_buf peer_recv_win recv_win in_recovery bytes_sent bytes_recv
segs_sent segs_recv retransmits fast_retx sack_recv sack_sent dup_acks
"""


def test_data_goes_both_ways() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    question, answer = pattern(300_000, 1), pattern(200_000, 2)
    a.write(ours, question)
    b.write(theirs, answer)
    network.run(limit_s=10)
    assert bytes(b.received[theirs.id]) == question
    assert bytes(a.received[ours.id]) == answer
    assert ours.stats()["retransmits"] == 0


@pytest.mark.parametrize("isn", [0xFFFF_FFFF, 0xFFFF_0000, 0x7FFF_FF00])
def test_numbers_wrap_around(isn: int) -> None:
    network, a, b = make_pair(isn_a=isn, isn_b=isn - 5000)
    ours, theirs = open_stream(network, a, b)
    data = pattern(200_000)
    a.write(ours, data)
    b.write(theirs, data)
    network.run(limit_s=10)
    assert bytes(b.received[theirs.id]) == data
    assert bytes(a.received[ours.id]) == data


def test_a_peer_with_512_segments_of_window_never_gets_more_than_128() -> None:
    network, a, b = make_pair()
    ours, _ = open_stream(network, a, b)
    a.write(ours, pattern(600_000))
    outstanding = [0]
    while network.step() and network.clock.now < 5:
        outstanding.append(ours.stats()["unacked"])
    assert 36 < max(outstanding) <= 128
    assert ours.stats()["segs_sent"] == -(-600_000 // 1152)


def test_large_segments_move_once_both_sides_have_probed() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    ours.segment_size = 60_000
    data = pattern(3_000_000)
    a.write(ours, data)
    network.run(limit_s=10)
    assert bytes(b.received[theirs.id]) == data
    assert ours.stats()["segs_sent"] < 70
    assert theirs.stats()["recv_win"] == 2048


def test_falling_back_to_small_segments_loses_nothing() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    ours.segment_size = 60_000
    data = pattern(1_000_000)
    a.write(ours, data)
    network.run(limit_s=0.0025)
    network.filter = lambda data, source, destination: len(data) < 1300
    network.run(limit_s=0.01)
    ours.segment_size = 1152
    network.run(limit_s=60)
    assert bytes(b.received[theirs.id]) == data


@pytest.mark.parametrize("size", [0, 65536])
def test_impossible_segment_sizes_are_refused(size: int) -> None:
    network, a, b = make_pair()
    ours, _ = open_stream(network, a, b)
    with pytest.raises(InvalidArgument, match="segment size"):
        ours.segment_size = size
    assert ours.segment_size == 1152


def test_segments_up_to_the_largest_packet_are_taken() -> None:
    _, node = lonely_node()
    accept_from_peer(node)
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1, payload=bytes(65535)))
    assert len(node.received[1]) == 65535


def test_a_write_beyond_the_buffer_is_taken_in_part_until_there_is_room() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    b.reads = False
    data = pattern(256 * 1024 + 1)
    assert ours.write(data, a.now) == 256 * 1024
    assert ours.write(b"x", a.now) == 0
    assert not ours.writable
    assert not a.events_of(Writable)
    network.run(limit_s=10)
    a.pump()
    network.run(limit_s=1)
    assert a.events_of(Writable) == [Writable(ours)]
    assert ours.writable
    assert theirs.readable_bytes == 256 * 1024


def test_no_delay_is_a_switch_of_the_connection() -> None:
    _, node = lonely_node()
    connection = accept_from_peer(node)
    assert not connection.no_delay
    connection.no_delay = True
    for _ in range(2):
        connection.write(b"x", node.now)
        node.pump()
    assert connection.no_delay
    assert len(node.take_sent()) == 2


def test_one_data_event_stands_for_all_that_arrived_before_it_was_taken() -> None:
    _, node = lonely_node()
    connection = accept_from_peer(node)
    for seq in range(1, 6):
        packet = packet_from_peer(Flag.ACK, seq=seq, ack=1, payload=b"x")
        node.endpoint.receive_packet(packet, 0.0)
    node.pump()
    assert node.events_of(DataReceived) == [DataReceived(connection)]
    assert bytes(node.received[connection.id]) == b"xxxxx"
    node.inject(packet_from_peer(Flag.ACK, seq=6, ack=1, payload=b"y"))
    assert len(node.events_of(DataReceived)) == 2


def test_a_batch_of_segments_is_acknowledged_once_with_the_answer() -> None:
    _, node = lonely_node()
    connection = accept_from_peer(node)
    for seq in (1, 2, 3):
        packet = packet_from_peer(Flag.ACK, seq=seq, ack=1, payload=b"x")
        node.endpoint.receive_packet(packet, 0.0)
    connection.write(b"answer", 0.0)
    node.pump()
    [packet] = node.take_sent()
    assert (packet.ack, packet.payload) == (4, b"answer")


def test_each_segment_out_of_order_is_acknowledged_with_sack() -> None:
    _, node = lonely_node()
    accept_from_peer(node)
    for seq in (1153, 3457):
        payload = bytes(1152)
        packet = packet_from_peer(Flag.ACK, seq=seq, ack=1, payload=payload)
        node.endpoint.receive_packet(packet, 0.0)
    node.pump()
    acks = node.take_sent()
    assert [packet.ack for packet in acks[:2]] == [1, 1]
    # vectors/wire.json, key "packet": pure ACK with one SACK block.
    assert acks[0].payload.hex() == "5341434b010000048100000901"
    assert decode_sack(acks[1].payload) == [(1153, 2305), (3457, 4609)]


def test_held_segments_do_not_reduce_the_window() -> None:
    _, node = lonely_node()
    accept_from_peer(node)
    node.inject(packet_from_peer(Flag.ACK, seq=1153, ack=1, payload=bytes(1152)))
    assert node.take_sent()[-1].window == 512


def test_an_old_segment_is_acknowledged_and_an_empty_ack_is_not() -> None:
    _, node = lonely_node()
    accept_from_peer(node)
    node.inject(packet_from_peer(Flag.ACK, seq=0, ack=1, payload=b"?"))
    [packet] = node.take_sent()
    assert (packet.flags, packet.seq, packet.ack, packet.window) == (2, 1, 1, 512)
    for seq in (0, 1, 5):
        node.inject(packet_from_peer(Flag.ACK, seq=seq, ack=1))
    assert node.take_sent() == []


def test_acks_are_delayed_by_5_ms_once_the_quick_ones_are_used_up() -> None:
    network, node = lonely_node()
    accept_from_peer(node)
    for seq in range(1, 34):
        node.inject(packet_from_peer(Flag.ACK, seq=seq, ack=1, payload=b"x"))
    assert len(node.take_sent()) == 32
    network.run(limit_s=0.1)
    assert [(round(at, 3), packet.ack) for at, packet in node.sent] == [(0.005, 34)]


def test_deferred_acknowledgements_go_with_the_answer() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    for stream in (ours, theirs):
        stream.defer_acks(0.4)
    a.take_sent(), b.take_sent()
    for _ in range(20):
        a.write(ours, b"question")
        network.run(limit_s=0.1)
        b.write(theirs, b"answer")
        network.run(limit_s=0.1)
    assert (len(a.take_sent()), len(b.take_sent())) == (20, 20)
    assert bytes(b.received[theirs.id]) == b"question" * 20
    assert ours.stats()["retransmits"] == theirs.stats()["retransmits"] == 0


def test_with_deferred_acknowledgements_short_writes_leave_at_once() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    for stream in (ours, theirs):
        stream.defer_acks(0.4)
    for _ in range(3):
        a.write(ours, b"x")
        network.run(limit_s=0.01)
    assert bytes(b.received[theirs.id]) == b"xxx"


def test_packets_without_a_known_flag_are_ignored() -> None:
    _, node = lonely_node()
    accept_from_peer(node)
    node.inject(packet_from_peer(Flag.NONE, seq=1, ack=1, payload=b"x"))
    assert node.take_sent() == []
    assert not node.received


def test_data_that_only_resembles_sack_is_delivered() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    data = (b"SACK\x01" + bytes(8)) * 1000
    a.write(ours, data)
    network.run(limit_s=10)
    assert bytes(b.received[theirs.id]) == data


def test_stats_have_all_fields_of_a_row() -> None:
    network, a, b = make_pair(conditions=Conditions(delay_s=0.05))
    ours, theirs = open_stream(network, a, b)
    a.write(ours, pattern(10_000))
    network.run(limit_s=5)
    row = ours.stats()
    assert list(row) == ROW.split()
    assert row["remote_addr"] == "0:0000.0000.0BBA"
    assert (row["state"], row["bytes_sent"], row["segs_sent"]) == (
        "ESTABLISHED",
        10_000,
        9,
    )
    assert row["srtt_ms"] == pytest.approx(100)
    assert theirs.stats()["bytes_recv"] == 10_000
    assert "3002" not in repr(row)
    assert str(B) not in repr(ours)


# Zero window.


def test_a_reader_that_stops_closes_the_window_and_reopens_it() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    b.reads = False
    data = pattern(700 * 1152)
    a.write(ours, data)
    network.run(limit_s=20)
    assert ours.stats()["peer_recv_win"] == 0
    assert theirs.readable_bytes == 512 * 1152
    b.reads = True
    b.read(theirs)
    b.pump()
    network.run(limit_s=1)
    assert bytes(b.received[theirs.id]) == data


def test_a_lost_window_update_is_made_up_for_by_probing() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    b.reads = False
    data = pattern(700 * 1152)
    a.write(ours, data)
    network.run(limit_s=20)
    b.reads = True
    network.partition([a.node_id], [b.node_id])
    b.read(theirs)
    b.pump()
    network.run(limit_s=0.1)
    network.heal()
    network.run(limit_s=40)
    assert bytes(b.received[theirs.id]) == data


def test_probes_are_one_old_byte_with_doubling_gaps() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node, window=0)
    connection.write(b"waiting", node.now)
    node.pump()
    network.run(limit_s=40)
    assert [round(at, 2) for at, _ in node.sent] == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert {(p.seq, p.payload) for p in node.take_sent()} == {(0, b"\0")}
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1, window=1))
    assert [packet.payload for packet in node.take_sent()] == [b"waiting"]


def test_a_window_that_never_opens_ends_in_a_reset() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node, window=0)
    connection.write(b"waiting", node.now)
    node.pump()
    network.run(until=lambda: connection.state is State.CLOSED, limit_s=2000)
    assert len(node.sent) == 31
    assert node.sent[-1][1].flags == Flag.RST
    assert connection.reason == "peer does not acknowledge"


def test_a_probe_of_ours_is_answered_with_the_window() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    b.reads = False
    a.write(ours, pattern(700 * 1152))
    network.run(limit_s=20)
    b.take_sent()
    network.run(limit_s=40)
    answers = b.take_sent()
    assert answers
    assert {packet.window for packet in answers} == {0}
    assert theirs.readable_bytes == 512 * 1152


def test_a_reference_sender_that_missed_the_update_learns_it_by_its_empty_ack() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node)
    node.reads = False
    for index in range(512):
        node.inject(packet_from_peer(Flag.ACK, seq=1 + index, ack=1, payload=b"x"))
    assert node.take_sent()[-1].window == 0
    node.read(connection, 100)
    node.pump()
    assert [packet.window for packet in node.take_sent()] == [100]
    network.run(limit_s=0.5)
    for _ in range(3):
        node.inject(packet_from_peer(Flag.ACK, seq=513, ack=1))
    assert [packet.window for packet in node.take_sent()] == [100]


# Giving up.


def test_a_segment_never_acknowledged_ends_in_a_reset_after_eight_sends() -> None:
    network, node = lonely_node()
    connection = accept_from_peer(node)
    connection.sender.rtt.srtt = 0.0
    connection.sender.rtt.rto = 1.0
    connection.write(b"x", node.now)
    node.pump()
    network.run(until=lambda: connection.state is State.CLOSED, limit_s=100)
    flags = [packet.flags for _, packet in node.sent]
    assert flags == [Flag.ACK] * 8 + [Flag.RST]
    assert [round(at, 1) for at, _ in node.sent][:4] == [0, 1, 3, 7]
