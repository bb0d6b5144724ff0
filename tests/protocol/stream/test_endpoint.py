from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import AlreadyExists, Busy, DecodeError, NotFound
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.packet import Flag, Packet, Protocol, decode_packet
from pilotfleet.protocol.stream.config import StreamConfig
from pilotfleet.protocol.stream.endpoint import StreamEndpoint
from pilotfleet.protocol.stream.events import (
    AdmissionWanted,
    StreamAccepted,
    StreamOpened,
    SynCause,
    SynDropped,
)
from pilotfleet.protocol.stream.state import State
from tests.protocol.stream.support import (
    PORT,
    A,
    B,
    FixedRandom,
    Node,
    accept_from_peer,
    lonely_node,
    make_pair,
    open_stream,
    packet_from_peer,
)


def syn(
    port: int = 50000,
    *,
    seq: int = 0,
    dst_port: int = PORT,
    src_node: int = B,
    src_network: int = 0,
) -> Packet:
    return packet_from_peer(
        Flag.SYN,
        seq=seq,
        src_port=port,
        dst_port=dst_port,
        src_node=src_node,
        src_network=src_network,
    )


def flags_sent(node: Node) -> list[int]:
    return [packet.flags for packet in node.take_sent()]


SYN_ACK = Flag.SYN | Flag.ACK

# Ports.


def test_a_port_is_listened_on_once() -> None:
    _, node = lonely_node()
    with pytest.raises(AlreadyExists, match="77"):
        node.endpoint.listen(PORT)
    node.endpoint.unlisten(PORT)
    with pytest.raises(NotFound, match="77"):
        node.endpoint.unlisten(PORT)
    assert not node.endpoint.is_listening(PORT)


def test_ports_of_the_host_are_listened_on_without_state_of_the_node() -> None:
    _, node = lonely_node()
    node.endpoint.listens_by_default = lambda port: port == 7
    assert node.endpoint.is_listening(7)
    with pytest.raises(AlreadyExists):
        node.endpoint.listen(7)
    node.inject(syn(dst_port=7))
    assert flags_sent(node) == [SYN_ACK]


# The gate, in the order of wire.md section 11.4.


def test_a_syn_to_an_unbound_port_is_reset_even_from_a_stranger() -> None:
    _, node = lonely_node()
    node.endpoint.is_public = False
    node.inject(syn(dst_port=9))
    [reset] = node.take_sent()
    assert reset == Packet(Protocol.STREAM, Flag.RST, 0, A, 0, B, 9, 50000)
    assert not node.events


def test_a_copy_of_the_syn_gets_the_same_answer_and_changes_nothing() -> None:
    _, node = lonely_node()
    node.inject(syn())
    [first] = node.take_sent()
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1, payload=b"abc"))
    node.take_sent()
    node.inject(syn())
    [second] = node.take_sent()
    assert second == first._replace(ack=4)
    assert len(node.events_of(StreamAccepted)) == 1


def test_no_syn_ack_announces_a_closed_window() -> None:
    _, node = lonely_node()
    node.reads = False
    accept_from_peer(node)
    for seq in range(1, 513):
        node.inject(packet_from_peer(Flag.ACK, seq=seq, ack=1, payload=b"x"))
    assert node.take_sent()[-1].window == 0
    node.inject(syn())
    assert node.take_sent()[-1].window == 1


def test_a_syn_with_another_number_is_a_peer_that_started_over() -> None:
    _, node = lonely_node()
    old = accept_from_peer(node)
    node.inject(syn(seq=4711))
    assert old.reason == "peer started over"
    assert node.take_sent()[-1].ack == 4712
    assert node.endpoint.open_count == 1


def test_a_private_node_asks_once_and_then_answers_what_it_held() -> None:
    _, node = lonely_node()
    node.endpoint.is_public = False
    for _ in range(2):
        node.inject(syn(50000))
        node.inject(syn(50001))
    assert node.events == [AdmissionWanted(B, PORT)]
    assert flags_sent(node) == []
    node.endpoint.admit(B, allowed=True, now=node.now)
    node.pump()
    assert flags_sent(node) == [SYN_ACK, SYN_ACK]


