"""What comes in: dispatch, control packets, the beacon, and hostile bytes."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.beacon import Delivery, Notify, PunchCommand, Reflection
from pilotfleet.protocol.packet import Flag, Packet, Protocol, encode_packet
from pilotfleet.protocol.tunnel.config import SEGMENT_SIZE, TunnelConfig
from pilotfleet.protocol.tunnel.endpoint import TunnelEndpoint
from pilotfleet.protocol.tunnel.events import (
    HandshakeWaiting,
    PongReceived,
    Reflected,
    TunnelEstablished,
)
from tests.protocol.tunnel.support import (
    BEACON,
    A,
    B,
    Node,
    World,
    connected,
    control_packet,
    identity_of,
    pair,
    seeded_random,
    stream_packet,
    vectors,
)

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

_WIRE = vectors("wire.json")
_STRANGER = ("192.0.2.66", 6)
_PACKETS = {v["name"]: v for v in _WIRE["packet"]["valid"]}


def _send_raw(world: World, packet: bytes) -> None:
    """Send a hand-made packet from B to A inside the tunnel."""
    world.nodes[B].endpoint.send_packet(A, packet, world.now)
    world.settle()


def _opened(world: World, node: Node, source: int) -> list[bytes]:
    """Return the packets of the source's frames, decrypted like an eavesdropper."""
    peer = node.endpoint._peers[source].session
    assert peer is not None
    key = node.endpoint._ring._keys().session_key(peer.peer_public)
    spy = type(peer)(key, 0, own_public=b"", peer_public=b"")
    frames = [s.data for s in world.frames(b"PILS", source)]
    return [spy.open(f[9:] if f[:1] == b"\x05" else f) for f in frames]


# Frames


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"P",
        b"PIL",
        b"PILX",
        b"PILT",
        b"PILS",
        b"PILS" + bytes(31),
        b"PILA" + bytes(10),
        b"GET / HTTP/1.1",
        bytes.fromhex(_WIRE["plaintext_frame"]["bytes"]),
        *[bytes.fromhex(f) for f in _WIRE["fragment_post_1_18"]["fragments"]],
    ],
)
@pytest.mark.parametrize("relayed", [False, True])
def test_other_frames_are_dropped(data: bytes, relayed: bool) -> None:
    world, a, _ = connected()
    world.sent.clear()
    before = list(a.events)
    if relayed:
        world.inject(A, Delivery(B, data).encode(), BEACON)
    else:
        world.inject(A, data)
    assert a.endpoint.stats.dropped == 1
    assert a.events == before
    assert world.sent == []


def test_punch_packets_are_ignored() -> None:
    world, a, _ = connected()
    world.sent.clear()
    for data in (b"PILP", b"PILP\x00\x00\x00\x07"):
        world.inject(A, data)
    assert a.endpoint.stats.dropped == 0
    assert world.sent == []


def test_replayed_frame_is_dropped_and_counted() -> None:
    world, a, b = connected()
    frame = world.frames(b"PILS", B)[0]
    for _ in range(3):
        world.inject(A, frame.data, b.address)
    assert a.payloads() == [b"data"]
    assert a.endpoint.stats.replayed == 3


def test_forged_frames_neither_end_the_session_nor_move_the_path() -> None:
    world, a, b = connected()
    world.now += 60
    world.sent.clear()
    forged = b"PILS" + B.to_bytes(4) + b"\xff" * 60
    for _ in range(20):
        world.inject(A, forged, _STRANGER)
    assert a.endpoint.stats.forged == 20
    # One question in three seconds, and B is not disturbed by it.
    assert [s.magic for s in world.sent] == [b"PILA", b"PILK"]
    world.send(B, A, b"still here")
    world.send(A, B, b"me too")
    assert a.payloads()[-1] == b"still here"
    assert b.payloads()[-1] == b"me too"
    assert len(a.of(TunnelEstablished)) == 1
    assert a.endpoint.peers()[0].address == b.address


def test_peer_that_moves_is_followed() -> None:
    world, a, b = connected()
    session = b.endpoint._peers[A].session
    assert session is not None
    moved = ("203.0.113.99", 9)
    world.inject(A, session.seal(stream_packet(B, A, b"moved")), moved)
    assert a.payloads()[-1] == b"moved"
    assert a.endpoint.peers()[0].address == moved


