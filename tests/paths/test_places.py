"""Which path is taken from where: one test for each place a node may be in."""

from __future__ import annotations

import pytest

from tests.paths.nat import Nat
from tests.paths.world import OFFICIAL, OURS, Paths

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(120)]

FIRST_DIAL_S = 5.0
WATCH = """
table inet watch {{
    counter met {{ }}
    chain out {{
        type filter hook output priority filter;
        ip daddr {ip} meta l4proto udp counter name met
    }}
}}
"""


def meet(net: Paths, kinds: tuple[str, str] = (OURS, OURS), *flags: str) -> float:
    """Start alice and bob where they are; return how long the first dial took."""
    for name, kind in zip(("alice", "bob"), kinds, strict=True):
        net.run_daemon(name, kind, *flags)
    return net.dial("alice", "bob")


@pytest.mark.parametrize(
    "nats",
    [
        (Nat.SYMMETRIC, Nat.PORT_RESTRICTED),
        (Nat.PORT_RESTRICTED, Nat.SYMMETRIC),
    ],
)
def test_symmetric_and_port_restricted_are_relayed(
    net: Paths, nats: tuple[Nat, Nat]
) -> None:
    net.behind("alice", nats[0])
    net.behind("bob", nats[1])
    assert meet(net) < FIRST_DIAL_S
    assert net.is_relayed("alice", "bob")
    assert net.is_relayed("bob", "alice")


@pytest.mark.parametrize(
    "nats",
    [
        (Nat.FULL_CONE, Nat.FULL_CONE),
        (Nat.FULL_CONE, Nat.SYMMETRIC),
        (Nat.SYMMETRIC, Nat.FULL_CONE),
        (Nat.SYMMETRIC, Nat.RESTRICTED),
        (Nat.RESTRICTED, Nat.PORT_RESTRICTED),
    ],
    ids=lambda nats: "-".join(nat.name for nat in nats),
)
def test_open_enough_nats_are_punched(net: Paths, nats: tuple[Nat, Nat]) -> None:
    net.behind("alice", nats[0])
    net.behind("bob", nats[1])
    first = meet(net)
    direct = net.wait(lambda: net.is_direct("alice", "bob"), FIRST_DIAL_S)
    net.note(f"{nats}: dial {first:.2f} s, direct {first + direct:.2f} s")
    assert first + direct < FIRST_DIAL_S


@pytest.mark.parametrize("kinds", [(OURS, OURS), (OURS, OFFICIAL), (OFFICIAL, OURS)])
def test_neighbours_behind_one_nat_use_the_lan(
    net: Paths, kinds: tuple[str, str]
) -> None:
    router = net.behind("alice", Nat.PORT_RESTRICTED)
    net.beside("bob", router)
    assert meet(net, kinds) < FIRST_DIAL_S
    net.wait(lambda: net.is_direct("alice", "bob"), FIRST_DIAL_S)
    # There is no other direct path: the router does not turn packets around.


def test_equal_lan_numbers_behind_two_nats_are_no_neighbours(net: Paths) -> None:
    for name in ("alice", "bob"):
        router = net.internet.router(name, Nat.PORT_RESTRICTED, lan="192.168.1")
        net.hosts[name] = router.host(name)
    assert meet(net) < FIRST_DIAL_S
    net.wait(lambda: net.is_direct("alice", "bob"), FIRST_DIAL_S)


def test_relay_only_node_shows_its_endpoint_to_nobody(net: Paths) -> None:
    alice, bob = net.in_public("alice"), net.in_public("bob")
    for host, other in ((alice, bob), (bob, alice)):
        host.rules(WATCH.format(ip=other.ip))
    net.run_daemon("alice", OURS)
    net.run_daemon("bob", OURS, "--relay-only")
    assert net.dial("alice", "bob") < FIRST_DIAL_S
    assert net.dial("bob", "alice") < FIRST_DIAL_S
    assert net.is_relayed("alice", "bob")
    assert net.is_relayed("bob", "alice")
    assert "packets 0 " in bob.run("nft", "list", "counter", "inet", "watch", "met")


@pytest.mark.parametrize("kinds", [(OURS, OURS), (OURS, OFFICIAL), (OFFICIAL, OURS)])
def test_tunnels_run_over_ipv6(net: Paths, kinds: tuple[str, str]) -> None:
    net.use_ipv6()
    net.in_public("alice", ipv4=False)
    net.in_public("bob", ipv4=False)
    assert meet(net, kinds) < FIRST_DIAL_S
    net.wait(lambda: net.is_direct("alice", "bob"), FIRST_DIAL_S)


def test_ipv4_and_ipv6_meet_at_the_relay(net: Paths) -> None:
    net.behind("alice", Nat.PORT_RESTRICTED)
    net.in_public("bob", ipv4=False)
    net.run_daemon("alice", OURS)
    net.use_ipv6()
    net.run_daemon("bob", OURS)
    net.use_ipv4()
    assert net.dial("alice", "bob") < FIRST_DIAL_S
    assert net.is_relayed("alice", "bob")