def test_a_refused_peer_gets_no_answer() -> None:
    _, node = lonely_node()
    node.endpoint.is_public = False
    node.inject(syn())
    node.endpoint.admit(B, allowed=False, now=node.now)
    node.pump()
    assert flags_sent(node) == []
    node.endpoint.admit(B, allowed=True, now=node.now)
    node.pump()
    assert flags_sent(node) == []


def test_admission_may_be_given_for_one_port() -> None:
    _, node = lonely_node()
    node.endpoint.is_public = False
    node.endpoint.listen(444)
    node.inject(syn())
    node.inject(syn(dst_port=444))
    node.endpoint.admit(B, allowed=True, now=node.now, port=444)
    node.pump()
    assert [packet.src_port for packet in node.take_sent()] == [444]
    assert node.events_of(AdmissionWanted) == [
        AdmissionWanted(B, PORT),
        AdmissionWanted(B, 444),
    ]


def test_held_syns_are_bounded_and_expire() -> None:
    network, node = lonely_node(config=StreamConfig(max_waiting_syns=3))
    node.endpoint.is_public = False
    for source in range(10):
        node.inject(syn(src_node=source))
    assert len(node.events) == 3
    network.run(limit_s=30)
    node.endpoint.admit(0, allowed=True, now=node.now)
    node.pump()
    assert flags_sent(node) == []


def test_admitting_out_of_the_blue_is_nothing() -> None:
    _, node = lonely_node()
    node.endpoint.admit(B, allowed=True, now=0.0)
    assert node.endpoint.next_event() is None


def test_the_port_policy_of_a_network_drops_in_silence() -> None:
    _, node = lonely_node()
    node.endpoint.port_is_allowed = lambda network, port: network != 9
    node.inject(syn(src_network=9))
    assert flags_sent(node) == []
    assert [event.cause for event in node.events_of(SynDropped)] == [SynCause.POLICY]
    node.inject(syn(src_network=8))
    assert flags_sent(node) == [SYN_ACK]


def test_one_source_gets_64_syns_and_then_10_per_second() -> None:
    network, node = lonely_node()
    for port in range(100):
        node.inject(syn(port))
    assert flags_sent(node) == [SYN_ACK] * 64
    network.run(limit_s=1)
    for port in range(100, 150):
        node.inject(syn(port))
    assert flags_sent(node) == [SYN_ACK] * 10


def test_all_sources_together_get_100_syns_and_then_100_per_second() -> None:
    config = StreamConfig(accept_backlog=1000)
    network, node = lonely_node(config=config)
    for source in range(2000, 2150):
        node.inject(syn(src_node=source))
    assert flags_sent(node) == [SYN_ACK] * 100
    network.run(limit_s=0.5)
    for source in range(3000, 3100):
        node.inject(syn(src_node=source))
    assert flags_sent(node).count(int(SYN_ACK)) == 50


def test_a_syn_beyond_the_rate_is_reported() -> None:
    _, node = lonely_node(config=StreamConfig(syn_rate=2))
    syns = [syn(port) for port in range(3)]
    for packet in syns:
        node.inject(packet)
    assert flags_sent(node) == [SYN_ACK, SYN_ACK]
    assert node.events_of(SynDropped) == [SynDropped(syns[2], SynCause.RATE)]


def test_listed_nodes_have_no_rate() -> None:
    config = StreamConfig(syn_rate=1, syn_whitelist=frozenset([B]))
    _, node = lonely_node(config=config)
    for port in range(70):
        node.inject(syn(port))
    assert flags_sent(node) == [SYN_ACK] * 70


def test_connections_per_port_and_in_all_are_limited_by_resets() -> None:
    config = StreamConfig(max_connections_per_port=2, max_connections=3)
    _, node = lonely_node(config=config)
    node.endpoint.listen(78)
    for port in (1, 2, 3):
        node.inject(syn(port))
    assert flags_sent(node) == [SYN_ACK, SYN_ACK, Flag.RST]
    for port in (1, 2):
        node.inject(syn(port, dst_port=78))
    assert flags_sent(node) == [SYN_ACK, Flag.RST]
    with pytest.raises(Busy, match="connections"):
        node.connect()