def test_packet_in_another_nodes_name_is_dropped() -> None:
    world, a, _ = connected()
    _send_raw(world, stream_packet(4711, A, b"spoofed"))
    _send_raw(world, control_packet(4711, A, b"ping"))
    assert a.payloads() == [b"data"]
    assert a.endpoint.stats.dropped == 2


def test_packet_for_another_node_is_dropped() -> None:
    world, a, _ = connected()
    _send_raw(world, stream_packet(B, 4711))
    assert a.payloads() == [b"data"]
    assert a.endpoint.stats.dropped == 1


def test_network_of_the_source_is_not_looked_at() -> None:
    world, a, _ = connected()
    packet = Packet(Protocol.DATAGRAM, 0, 9, B, 9, A, 1, 2, payload=b"dgram")
    _send_raw(world, encode_packet(packet))
    assert a.payloads()[-1] == b"dgram"


def test_packet_that_does_not_decode_is_dropped() -> None:
    world, a, _ = connected()
    packet = stream_packet(B, A)
    _send_raw(world, packet[:-1])
    _send_raw(world, packet[:-1] + b"?")
    assert a.endpoint.stats.dropped == 2
    assert a.payloads() == [b"data"]


@pytest.mark.parametrize("protocol", [4, 255])
def test_unknown_protocols_are_dropped(protocol: int) -> None:
    world, a, _ = connected()
    _send_raw(world, encode_packet(Packet(protocol, 0, 0, B, 0, A, 1, 2)))
    assert a.payloads() == [b"data"]


def test_packets_the_owner_does_not_take_are_bounded() -> None:
    world = World()
    world.add(A, config=TunnelConfig(max_events=3))
    b = world.add(B)
    world.send(B, A)
    session = b.endpoint._peers[A].session
    assert session is not None
    frames = [session.seal(stream_packet(B, A)) for _ in range(5)]
    a = world.nodes[A]
    for frame in frames:
        a.endpoint.receive_datagram(frame, b.address, world.now)
    world.settle()
    assert len(a.payloads()) == 1 + 3
    assert a.endpoint.stats.dropped == 2


# Control packets


def test_ping_of_the_vectors_gets_the_pong_of_the_vectors() -> None:
    world, _, b = connected()
    _send_raw(world, bytes.fromhex(_PACKETS["ping"]["bytes"]))
    assert _opened(world, b, A)[-1].hex() == _PACKETS["pong"]["bytes"]
    (event,) = b.of(PongReceived)
    assert event.peer == A
    assert (event.packet.seq, event.packet.ack, event.packet.payload) == (5, 6, b"x")


def test_ping_method_sends_the_ping_of_the_vectors() -> None:
    world, a, b = connected()
    b.endpoint.ping(A, b"x", src_port=9, seq=5, now=world.now)
    world.settle()
    assert _opened(world, a, B)[-1].hex() == _PACKETS["ping"]["bytes"]
    assert len(b.of(PongReceived)) == 1


def test_pong_names_the_own_node_when_the_ping_named_none() -> None:
    world, _, b = connected()
    packet = Packet(Protocol.CONTROL, 0, 7, B, 9, 0, 3, 0, 0xFFFF_FFFF, payload=b"p")
    _send_raw(world, encode_packet(packet))
    (event,) = b.of(PongReceived)
    assert event.packet == Packet(
        Protocol.CONTROL, Flag.ACK, 9, A, 7, B, 0, 3, 0xFFFF_FFFF, 0, payload=b"p"
    )


@pytest.mark.parametrize(
    "packet",
    [
        control_packet(B, A),
        control_packet(B, 0),
        control_packet(0, 0),
        control_packet(B, A, flags=Flag.ACK),
        control_packet(B, A, b"pathprobe.v1", flags=Flag.ACK),
        control_packet(B, A, b"x", dst_port=9),
        bytes.fromhex(_PACKETS["direct-upgrade probe"]["bytes"]),
    ],
)
def test_other_control_packets_cause_nothing(packet: bytes) -> None:
    world, a, _ = connected()
    world.sent.clear()
    before = list(a.events)
    _send_raw(world, packet)
    assert a.events == before
    # An upgrade probe gets an empty packet back, and what is more ends there.
    assert {s.data[:4] for s in world.sent} == {b"PILS"}
    assert all(len(s.data) == 70 for s in world.sent if s.source == a.address)
    assert len(world.sent) <= 2


