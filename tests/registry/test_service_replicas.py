"""Restarts, and several registries on one store."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from pilotfleet.errors import StorageError
from pilotfleet.protocol.identity import Identity
from pilotfleet.registry.directory.records import (
    Claim,
    encode_record,
    key_key,
    owner_key,
)
from pilotfleet.registry.store.base import Change, Entry
from pilotfleet.registry.store.memory import MemoryStore
from tests.registry.support import eventually
from tests.registry.test_directory import picture
from tests.registry.world import World, error_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence


@contextlib.asynccontextmanager
async def replicas(store: MemoryStore, count: int) -> AsyncIterator[list[World]]:
    """Run registries on one store; each follows the others."""
    worlds = [World(store) for _ in range(count)]
    for world in worlds:
        await world.service.load()
    watches = [asyncio.create_task(w.service.run_watch()) for w in worlds]
    # Nobody writes before all watches have begun.
    await asyncio.sleep(0)
    try:
        yield worlds
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def settled(worlds: list[World]) -> None:
    """Wait until all watches have caught up with the store."""
    for _ in range(20):
        await asyncio.sleep(0)


async def busy_world() -> World:
    """Return a registry with something of everything in it."""
    world = World()
    one, two, three = [
        await world.agent(seed, owner=f"o{seed}", version="1.18.0", lan_addrs=["l"])
        for seed in (1, 2, 3)
    ]
    await one.ask("set_hostname", hostname="alice")
    await two.ask("set_hostname", hostname="bob")
    await two.ask("set_hostname", hostname="carol")
    await one.ask("set_tags", tags=["gpu", "web"])
    await one.ask("set_visibility", public=True)
    fields = {"enterprise": True, "join_rule": "invite", "network_admin_token": "t"}
    await world.admin("create_network", node_id=1, name="n", **fields)
    await world.admin("create_network", node_id=1, name="gone")
    await two.ask("join_network", network_id=2)
    invite = {"network_id": 1, "inviter_id": 1}
    await one.ask("invite_to_network", **invite, target_node_id=2)
    await one.ask("invite_to_network", **invite, target_node_id=3)
    await two.ask("respond_invite", network_id=1, accept=True)
    await world.admin("delete_network", network_id=2)
    await one.ask("report_trust", peer_id=2)
    await two.ask("request_handshake", from_node_id=2, to_node_id=3)
    await three.ask("respond_handshake", peer_id=1, accept=False)
    await world.admin("set_polo_score", node_id=2, polo_score=-3)
    new = Identity(b"n" * 32)
    await two.ask("rotate_key", new_public_key=new.public_key_text)
    await three.ask("deregister")
    await three.register()
    return world


async def test_a_restarted_registry_is_the_one_that_was_lost() -> None:
    world = await busy_world()
    await world.service.maintain()
    again = await world.reopened()
    assert picture(again.directory) == picture(world.directory)
    # It goes on where the other one stopped.
    assert (await again.agent(9)).node == 4


async def test_a_clean_stop_keeps_the_times_of_the_last_heartbeats() -> None:
    world = World()
    (agent,) = await world.agents(1)
    world.clock.time += 1000
    await agent.ask("heartbeat")
    await world.service.aclose()
    again = await world.reopened()
    found = await again.ask("lookup", node_id=1)
    assert found["last_seen_unix"] == int(world.clock.wall())
    assert again.directory.is_online(1)


async def test_replicas_see_each_others_changes() -> None:
    async with replicas(MemoryStore(), 2) as worlds:
        first, second = worlds
        one = await first.agent(1)
        await one.ask("set_hostname", hostname="alice")
        await settled(worlds)
        assert (await second.ask("lookup", node_id=1))["hostname"] == "alice"
        one.world = second
        await one.ask("set_tags", tags=["gpu"])
        await one.ask("set_hostname", hostname="anna")
        await settled(worlds)
        assert picture(first.directory) == picture(second.directory)
        assert first.directory.nodes.by_id[1].record.tags == ("gpu",)


async def test_replicas_share_heartbeats_in_batches() -> None:
    async with replicas(MemoryStore(), 2) as worlds:
        first, second = worlds
        one = await first.agent(1)
        await settled(worlds)
        for world in worlds:
            world.clock.time += 500
        await one.ask("heartbeat")
        await first.service.maintain()
        await settled(worlds)
        assert second.directory.nodes.by_id[1].last_seen == first.clock.time


async def test_replicas_that_race_agree_on_names_and_ids() -> None:
    store = MemoryStore()
    async with replicas(store, 3) as worlds:
        agents = [worlds[n % 3].stranger(n + 1) for n in range(60)]
        replies = await asyncio.gather(*(agent.register() for agent in agents))
        assert len({reply["node_id"] for reply in replies}) == 60, replies
        wishes = [agent.ask("set_hostname", hostname="king") for agent in agents]
        kings = [r for r in await asyncio.gather(*wishes) if r["type"] != "error"]
        assert len(kings) == 1
        await settled(worlds)
        pictures = [picture(world.directory) for world in worlds]
        assert pictures[0] == pictures[1] == pictures[2]
        assert picture((await worlds[0].reopened()).directory) == pictures[0]


async def test_one_key_registered_at_every_replica_is_one_node() -> None:
    async with replicas(MemoryStore(), 3) as worlds:
        agents = [world.stranger(1) for world in worlds]
        registrations = [agent.register(owner="o") for agent in agents]
        replies = await asyncio.gather(*registrations)
        assert len({reply.get("node_id") for reply in replies}) == 1, replies


async def test_a_watch_never_takes_back_what_was_written_here() -> None:
    class SlowWatch(MemoryStore):
        """Brings every revision, also those that were overwritten, but late."""

        def __init__(self) -> None:
            super().__init__()
            self.history: list[Entry] = []
            self.go = asyncio.Event()

        async def write(self, changes: Sequence[Change]) -> list[int]:
            revisions = await super().write(changes)
            for change, revision in zip(changes, revisions, strict=True):
                self.history.append(Entry(change.key, change.value, revision))
            return revisions

        async def watch(self, after: int) -> AsyncGenerator[Entry, None]:
            await self.go.wait()
            for entry in self.history:
                if entry.revision > after:
                    yield entry
                    await asyncio.sleep(0)
            await asyncio.Event().wait()

    store = SlowWatch()
    async with replicas(store, 1) as (world,):
        (agent,) = await world.agents(1)
        for tag in ("a", "b", "c"):
            await agent.ask("set_tags", tags=[tag])
        await agent.ask("set_hostname", hostname="alice")
        await agent.ask("set_hostname", hostname="")
        store.go.set()
        for _ in range(2 * len(store.history)):
            await asyncio.sleep(0)
            found = await world.ask("lookup", node_id=1)
            assert found["tags"] == ["c"]
            assert "hostname" not in found


class PieceStore(MemoryStore):
    """Writes one change at a time and stops where it is told, as NATS may."""

    left = 1_000

    async def write(self, changes: Sequence[Change]) -> list[int]:
        """Make changes in order until the allowance is used up."""
        revisions: list[int] = []
        for change in changes:
            if self.left == 0:
                raise StorageError("connection lost")
            self.left -= 1
            revisions += await super().write([change])
        return revisions


async def cut_short(store: PieceStore, count: int, request: Any) -> dict[str, Any]:
    """Let a request make only so many of its changes."""
    store.left = count
    reply: dict[str, Any] = await request
    store.left = 1_000
    return reply


async def test_a_registration_that_was_cut_short_is_completed() -> None:
    for count in range(3):
        store = PieceStore()
        world = World(store)
        agent = world.stranger(1)
        assert error_of(await cut_short(store, count, agent.register(owner="o")))
        agent.world = again = await world.reopened()
        reply = await agent.register(owner="o", hostname="alice")
        assert (reply["node_id"], reply["hostname"]) == (1, "alice")
        assert again.directory.nodes.orphans == {}
        other = await again.agent(2, owner="p")
        assert other.node == 2


async def test_a_deregistration_that_was_cut_short_is_completed() -> None:
    for count in range(4):
        store = PieceStore()
        world = World(store)
        agent, _ = await world.agents(2)
        await agent.ask("set_hostname", hostname="alice")
        await world.admin("create_network", node_id=2, name="n")
        await agent.ask("join_network", network_id=1)
        await cut_short(store, count, agent.ask("deregister"))
        agent.world = again = await world.reopened()
        assert (await agent.ask("deregister"))["type"] == "deregister_ok"
        keys = [entry.key for entry in await store.load()]
        assert not {"host.alice", "member.1.1"} & set(keys)
        assert error_of(await again.ask("lookup", node_id=1))


async def test_an_acceptance_that_was_cut_short_can_be_repeated() -> None:
    for count in range(3):
        store = PieceStore()
        world = World(store)
        alice, bob = await world.agents(2)
        await alice.ask("request_handshake", from_node_id=1, to_node_id=2)
        accept = {"peer_id": 1, "accept": True}
        await cut_short(store, count, bob.ask("respond_handshake", **accept))
        bob.world = alice.world = again = await world.reopened()
        assert (await bob.ask("respond_handshake", **accept))["accept"]
        assert len((await alice.ask("poll_handshakes"))["responses"]) == 1
        trusted = await again.ask("check_trust", node_id=1, peer_id=2)
        assert trusted["trusted"] is True


async def test_claims_that_nobody_bears_out_do_not_block_their_keys() -> None:
    store = MemoryStore()
    stranger = World().stranger(7)
    key = key_key(stranger.identity.public_key)
    claims = [
        Change(key, encode_record(Claim(1)), 0),
        Change(owner_key("o"), encode_record(Claim(1)), 0),
    ]
    world = World(store)
    # Node 1 is somebody else's: two replicas took the same ID.
    await world.agent(1)
    await store.write(claims)
    stranger.world = again = await world.reopened()
    assert (await stranger.register(owner="o"))["node_id"] == 2
    assert again.directory.nodes.orphans == {}


async def test_a_registry_that_does_not_follow_its_store_refuses_politely() -> None:
    store = MemoryStore()
    world = World(store)
    (agent,) = await world.agents(1)
    other = await world.reopened()
    await other.admin("set_tags", node_id=1, tags=["gpu"])
    reply = await agent.ask("set_tags", tags=["web"])
    assert error_of(reply) == "set_tags: changed concurrently, retry"


async def test_a_node_without_owner_takes_one_when_it_comes_back() -> None:
    world = World()
    (agent,) = await world.agents(1)
    await agent.ask("deregister")
    await agent.register(owner="o")
    assert world.directory.nodes.by_owner == {"o": 1}


async def test_a_watch_that_breaks_is_taken_up_again() -> None:
    class Breaking(MemoryStore):
        """Breaks each watch after one entry."""

        async def watch(self, after: int) -> AsyncGenerator[Entry, None]:
            async for entry in super().watch(after):
                yield entry
                raise StorageError("connection lost")

    async with replicas(Breaking(), 2) as worlds:
        await (await worlds[0].agent(1)).ask("set_hostname", hostname="alice")
        await eventually(lambda: worlds[1].directory.hosts.get("alice") is not None)
