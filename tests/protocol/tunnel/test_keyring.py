"""Counters and replay windows over the life of a key pair (wire.md 5.4, 7.2)."""

from __future__ import annotations

import pytest

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.packet import decode_packet
from pilotfleet.protocol.tunnel import keyring
from pilotfleet.protocol.tunnel.events import TunnelEstablished
from pilotfleet.protocol.tunnel.keyring import KeyRing
from pilotfleet.protocol.tunnel.keys import KeyPair
from pilotfleet.protocol.tunnel.session import Replayed, Session
from tests.protocol.tunnel.support import (
    A,
    B,
    World,
    connected,
    identity_of,
    seeded_random,
    stream_packet,
    vectors,
)

_PEER = KeyPair(b"p" * 32).public


def _ring() -> KeyRing:
    return KeyRing(A, identity_of(A), seeded_random("ring"), None)


def _counter(frame: bytes) -> int:
    return int.from_bytes(frame[12:20])


def test_same_keys_never_see_a_counter_twice() -> None:
    ring = _ring()
    first = ring.derive(_PEER, 0.0)
    frames = [first.seal(b""), first.seal(b"")]
    ring.retire(first, B)
    second = ring.derive(_PEER, 1.0)
    frames.append(second.seal(b""))
    assert [_counter(frame) for frame in frames] == [1, 2, 3]
    assert frames[1][8:12] != frames[2][8:12]


def test_same_keys_never_open_a_frame_twice() -> None:
    ring = _ring()
    first = ring.derive(_PEER, 0.0)
    frame = first.seal(b"")
    first.open(frame)
    ring.retire(first, B)
    with pytest.raises(Replayed):
        ring.derive(_PEER, 1.0).open(frame)


def test_new_peer_key_begins_at_one() -> None:
    ring = _ring()
    session = ring.derive(_PEER, 0.0)
    session.seal(b"")
    ring.retire(session, B)
    other = ring.derive(KeyPair(b"q" * 32).public, 1.0)
    assert _counter(other.seal(b"")) == 1


def test_full_table_of_ended_sessions_brings_a_new_own_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keyring, "_MAX_RETIRED", 2)
    ring = _ring()
    public, announcement = ring.public, ring.announcement()
    for seed in (b"1", b"2"):
        ring.retire(ring.derive(KeyPair(seed * 32).public, 0.0), B)
    assert ring.public == public
    live = ring.derive(_PEER, 0.0)
    ring.retire(ring.derive(KeyPair(b"3" * 32).public, 0.0), B)
    assert ring.public != public
    assert ring.announcement() != announcement
    # What ends now was made from the old key, and is of no use to the new one.
    live.seal(b"")
    ring.retire(live, B)
    assert _counter(ring.derive(_PEER, 0.0).seal(b"")) == 1


def test_unusable_peer_key_is_an_error() -> None:
    with pytest.raises(DecodeError):
        _ring().derive(bytes(32), 0.0)


def test_frames_are_built_once() -> None:
    ring = _ring()
    assert ring.announcement() is ring.announcement()
    assert ring.request() is ring.request()


# The same rules through whole endpoints.


def _session_of_peer(world: World, prefix: bytes, counter: int = 0) -> Session:
    """Return B's side of its session with A, as a fresh derivation of B's program."""
    theirs = world.nodes[B].endpoint
    ring, peer = theirs._ring, theirs._peers[A].session
    assert peer is not None
    key = ring._keys().session_key(peer.peer_public)
    session = Session(key, B, own_public=b"", peer_public=b"", counter=counter)
    session.renew(prefix, world.now)
    return session


def test_peer_that_restarts_its_counter_under_a_new_prefix_is_understood() -> None:
    # What 1.18.0 does when it derives the same session again (wire.md 5.4).
    world, a, _ = connected()
    for number, prefix in enumerate((b"one.", b"two.", b"tri.", b"four", b"five")):
        session = _session_of_peer(world, prefix)
        for _ in range(3):
            frame = session.seal(stream_packet(B, A, b"%d" % number))
            world.inject(A, frame, world.nodes[B].address)
            world.inject(A, frame, world.nodes[B].address)
    assert a.payloads()[1:] == [b"%d" % n for n in range(5) for _ in range(3)]
    assert a.endpoint.stats.replayed == 15
    assert len(a.of(TunnelEstablished)) == 1


def test_peer_with_endless_prefixes_gets_a_new_key_of_ours() -> None:
    world, a, b = connected()
    own_key = a.endpoint._ring.public
    for number in range(80):
        session = _session_of_peer(world, number.to_bytes(4))
        frame = session.seal(stream_packet(B, A, b"%d" % number))
        world.inject(A, frame, b.address)
        if a.endpoint._ring.public != own_key:
            break
    # The frame that found no room was lost; the tunnel was made again.
    assert b"66" in a.payloads()
    assert a.of(TunnelEstablished)[-1].rekeyed
    assert b.of(TunnelEstablished)[-1].rekeyed
    world.send(B, A, b"after")
    world.send(A, B, b"after")
    assert a.payloads()[-1] == b.payloads()[-1] == b"after"


def test_lost_session_with_kept_key_is_made_again_and_keeps_counting() -> None:
    world, a, b = connected()
    a.endpoint.drop(B, world.now)
    world.sent.clear()
    world.now += 1
    world.send(A, B, b"again")
    # B holds A's key and is silent on the greeting: the request makes it answer.
    assert b.payloads()[-1] == b"again"
    frame = next(s for s in world.frames(b"PILS", A))
    assert _counter(frame.data) > 1
    assert len(b.of(TunnelEstablished)) == 1


def test_old_frames_stay_replays_after_a_session_was_dropped() -> None:
    world, a, b = connected()
    recorded = [s.data for s in world.frames(b"PILS", B)]
    a.endpoint.drop(B, world.now)
    world.now += 1
    world.send(A, B)
    world.advance(5)
    count = len(a.payloads())
    for frame in recorded:
        world.inject(A, frame, b.address)
    assert len(a.payloads()) == count
    assert a.endpoint.stats.replayed == len(recorded)


def test_no_frame_leaves_twice() -> None:
    world, a, _ = connected()
    for _ in range(3):
        world.send(A, B)
        a.endpoint.drop(B, world.now)
        world.advance(5)
    nonces = [s.data[-100:][:12] for s in world.frames(b"PILS", A) if not s.is_relay]
    frames = [s.data for s in world.frames(b"PILS")]
    assert len(set(frames)) == len(frames)
    assert nonces


def test_vector_frames_open_in_an_endpoint() -> None:
    wire = vectors("wire.json")
    keys = wire["key_derivation"]
    world = World()
    world.add(A, key_pair=KeyPair(bytes.fromhex(keys["a_x25519_private"])))
    b = world.add(B, key_pair=KeyPair(bytes.fromhex(keys["b_x25519_private"])))
    world.send(B, A)
    for vector in wire["encrypted_frame"]["valid"]:
        if vector["sender_node"] == A and vector["aad"]:
            world.inject(B, bytes.fromhex(vector["frame"]), world.nodes[A].address)
    first = decode_packet(
        bytes.fromhex(wire["encrypted_frame"]["valid"][0]["plaintext"])
    )
    assert b.payloads() == [first.payload]
    # The two keepalives, one of them with a counter above 2^32.
    assert b.endpoint.stats.packets_received == 3