def test_path_probe_of_the_vectors_is_answered() -> None:
    world, _, b = connected()
    probe = bytes.fromhex(_PACKETS["path probe"]["bytes"])
    assert probe == control_packet(A, B, b"pathprobe.v1")
    _send_raw(world, control_packet(B, A, b"pathprobe.v1"))
    assert _opened(world, b, A)[-1][34:] == b"pathprobe.v1"
    assert b.of(PongReceived) == []


# The beacon


def test_punch_command_sends_three_bare_punch_packets() -> None:
    world, _, _ = pair()
    world.inject(A, PunchCommand(("203.0.113.9", 77)).encode(), BEACON)
    sent = [(s.data, s.target) for s in world.sent]
    assert sent == [(b"PILP", ("203.0.113.9", 77))] * 3


def test_discover_reflects_the_own_endpoint() -> None:
    world, a, _ = pair()
    a.endpoint.discover(world.now)
    world.settle()
    assert world.sent[0].data == b"\x01" + A.to_bytes(4)
    assert a.of(Reflected) == [Reflected(a.address)]


def test_discover_without_beacon_does_nothing() -> None:
    world, a, _ = pair()
    a.endpoint.beacon = None
    a.endpoint.discover(world.now)
    world.settle()
    assert world.sent == []


def test_notify_announces_a_waiting_handshake() -> None:
    world, a, _ = pair()
    world.inject(A, Notify().encode() + b"ignored", BEACON)
    assert a.events == [HandshakeWaiting()]
    world.inject(A, Notify(2).encode(), BEACON)
    assert a.events == [HandshakeWaiting()]


@pytest.mark.parametrize(
    "data",
    [
        PunchCommand(_STRANGER).encode(),
        Reflection(_STRANGER).encode(),
        Notify().encode(),
        Delivery(B, b"PILP").encode(),
    ],
)
@pytest.mark.parametrize("source", [_STRANGER, (BEACON[0], BEACON[1] + 1)])
def test_beacon_messages_from_elsewhere_are_dropped(
    data: bytes, source: Endpoint
) -> None:
    world, a, _ = pair()
    world.inject(A, data, source)
    assert a.events == []
    assert world.sent == []
    assert a.endpoint.stats.dropped == 1


@pytest.mark.parametrize(
    "data",
    [
        "00",
        "0b",
        "01000003e9",
        "0700000003000100000001",
        "04",
        "050000000100000002",
        "04047f0000010000",
    ],
)
def test_messages_not_meant_for_nodes_are_dropped(data: str) -> None:
    world, a, _ = pair()
    world.inject(A, bytes.fromhex(data), BEACON)
    assert a.events == []
    assert world.sent == []


def test_delivery_with_destination_is_taken_if_it_is_ours() -> None:
    world, a, b = connected()
    session = b.endpoint._peers[A].session
    assert session is not None
    mine = session.seal(stream_packet(B, A, b"mine"))
    other = session.seal(stream_packet(B, A, b"other"))
    world.inject(A, Delivery(B, mine, A).encode(), BEACON)
    world.inject(A, Delivery(B, other, 4711).encode(), BEACON)
    assert a.payloads()[1:] == [b"mine"]


def test_sender_in_the_relay_envelope_is_not_trusted() -> None:
    world, a, b = connected()
    session = b.endpoint._peers[A].session
    assert session is not None
    frame = session.seal(stream_packet(B, A, b"inner"))
    world.inject(A, Delivery(4711, frame).encode(), BEACON)
    assert a.payloads()[-1] == b"inner"
    assert a.of(TunnelEstablished)[0].peer == B


# Itself