def test_a_port_can_have_a_bound_of_its_own() -> None:
    config = StreamConfig(max_connections_per_port=1, max_connections_on={78: 3})
    _, node = lonely_node(config=config)
    node.endpoint.listen(78)
    for port in range(4):
        node.inject(syn(port, dst_port=78))
    assert flags_sent(node) == [SYN_ACK, SYN_ACK, SYN_ACK, Flag.RST]
    for port in range(2):
        node.inject(syn(port))
    assert flags_sent(node) == [SYN_ACK, Flag.RST]


def test_finished_connections_do_not_count() -> None:
    _, node = lonely_node(config=StreamConfig(max_connections_per_port=1))
    accept_from_peer(node)
    node.inject(packet_from_peer(Flag.FIN, seq=1))
    node.take_sent()
    node.inject(syn(50001))
    assert flags_sent(node) == [SYN_ACK]


def test_a_full_accept_queue_refuses_until_events_are_taken() -> None:
    _, node = lonely_node()
    for port in range(64):
        node.endpoint.receive_packet(syn(port), 0.0)
    refused = syn(64, src_node=4004)
    node.endpoint.receive_packet(refused, 0.0)
    assert node.endpoint.accept_drops == 1
    node.pump()
    assert flags_sent(node) == [SYN_ACK] * 64 + [Flag.RST]
    assert node.events_of(SynDropped) == [SynDropped(refused, SynCause.BACKLOG)]
    node.inject(refused)
    assert flags_sent(node) == [SYN_ACK]


# Lookup.


def test_the_same_node_seen_from_another_network_is_another_peer() -> None:
    _, node = lonely_node()
    accept_from_peer(node)
    data = packet_from_peer(Flag.ACK, seq=1, ack=1, payload=b"x", src_network=5)
    node.inject(data)
    assert flags_sent(node) == [Flag.RST]
    assert not node.received


@pytest.mark.parametrize(
    "change", [{"dst_node": A + 1}, {"protocol": Protocol.DATAGRAM}]
)
def test_packets_for_others_are_dropped(change: dict[str, int]) -> None:
    _, node = lonely_node()
    node.inject(syn()._replace(**change))  # type: ignore[arg-type]
    assert flags_sent(node) == []


@pytest.mark.parametrize(
    "flags",
    [Flag.FIN, Flag.RST, Flag.RST | Flag.ACK, Flag.FIN | Flag.ACK, SYN_ACK, Flag.NONE],
)
def test_packets_of_unknown_connections_get_no_answer(flags: Flag) -> None:
    _, node = lonely_node()
    node.inject(packet_from_peer(flags, payload=b"x"))
    assert flags_sent(node) == []


def test_data_of_an_unknown_connection_is_refused_but_not_its_empty_acks() -> None:
    _, node = lonely_node()
    node.inject(packet_from_peer(Flag.ACK))
    assert flags_sent(node) == []
    node.inject(packet_from_peer(Flag.ACK, payload=b"x"))
    assert flags_sent(node) == [Flag.RST]


def test_late_data_of_a_finished_connection_gets_no_answer() -> None:
    _, node = lonely_node()
    accept_from_peer(node)
    node.inject(packet_from_peer(Flag.FIN, seq=1))
    node.take_sent()
    node.inject(packet_from_peer(Flag.ACK, seq=1, payload=b"x"))
    assert flags_sent(node) == []


def test_flag_precedence_is_that_of_the_reference() -> None:
    _, node = lonely_node()
    node.inject(packet_from_peer(Flag.SYN | Flag.RST))
    node.inject(packet_from_peer(Flag.SYN | Flag.FIN, src_port=50001))
    assert flags_sent(node) == [SYN_ACK, SYN_ACK]
    node.inject(packet_from_peer(Flag.FIN | Flag.RST, seq=1))
    assert flags_sent(node) == [Flag.FIN | Flag.ACK]
    node.inject(packet_from_peer(Flag.RST | Flag.ACK, src_port=50001))
    assert flags_sent(node) == []
    assert node.endpoint.open_count == 0


def test_a_syn_in_time_wait_opens_a_new_connection() -> None:
    network, node = lonely_node()
    old = accept_from_peer(node)
    node.inject(packet_from_peer(Flag.FIN, seq=1))
    node.take_sent()
    new = accept_from_peer(node)
    assert new.id == 2
    assert [c.state for c in node.endpoint.connections()] == [
        State.ESTABLISHED,
        State.TIME_WAIT,
    ]
    node.inject(packet_from_peer(Flag.FIN, seq=1))
    assert old.state is not State.TIME_WAIT
    assert len(list(node.endpoint.connections())) == 1
    network.run(limit_s=20)
    assert list(node.endpoint.connections()) == []


