"""Policies of networks: asked for once, and not for whatever a peer names."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import PermissionDenied
from pilotfleet.node import portpolicy
from tests.node.support import ADMIN_TOKEN, World, eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.host import Host


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


async def make_network(host: Host, *ports: int) -> int:
    """Create a network that allows these ports; none allows all."""
    network = await host.registry.create_network(
        host.default_agent.node_id, "fleet", admin_token=ADMIN_TOKEN, enterprise=True
    )
    policy: dict[str, Any] = {"network_id": network, "allowed_ports": ports}
    await host.registry.request(
        {"type": "set_network_policy", "admin_token": ADMIN_TOKEN, **policy}
    )
    return network


async def test_a_packet_waits_for_the_answer(world: World) -> None:
    async with world.host("h", "a") as host:
        network, policies = await make_network(host, 80, 443), host.port_policies
        taken: list[int] = []
        for port in (80, 81, 443):
            policies.admit(network, port, functools.partial(taken.append, port))
        assert not taken
        await eventually(lambda: policies.answer(network, 80), what="the answer")
        assert (taken, policies.refused) == ([80, 443], 1)
        await policies.require(network, 80)
        with pytest.raises(PermissionDenied, match=f"port 81 .* network {network}"):
            await policies.require(network, 81)


@pytest.mark.parametrize("known_s", [5.0, 0.0])
async def test_a_network_that_cannot_be_read_lets_nobody_in(
    world: World, monkeypatch: pytest.MonkeyPatch, known_s: float
) -> None:
    # Without any time it stands for a registry that took longer to fail than that.
    monkeypatch.setattr(portpolicy, "UNKNOWN_S", known_s)
    async with world.host("h", "a") as host:
        policies = host.port_policies
        policies.admit(77, 80, pytest.fail)
        await eventually(lambda: policies.refused, what="the refusal")
        with pytest.raises(PermissionDenied):
            await policies.require(77, 80)


async def test_a_policy_outlives_the_registry(world: World) -> None:
    async with world.host("h", "a") as host:
        network, policies = await make_network(host, 80), host.port_policies
        await policies.require(network, 80)
        policies.forget(network)
        await world.stop_rendezvous()
        await policies.require(network, 80)
        with pytest.raises(PermissionDenied):
            await policies.require(network, 81)


async def test_networks_that_a_peer_invents_are_asked_for_slowly(world: World) -> None:
    async with world.host("h", "a") as host:
        network, policies = await make_network(host), host.port_policies
        await policies.require(network, 80)
        policies.forget(network)
        for invented in range(1000, 1200):
            policies.admit(invented, 80, pytest.fail)
        assert policies.refused >= 200 - portpolicy.UNREAD_BURST - 20
        # One that was read before is none of them.
        taken: list[int] = []
        policies.admit(network, 80, lambda: taken.append(80))
        await eventually(lambda: taken, what="the packet is taken")