def test_node_reaches_itself_without_the_network() -> None:
    world, a, _ = pair()
    assert a.endpoint.has_session(A)
    world.send(A, A, b"one")
    world.send(A, A, b"two")
    a.endpoint.ping(A, b"me", src_port=4, seq=1, now=world.now)
    a.endpoint.send_packet(A, control_packet(A, A), world.now)
    world.settle()
    assert world.sent == []
    assert a.payloads() == [b"one", b"two"]
    assert len(a.of(TunnelEstablished)) == 1
    (event,) = a.of(PongReceived)
    assert (event.packet.dst_port, event.packet.payload) == (4, b"me")


def test_broken_packet_to_itself_is_the_callers_error() -> None:
    world, a, _ = pair()
    with pytest.raises(DecodeError):
        a.endpoint.send_packet(A, b"x", world.now)


# Questions


def test_peers_are_described() -> None:
    world, a, b = connected()
    (info,) = a.endpoint.peers()
    assert (info.node, info.address) == (B, b.address)
    assert info.is_established
    assert info.is_authenticated
    assert not info.is_relayed
    assert not info.is_pilotfleet
    assert info.public_key == b.identity.public_key
    assert info.last_receive == world.now
    assert a.endpoint.has_session(B)
    assert not a.endpoint.has_session(7)
    assert not a.endpoint.is_relayed(7)
    assert a.endpoint.max_payload(B) == a.endpoint.max_payload(7) == SEGMENT_SIZE


def test_packets_and_bytes_are_counted() -> None:
    _, a, b = connected()
    assert a.endpoint.stats.packets_sent == b.endpoint.stats.packets_received == 1
    assert a.endpoint.stats.bytes_sent == len(stream_packet(A, B))
    assert a.endpoint.stats.sessions == 1


def test_dropped_peer_is_forgotten() -> None:
    world, a, _ = connected()
    a.endpoint.drop(B, world.now)
    a.endpoint.drop(B, world.now)
    assert a.endpoint.peers() == []
    assert a.endpoint.next_timer() is None


def test_idle_endpoint_and_idle_tunnel_are_small() -> None:
    identity = identity_of(A)
    TunnelEndpoint(1, identity, random_bytes=seeded_random("warm"))
    source = seeded_random("idle")
    tracemalloc.start()
    try:
        kept = [TunnelEndpoint(n, identity, random_bytes=source) for n in range(200)]
        per_endpoint = tracemalloc.get_traced_memory()[0] / len(kept)
    finally:
        tracemalloc.stop()
    assert per_endpoint < 1024


# Hostile bytes

_ENDPOINTS = st.sampled_from([BEACON, _STRANGER, ("203.0.113.2", 43002)])
_MAGICS = st.sampled_from(
    [b"", b"PILA", b"PILK", b"PILS", b"PILT", b"PILP", b"PILF", b"\x06\x00\x00\x0b\xba"]
)


_BODIES = st.binary(max_size=150)
_NODES = st.sampled_from([b"", B.to_bytes(4)])
_DATAGRAMS = st.tuples(_MAGICS, _MAGICS, _NODES, _BODIES, _ENDPOINTS)


@given(st.lists(_DATAGRAMS, max_size=8))
def test_any_datagrams_leave_the_tunnel_working(datagrams: list[Any]) -> None:
    world, a, b = connected()
    world.now += 30
    for outer, inner, node, body, source in datagrams:
        world.inject(A, outer + inner + node + body, source)
    world.advance(30)
    world.send(A, B, b"over")
    world.send(B, A, b"and out")
    assert b.payloads()[-1] == b"over"
    assert a.payloads()[-1] == b"and out"


@given(st.integers(0, 15), st.binary(max_size=60))
def test_any_beacon_message_is_survived(kind: int, body: bytes) -> None:
    world, _, b = connected()
    world.inject(A, bytes((kind,)) + body, BEACON)
    world.send(A, B, b"over")
    assert b.payloads()[-1] == b"over"


@given(st.binary(max_size=80), st.integers(0, 255))
def test_any_sealed_content_is_survived(content: bytes, protocol: int) -> None:
    world, _, b = connected()
    _send_raw(world, content)
    _send_raw(
        world, encode_packet(Packet(protocol, 15, 9, B, 9, A, 0, 0, payload=content))
    )
    world.send(A, B, b"over")
    assert b.payloads()[-1] == b"over"
