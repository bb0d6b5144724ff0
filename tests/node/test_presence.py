"""Where a host is: LAN choice, what the beacon sees, and what the registry is told."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from pilotfleet.node import presence
from pilotfleet.node.local import (
    choose_endpoint,
    has_address,
    is_routable_ip,
    local_addresses,
)
from tests.node.support import eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.node.support import World

REAL = ("203.0.113.7", 4000)
LAN = ("192.168.1.20", 4000)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("own_host", "local", "expected"),
    [
        ("203.0.113.7", ["192.168.1.5"], LAN),
        # Everybody has a 192.168.1.0: without a common public address it says nothing.
        ("203.0.113.8", ["192.168.1.5"], REAL),
        ("203.0.113.7", ["192.168.2.5"], REAL),
        ("203.0.113.7", [], REAL),
    ],
)
def test_lan_address_is_for_neighbours_behind_the_same_nat(
    own_host: str, local: list[str], expected: tuple[str, int]
) -> None:
    lan = [("fd00::5", 4000), ("10.0.0.9", 4000), LAN]
    assert choose_endpoint(REAL, lan, own_host=own_host, local=local) == expected


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        ("203.0.113.7", True),
        ("10.1.2.3", True),
        ("2001:db8::1", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("0.0.0.0", False),
        ("fe80::1", False),
        ("224.0.0.1", False),
        ("name", False),
    ],
)
def test_addresses_that_are_worth_registering(ip: str, expected: bool) -> None:
    assert is_routable_ip(ip) is expected


def test_own_addresses_are_known() -> None:
    assert has_address("127.0.0.1")
    assert not has_address("203.0.113.7")
    assert all(has_address(ip) for ip in local_addresses())


async def test_endpoint_that_the_beacon_sees_is_registered_again(world: World) -> None:
    async with world.host("a", "alice") as host:
        alice, registrar = host.default_agent, host.registrar
        assert not registrar.endpoints.is_behind_nat
        alice.is_public = True
        await alice.registry("set_visibility", node_id=alice.node_id, public=True)
        before = registrar.registrations
        registrar.reflected(alice, REAL)
        assert registrar.endpoints.is_behind_nat
        await eventually(
            lambda: registrar.registrations > before, what="a new registration"
        )
        known = await alice.registry("lookup", node_id=alice.node_id)
        assert known["real_addr"] == "203.0.113.7:4000"
        # The same again is no news.
        registrar.reflected(alice, REAL)
        assert registrar.registrations == before + 1


async def test_agents_behind_a_nat_remind_the_beacon_one_after_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "SLICE", 1)
    async with world.host("a", "alice", "bob") as host:
        monkeypatch.setattr(presence, "MAPPING_INTERVAL_S", 0.1)
        sockets = [agent.socket for agent in host.agents.values()]
        before = [each.datagrams_sent for each in sockets]
        host.registrar.endpoints.is_behind_nat = True
        task = host.spawn(presence.keep_mappings(host), name="test")

        def sent() -> list[int]:
            pairs = zip(sockets, before, strict=True)
            return [each.datagrams_sent - count for each, count in pairs]

        await eventually(lambda: any(sent()), what="the first discover")
        assert sent() == [1, 0]
        await eventually(lambda: min(sent()) >= 3, what="three discovers of each")
        task.cancel()


async def test_error_of_the_monitor_is_a_change() -> None:
    """The kernel reports one when it had more to tell than there was room for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        closed = other.getsockname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as monitor:
        monitor.setblocking(False)
        monitor.connect(closed)
        monitor.send(b"refused")
        async with asyncio.timeout(10):
            await presence._change(monitor)
