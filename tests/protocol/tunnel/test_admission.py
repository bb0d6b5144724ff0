"""Strict mode, lists of nodes without limits, and what is told of tunnels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.protocol.tunnel.config import TunnelConfig
from pilotfleet.protocol.tunnel.events import (
    PongReceived,
    RelayActivated,
    ReplayDetected,
    TunnelEstablished,
)
from pilotfleet.protocol.tunnel.frames import SEALED, encode_authenticated
from pilotfleet.protocol.tunnel.keys import KeyPair
from tests.protocol.tunnel.support import (
    A,
    B,
    connected,
    direct_is_blocked,
    identity_of,
    pair,
)

if TYPE_CHECKING:
    from tests.protocol.tunnel.support import Node, World


def admit(node: Node, *peers: int) -> None:
    node.endpoint.admits = frozenset(peers).__contains__


def flood(world: World, count: int) -> int:
    """Greet A in the name of B with many keys; return how many were refused."""
    for number in range(count):
        key = KeyPair(f"key {number}".encode().ljust(32, b"."))
        frame = encode_authenticated(B, key.public, identity_of(B))
        world.inject(A, frame)
    return world.nodes[A].endpoint.stats.exchanges_refused


def test_a_strict_node_makes_no_tunnel_with_a_stranger() -> None:
    world, a, b = pair()
    admit(a)
    world.send(B, A)
    world.advance(30)
    assert not a.endpoint.has_session(B)
    assert not b.endpoint.has_session(A)
    assert not a.payloads()


def test_a_strict_node_makes_tunnels_with_those_it_trusts() -> None:
    world, a, _ = pair()
    admit(a, B)
    world.send(B, A, b"hello")
    assert a.payloads() == [b"hello"]


def test_a_strict_node_may_call_strangers() -> None:
    world, a, b = pair()
    admit(a)
    world.send(A, B, b"hello")
    assert b.payloads() == [b"hello"]
    assert a.of(TunnelEstablished)


def test_a_strict_node_answers_no_ping_of_a_stranger() -> None:
    world, a, b = connected()
    admit(a)
    b.endpoint.ping(A, b"there?", src_port=50000, seq=1, now=world.now)
    world.settle()
    assert not b.of(PongReceived)
    admit(a, B)
    b.endpoint.ping(A, b"there?", src_port=50000, seq=2, now=world.now)
    world.settle()
    assert len(b.of(PongReceived)) == 1


def test_greetings_are_limited_but_not_those_of_listed_nodes() -> None:
    few = TunnelConfig(exchange_burst=5, exchanges_per_second=1.0)
    world, _, _ = pair()
    world.add(A, config=few)
    assert flood(world, 20) == 15
    listed = TunnelConfig(
        exchange_burst=5,
        exchanges_per_second=1.0,
        reply_whitelist=frozenset([B]),
    )
    world.add(A, config=listed)
    assert flood(world, 20) == 0


def test_a_frame_that_comes_twice_is_told() -> None:
    world, a, _ = connected()
    frame = world.frames(SEALED, B)[-1].data
    world.inject(A, frame)
    world.inject(A, frame)
    told = a.of(ReplayDetected)
    assert [event.peer for event in told] == [B, B]
    assert told[0].counter == int.from_bytes(frame[12:20])
    assert a.endpoint.stats.replayed == 2


def test_the_change_to_the_relay_is_told_once() -> None:
    world, a, _ = connected()
    assert not a.of(RelayActivated)
    world.delivers = direct_is_blocked
    a.endpoint.use_relay(B, world.now)
    a.endpoint.use_relay(B, world.now)
    world.send(A, B)
    assert a.of(RelayActivated) == [RelayActivated(B)]
