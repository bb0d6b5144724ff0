"""Networks that agents are in, and hostnames that they get later."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import RegistryError
from pilotfleet.node.config import NetworkToJoin
from pilotfleet.node.memberships import Memberships
from pilotfleet.node.registration import registrar
from tests.node.support import ADMIN_TOKEN, World, eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


async def make_network(agent: Agent, name: str = "fleet", **fields: Any) -> int:
    """Create a network that ``agent`` owns."""
    return await agent.host.registry.create_network(
        agent.node_id, name, admin_token=ADMIN_TOKEN, **fields
    )


def joins(*numbers: int, is_required: bool) -> tuple[NetworkToJoin, ...]:
    return tuple(
        NetworkToJoin(str(number), is_required=is_required) for number in numbers
    )


async def test_networks_are_joined_at_the_start(world: World) -> None:
    async with world.host("a", "boss") as host:
        network = await make_network(host.default_agent)
        wanted = joins(network, 77, is_required=False)
        async with world.host("b", "one", "two", networks=wanted) as other:
            for agent in other.agents.values():
                assert agent.networks == (network,)


async def test_a_network_that_must_be_joined_stops_the_start(world: World) -> None:
    with pytest.raises(RegistryError, match="network 77: network not found"):
        async with world.host("a", "one", networks=joins(77, is_required=True)):
            pass


async def test_what_others_change_is_followed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar, "SYNC_INTERVAL_S", 0.0)
    async with world.host("a", "boss", "member", keepalive_s=0.2) as host:
        boss, member = host.agents["boss"], host.agents["member"]
        seen: list[tuple[str, int]] = []
        host.event_sink = lambda agent, event, data: (
            seen.append((event, data["network_id"]))
            if agent is member and event.startswith("network.")
            else None
        )
        network = await make_network(boss, enterprise=True)
        await member.join_network(network)
        await host.registry.request(
            {
                "type": "kick_member",
                "network_id": network,
                "target_node_id": member.node_id,
                "admin_token": ADMIN_TOKEN,
            }
        )
        await eventually(lambda: not member.networks, what="the kick is noticed")
        await host.registry.join_network(member.identity, member.node_id, network)
        await eventually(lambda: member.networks == (network,), what="the return")
        assert seen == [("network.left", network), ("network.joined", network)]


async def test_an_answer_from_before_a_join_is_not_believed(world: World) -> None:
    async with world.host("a", "boss", "member") as host:
        network = await make_network(host.agents["boss"])
        member = host.agents["member"]
        # The question is on its way when the agent joins.
        sync = asyncio.create_task(Memberships(host).sync(member))
        await asyncio.sleep(0)
        member.networks = (network,)
        await sync
        assert member.networks == (network,)


async def test_a_taken_hostname_is_got_when_it_is_free(world: World) -> None:
    async with world.host("b", "bob", keepalive_s=0.2) as later:
        bob = later.default_agent
        async with world.host("a", "alice") as first:
            alice = first.default_agent
            await alice.registry("set_hostname", node_id=alice.node_id, hostname="x")
            bob.wanted_hostname, bob.hostname = "x", ""
            beats = later.registrar.heartbeats
            await eventually(
                lambda: later.registrar.heartbeats > beats + 2, what="heartbeats"
            )
            assert bob.hostname == ""
            await alice.registry("set_hostname", node_id=alice.node_id, hostname="")
            await eventually(lambda: bob.hostname == "x", what="bob has the name")


async def test_a_registry_that_may_forget_is_told_the_hostname_again(
    world: World,
) -> None:
    """Official registries lose names; ours says by its extensions what it is."""
    async with world.host("b", "bob", keepalive_s=0.2) as host:
        bob = host.default_agent
        host.registry.extensions = frozenset()
        await host.registry.set_hostname(bob.identity, bob.node_id, "")

        async def is_told() -> bool:
            record = await host.registry.lookup(bob.node_id)
            return record.get("hostname") == "bob"

        beats = host.registrar.heartbeats
        await eventually(
            lambda: host.registrar.heartbeats > beats + 1, what="heartbeats"
        )
        assert await is_told()


async def test_everything_is_set_again_after_the_registry_lost_it(
    world: World,
) -> None:
    async with world.host("h", "a", "b", keepalive_s=0.2) as host:
        a, b = host.agents["a"], host.agents["b"]
        a.trust.trust(b.node_id, wall=0, mutual=True)
        a.tags = ("text",)
        await world.stop_rendezvous(lose_everything=True)
        await world.start_rendezvous()

        async def state() -> list[Any]:
            record = await host.registry.lookup(a.node_id)
            trusts = await host.registry.check_trust(a.node_id, b.node_id)
            return [record.get("hostname"), record.get("tags"), trusts]

        seen = host.registrar.registrations
        await eventually(
            lambda: host.registrar.registrations >= seen + 2, what="registrations"
        )
        assert (await state())[:2] == ["a", ["text"]]