def test_a_syn_to_a_port_that_we_dial_from_is_ignored() -> None:
    _, node = lonely_node()
    node.connect()
    node.endpoint.listens_by_default = lambda port: True
    node.take_sent()
    node.inject(packet_from_peer(Flag.SYN, src_port=PORT, dst_port=49152))
    assert flags_sent(node) == []


# Size and robustness.


def test_an_idle_endpoint_is_tiny_and_an_idle_connection_small() -> None:
    rng = random.Random(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        endpoints = [StreamEndpoint(number, rng=rng) for number in range(200)]
        per_endpoint = (tracemalloc.get_traced_memory()[0] - before) / len(endpoints)
        before = tracemalloc.get_traced_memory()[0]
        remote = SocketAddress(Address(0, B), PORT)
        dials = [endpoints[0].connect(remote, 0.0) for _ in range(200)]
        endpoints[0].packets_to_send()
        per_dial = (tracemalloc.get_traced_memory()[0] - before) / len(dials)
    finally:
        tracemalloc.stop()
    assert per_endpoint < 500
    assert per_dial < 3072


def test_the_table_is_dropped_when_nothing_is_left() -> None:
    network, a, b = make_pair()
    ours, _ = open_stream(network, a, b)
    ours.close(a.now)
    a.pump()
    network.run(limit_s=60)
    for node in (a, b):
        assert node.endpoint.next_timer() is None
        assert node.endpoint._table is None
        assert node.endpoint._gate is None
        assert list(node.endpoint.connections()) == []
        assert node.endpoint.open_count == 0
    assert a.events_of(StreamOpened)


def test_timers_of_a_busy_connection_do_not_pile_up() -> None:
    network, a, b = make_pair()
    ours, theirs = open_stream(network, a, b)
    for _ in range(2000):
        a.write(ours, b"x")
        network.run(limit_s=0.05)
    assert len(b.received[theirs.id]) == 2000
    for node in (a, b):
        table = node.endpoint._table
        assert table is not None
        assert len(table._heap) < 100


@given(st.lists(st.binary(max_size=60) | st.binary(min_size=34, max_size=60)))
def test_random_bytes_never_raise_anything_but_a_decode_error(
    datagrams: list[bytes],
) -> None:
    _, node = lonely_node()
    accept_from_peer(node)
    for data in datagrams:
        try:
            packet = decode_packet(data)
        except DecodeError:
            continue
        node.inject(packet)


NUMBERS = st.integers(0, 0xFFFF_FFFF)


@given(
    st.lists(
        st.builds(
            packet_from_peer,
            st.integers(0, 15).map(Flag),
            seq=NUMBERS | st.integers(0, 3000),
            ack=NUMBERS | st.integers(0, 3000),
            window=st.integers(0, 0xFFFF),
            payload=st.binary(max_size=20) | st.just(b"SACK\x02" + bytes(16)),
            src_port=st.sampled_from([50000, 50001, PORT]),
            dst_port=st.sampled_from([PORT, 49152]),
            src_node=st.sampled_from([B, A]),
        ),
        max_size=40,
    ),
    st.integers(0, 1),
)
def test_random_packets_never_raise(packets: list[Packet], is_public: int) -> None:
    network, node = lonely_node()
    node.endpoint.is_public = bool(is_public)
    connection = node.connect()
    connection.write(bytes(5000), node.now)
    for packet in packets:
        node.inject(packet)
        network.run(limit_s=0.3)
    network.run(limit_s=300)
    assert node.endpoint.open_count <= len(packets) + 1


def test_identifiers_start_again_at_one_after_the_last() -> None:
    endpoint = StreamEndpoint(A, rng=FixedRandom())
    endpoint._next_id = 0xFFFF_FFFF
    remote = SocketAddress(Address(0, B), PORT)
    ids = [endpoint.connect(remote, 0.0).id for _ in range(2)]
    assert ids == [0xFFFF_FFFF, 1]
