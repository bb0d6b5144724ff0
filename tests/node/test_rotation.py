"""A new identity key, and every way to be interrupted on the way to it."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import (
    Busy,
    ConfigError,
    ConnectionFailed,
    PilotError,
    RegistryError,
)
from pilotfleet.node import rotation
from pilotfleet.node.home import load_or_create_identity, save_identity
from pilotfleet.protocol.identity import Identity
from tests.node.support import World, echo, eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


def path_of(agent: Agent) -> Path:
    """Return the file of a rotation under way."""
    return agent.spec.identity_path.with_name(rotation.CANDIDATE)


async def key_at_registry(agent: Agent) -> str:
    record = await agent.host.registry.lookup(agent.node_id)
    return str(record["public_key"])


async def test_everything_goes_on_with_the_new_key(world: World) -> None:
    async with world.host("h", "a", "b") as host:
        a, b = host.agents["a"], host.agents["b"]
        assert await echo(a, b) == b"hello"
        old, sessions = a.identity, a.tunnels.stats.sessions
        answer = await host.rotation.rotate(a)
        assert a.identity.public_key != old.public_key
        assert answer == {
            "type": "rotate_key_ok",
            "node_id": a.node_id,
            "address": str(a.address),
            "public_key": a.identity.public_key_text,
        }
        assert await key_at_registry(a) == a.identity.public_key_text
        on_disk = load_or_create_identity(a.spec.identity_path)
        assert on_disk.public_key == a.identity.public_key
        mode = stat.S_IMODE(os.stat(a.spec.identity_path).st_mode)
        assert mode == 0o600
        assert not path_of(a).exists()
        # The tunnel is the same; heartbeats are signed anew.
        assert await echo(a, b) == await echo(b, a) == b"hello"
        assert a.tunnels.stats.sessions == sessions
        await a.registry("heartbeat", node_id=a.node_id)
        # And a new tunnel is made with the new key.
        b.tunnels.drop(a.node_id, host.now())
        a.tunnels.drop(b.node_id, host.now())
        assert await echo(b, a) == b"hello"


async def test_peers_keep_their_trust(world: World) -> None:
    async with world.host("h", "a", "b") as host:
        a, b = host.agents["a"], host.agents["b"]
        key = a.identity.public_key_text
        b.trust.trust(a.node_id, wall=0, public_key=key, mutual=True)
        assert await echo(a, b) == b"hello"
        await host.rotation.rotate(a)
        b.tunnels.drop(a.node_id, host.now())
        a.tunnels.drop(b.node_id, host.now())
        assert await echo(a, b) == b"hello"
        assert b.trust.is_trusted(a.node_id, a.identity.public_key)


async def test_a_node_keeps_its_number_after_a_restart(world: World) -> None:
    async with world.host("h", "a") as host:
        node = host.default_agent.node_id
        for _ in range(3):
            await host.rotation.rotate(host.default_agent)
    async with world.host("h", "a") as host:
        assert host.default_agent.node_id == node


@pytest.mark.parametrize("has_rotated", [True, False])
@pytest.mark.parametrize("is_live", [True, False])
async def test_a_daemon_killed_in_between_finds_out_which_key_counts(
    world: World, has_rotated: bool, is_live: bool
) -> None:
    new = Identity(b"n" * 32)
    async with world.host("h", "a") as host:
        agent = host.default_agent
        node, old = agent.node_id, agent.identity
        # What is on disk and at the registry at the moment of the SIGKILL.
        rotation._write(path_of(agent), new, node)
        if has_rotated:
            await host.registry.rotate_key(old, node, new)
        if not is_live:
            owner = new if has_rotated else old
            await host.registry.deregister(owner, node)
    async with world.host("h", "a") as host:
        agent = host.default_agent
        assert agent.node_id == node
        expected = new if has_rotated else old
        assert agent.identity.public_key == expected.public_key
        assert not path_of(agent).exists()
        # To ask the registry about a key may have made another node of it.
        with pytest.raises(RegistryError, match="not found"):
            await host.registry.lookup(node + 1)
        assert (await host.rotation.rotate(agent))["node_id"] == node


async def test_a_daemon_killed_before_it_tidied_up(world: World) -> None:
    async with world.host("h", "a") as host:
        agent = host.default_agent
        node, new = agent.node_id, Identity(b"n" * 32)
        rotation._write(path_of(agent), new, node)
        await host.registry.rotate_key(agent.identity, node, new)
        save_identity(agent.spec.identity_path, new)
    async with world.host("h", "a") as host:
        assert host.default_agent.node_id == node
        assert not path_of(host.default_agent).exists()


async def test_an_answer_that_was_lost_is_asked_for(world: World) -> None:
    """The registry has rotated, and the daemon does not know."""
    async with world.host("h", "a", keepalive_s=0.2) as host:
        agent = host.default_agent
        node, new = agent.node_id, Identity(b"n" * 32)
        rotation._write(path_of(agent), new, node)
        await host.registry.rotate_key(agent.identity, node, new)
        # The next heartbeat is refused, which is how it finds out.
        await eventually(
            lambda: agent.identity.public_key == new.public_key, what="it settles"
        )
        await eventually(lambda: host.registrar.registrations > 1, what="it registers")
        assert agent.node_id == node


async def test_what_an_earlier_rotation_left_is_settled_first(world: World) -> None:
    """Its file may hold the only copy of the key that counts."""
    async with world.host("h", "a") as host:
        agent, new = host.default_agent, Identity(b"n" * 32)
        rotation._write(path_of(agent), new, agent.node_id)
        await host.registry.rotate_key(agent.identity, agent.node_id, new)
        answer = await host.rotation.rotate(agent)
        assert answer["public_key"] == agent.identity.public_key_text
        assert await key_at_registry(agent) == agent.identity.public_key_text


async def test_without_a_registry_nothing_is_decided(world: World) -> None:
    async with world.host("h", "a") as host:
        agent = host.default_agent
        old, node = agent.identity, agent.node_id
        await world.stop_rendezvous()
        with pytest.raises((ConnectionFailed, PilotError)):
            async with asyncio.timeout(20):
                await host.rotation.rotate(agent)
        assert agent.identity is old
        assert path_of(agent).exists()
        await world.start_rendezvous()
        answer = await host.rotation.rotate(agent)
        assert answer["node_id"] == node
        assert not path_of(agent).exists()


async def test_one_rotation_at_a_time(world: World) -> None:
    async with world.host("h", "a") as host:
        agent = host.default_agent
        first = asyncio.create_task(host.rotation.rotate(agent))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="is being rotated already"):
            await host.rotation.rotate(agent)
        await host.rotation.settle(agent)
        assert first.done()
        assert (await first)["public_key"] == agent.identity.public_key_text


async def test_a_damaged_file_is_named(world: World) -> None:
    async with world.host("h", "a") as host:
        path = path_of(host.default_agent)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"identity\.next\.json is damaged"):
        async with world.host("h", "a"):
            pass
