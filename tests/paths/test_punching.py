"""First contact through NATs: punched where that is possible, relayed elsewhere."""

from __future__ import annotations

import pytest

from tests.paths.nat import PORT, Nat
from tests.paths.world import OFFICIAL, OURS, Paths

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(120)]

FIRST_DIAL_S = 5.0
"""Issue 3: within 5 s of the first dial."""
CONE = f":{PORT}"
PAIRS = [
    (OURS, OURS),
    (OURS, OFFICIAL),
    (OFFICIAL, OURS),
    (OFFICIAL, OFFICIAL),
]


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_port_restricted_nats_are_punched(net: Paths, kinds: tuple[str, str]) -> None:
    for name, kind in zip(("alice", "bob"), kinds, strict=True):
        net.behind(name, Nat.PORT_RESTRICTED)
        net.run_daemon(name, kind)
    first = net.dial("alice", "bob")
    if kinds == (OFFICIAL, OFFICIAL):
        # For comparison: the relayed greeting wins, and such a pair then keeps to the
        # relay for minutes.
        net.note(f"punch {kinds}: dial {first:.2f} s")
        return
    direct = net.wait(lambda: net.is_direct("alice", "bob"), FIRST_DIAL_S - first)
    net.note(f"punch {kinds}: dial {first:.2f} s, direct {first + direct:.2f} s")
    assert first < FIRST_DIAL_S


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_symmetric_nats_are_relayed(net: Paths, kinds: tuple[str, str]) -> None:
    for name, kind in zip(("alice", "bob"), kinds, strict=True):
        net.behind(name, Nat.SYMMETRIC)
        net.run_daemon(name, kind)
    first = net.dial("alice", "bob")
    net.note(f"symmetric {kinds}: dial {first:.2f} s")
    assert first < FIRST_DIAL_S
    assert net.is_relayed("alice", "bob")
