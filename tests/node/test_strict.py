"""Private agents that exchange keys only with peers they trust."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import PilotError
from pilotfleet.protocol.address import SocketAddress
from tests.node.support import ADMIN_TOKEN, World, echo, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as made:
        yield made


@pytest.fixture
async def pair(world: World) -> AsyncIterator[tuple[Agent, Agent]]:
    """Yield a public agent, and a strict one that is public yet."""
    strict = world.host("b", "bob", strict_dataplane_trust=True)
    async with world.host("a", "alice") as a, strict as b:
        yield a.default_agent, b.default_agent


def hide(agent: Agent) -> None:
    """Make an agent private whose address the registry has told already."""
    agent.is_public = agent.streams.is_public = False


async def test_public_agent_is_not_strict(pair: tuple[Agent, Agent]) -> None:
    assert await echo(*pair) == b"hello"


async def test_stranger_gets_no_tunnel(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    hide(bob)
    with pytest.raises(PilotError):
        await alice.dial(SocketAddress(bob.address, 7), timeout=0.5)
    assert not alice.tunnels.has_session(bob.node_id)
    assert not bob.tunnels.has_session(alice.node_id)


async def test_stranger_may_be_called(pair: tuple[Agent, Agent]) -> None:
    alice, bob = pair
    hide(bob)
    assert await echo(bob, alice) == b"hello"


async def test_whom_the_registry_vouches_for_is_let_in(
    pair: tuple[Agent, Agent],
) -> None:
    alice, bob = pair
    made = await bob.registry(
        "create_network",
        node_id=bob.node_id,
        name="team",
        join_rule="open",
        admin_token=ADMIN_TOKEN,
    )
    await alice.join_network(made["network_id"])
    hide(bob)
    # The first greeting only makes the agent ask the registry.
    assert await echo(alice, bob) == b"hello"
