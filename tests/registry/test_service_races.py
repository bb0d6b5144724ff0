"""Requests at the same time: one winner, nobody starves, nothing by half."""

from __future__ import annotations

import asyncio
from typing import Any

from pilotfleet.errors import StorageError
from pilotfleet.registry.keylocks import KeyLocks
from tests.registry.world import Agent, GatedStore, World, error_of


async def started(world: World, *requests: Any) -> list[asyncio.Task[Any]]:
    """Begin requests while the store is closed."""
    assert isinstance(world.store, GatedStore)
    world.store.gate.clear()
    tasks = [asyncio.ensure_future(request) for request in requests]
    # Each has one step to its first wait; the second lets writes begin.
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def errors(replies: list[dict[str, Any]]) -> list[str]:
    return [reply["error"] for reply in replies if reply["type"] == "error"]


async def test_of_two_that_want_a_hostname_one_gets_it() -> None:
    world = World(GatedStore())
    agents = await world.agents(10)
    wishes = [agent.ask("set_hostname", hostname="king") for agent in agents]
    replies = await asyncio.gather(*wishes)
    assert errors(replies) == ['hostname "king" already in use by node 1'] * 9
    reopened = await world.reopened()
    claim = reopened.directory.hosts.get("king")
    assert claim is not None
    assert claim.node == 1


async def test_a_fleet_that_registers_at_once_gets_consecutive_ids() -> None:
    world = World()
    agents = [world.stranger(seed) for seed in range(1, 101)]
    replies = await asyncio.gather(*(agent.register() for agent in agents))
    assert sorted(r["node_id"] for r in replies) == list(range(1, 101))


async def test_one_key_registered_twice_at_once_is_one_node() -> None:
    world = World(GatedStore())
    agent = world.stranger(1)
    tasks = await started(world, *(agent.register(owner="o") for _ in range(5)))
    world.store.gate.set()  # type: ignore[attr-defined]
    replies = await asyncio.gather(*tasks)
    assert {reply["node_id"] for reply in replies} == {1}
    # No ID was lost on the way.
    assert (await world.agent(2)).node == 2


async def test_of_two_keys_with_one_owner_one_gets_it() -> None:
    world = World(GatedStore())
    agents = [world.stranger(1), world.stranger(2)]
    tasks = await started(world, *(agent.register(owner="o") for agent in agents))
    world.store.gate.set()  # type: ignore[attr-defined]
    replies = await asyncio.gather(*tasks)
    assert len(errors(replies)) == 1
    assert "already bound to node 1" in errors(replies)[0]


async def test_requests_of_one_node_are_done_in_their_order() -> None:
    world = World()
    (agent,) = await world.agents(1)
    tags = [[f"t{number}"] for number in range(50)]
    requests = [agent.ask("set_tags", tags=wanted) for wanted in tags]
    replies = await asyncio.gather(*requests)
    assert [reply["tags"] for reply in replies] == tags
    assert (await world.ask("lookup", node_id=1))["tags"] == ["t49"]


async def test_a_member_limit_holds_when_all_join_at_once() -> None:
    world = World()
    agents = await world.agents(12)
    await world.admin("create_network", node_id=1, name="n", enterprise=True)
    await world.admin("set_network_policy", network_id=1, max_members=5)
    joins = [agent.ask("join_network", network_id=1) for agent in agents[1:]]
    replies = await asyncio.gather(*joins)
    assert errors(replies) == ["network membership limit reached"] * 7
    assert len(world.directory.networks.by_id[1].members) == 5


async def test_a_poll_takes_only_what_it_returns() -> None:
    world = World(GatedStore())
    alice, bob, carol = await world.agents(3)
    await alice.ask("request_handshake", from_node_id=1, to_node_id=3)
    tasks = await started(
        world,
        carol.ask("poll_handshakes"),
        bob.ask("request_handshake", from_node_id=2, to_node_id=3),
        carol.ask("poll_handshakes"),
    )
    assert not any(task.done() for task in tasks)
    # As long as it is not stored, a restart would find it.
    assert 3 in (await world.reopened()).directory.mail
    world.store.gate.set()  # type: ignore[attr-defined]
    first, _, second = await asyncio.gather(*tasks)
    assert [r["from_node_id"] for r in first["requests"]] == [1]
    assert [r["from_node_id"] for r in second["requests"]] == [2]
    assert (await world.reopened()).directory.mail[3].record.requests == ()


async def test_a_request_whose_turn_needs_other_keys_waits_for_those() -> None:
    world = World(GatedStore())
    one, two = await world.agents(2)
    tasks = await started(
        world,
        one.ask("set_hostname", hostname="a"),
        # By its turn this one has a name to give up as well.
        one.ask("set_hostname", hostname="b"),
        two.ask("set_hostname", hostname="a"),
    )
    world.store.gate.set()  # type: ignore[attr-defined]
    first, second, third = await asyncio.gather(*tasks)
    assert (first["hostname"], second["hostname"]) == ("a", "b")
    assert third["type"] == "set_hostname_ok" or "node 1" in third["error"]
    again = await world.reopened()
    assert again.directory.nodes.by_id[1].hostname == "b"


async def test_nothing_is_shown_before_it_is_stored() -> None:
    world = World(GatedStore())
    (agent,) = await world.agents(1)
    (task,) = await started(world, agent.ask("set_tags", tags=["gpu"]))
    assert "tags" not in await world.ask("lookup", node_id=1)
    world.store.gate.set()  # type: ignore[attr-defined]
    await task
    assert (await world.ask("lookup", node_id=1))["tags"] == ["gpu"]


async def test_a_client_that_hangs_up_leaves_directory_and_store_alike() -> None:
    world = World(GatedStore())
    one, two = await world.agents(2)
    (task,) = await started(world, one.ask("set_hostname", hostname="alice"))
    (waiting,) = await started(world, two.ask("set_hostname", hostname="alice"))
    task.cancel()
    await asyncio.wait([task])
    assert not waiting.done()
    world.store.gate.set()  # type: ignore[attr-defined]
    assert error_of(await waiting).endswith("already in use by node 1")
    await world.service.aclose()
    assert (await world.ask("lookup", node_id=1))["hostname"] == "alice"


async def test_a_waiting_request_that_is_cancelled_does_not_block_others() -> None:
    world = World(GatedStore())
    (agent,) = await world.agents(1)
    tasks = await started(
        world, *(agent.ask("set_tags", tags=[tag]) for tag in ("a", "b", "c"))
    )
    tasks[1].cancel()
    world.store.gate.set()  # type: ignore[attr-defined]
    await asyncio.wait(tasks)
    assert (await world.ask("lookup", node_id=1))["tags"] == ["c"]


async def test_leaving_and_deregistering_at_once_leaves_no_membership() -> None:
    world = World()
    agents = await world.agents(4)
    await world.admin("create_network", node_id=1, name="n")
    joins = [agent.ask("join_network", network_id=1) for agent in agents[1:]]
    goes = [agent.ask("deregister") for agent in agents[1:]]
    await asyncio.gather(*joins, *goes)
    assert list(world.directory.networks.by_id[1].members) == [1]


async def test_a_deregistration_whose_turn_comes_too_late_is_fine() -> None:
    world = World(GatedStore())
    (agent,) = await world.agents(1)
    tasks = await started(world, agent.ask("deregister"), agent.ask("deregister"))
    world.store.gate.set()  # type: ignore[attr-defined]
    assert await asyncio.gather(*tasks) == [{"type": "deregister_ok"}] * 2


class FailingStore(GatedStore):
    """Refuses writes as long as it is told to."""

    failing = False

    async def write(self, changes: Any) -> list[int]:
        """Write, or fail as a full disk does."""
        if self.failing:
            raise StorageError("disk full")
        return await super().write(changes)


async def test_a_store_that_refuses_costs_an_error_and_nothing_else() -> None:
    store = FailingStore()
    world = World(store)
    (agent,) = await world.agents(1)
    store.failing = True
    reply = await agent.ask("set_tags", tags=["gpu"])
    assert error_of(reply) == "registry storage is not available, retry later"
    assert "tags" not in await world.ask("lookup", node_id=1)
    await agent.ask("heartbeat")
    world.clock.time += 100
    await world.service.maintain()
    store.failing = False
    assert (await agent.ask("set_tags", tags=["gpu"]))["tags"] == ["gpu"]


async def test_a_fleet_in_one_network_joins_without_taking_turns() -> None:
    world = World(GatedStore())
    agents = await world.agents(50)
    await world.admin("create_network", node_id=1, name="n")
    store = world.store
    assert isinstance(store, GatedStore)
    before = store.writes

    def join(agent: Agent) -> Any:
        return agent.ask("join_network", network_id=1)

    tasks = await started(world, *map(join, agents[1:]))
    assert store.writes - before == 49
    store.gate.set()
    assert errors(await asyncio.gather(*tasks)) == []


async def test_a_key_passes_from_waiter_to_waiter() -> None:
    locks = KeyLocks()
    order: list[str] = []
    assert locks.try_acquire(["a", "b"])
    assert not locks.try_acquire(["b", "c"])

    async def take(name: str, keys: list[str]) -> None:
        await locks.acquire(keys)
        order.append(name)
        await asyncio.sleep(0)
        locks.release(keys)

    tasks = [
        asyncio.ensure_future(take(name, keys))
        for name, keys in (("1", ["b"]), ("2", ["c", "a"]), ("3", ["b", "a"]))
    ]
    await asyncio.sleep(0)
    cancelled = asyncio.ensure_future(take("4", ["a"]))
    await asyncio.sleep(0)
    cancelled.cancel()
    locks.release(["a", "b"])
    await asyncio.gather(*tasks)
    await asyncio.wait([cancelled])
    assert sorted(order) == ["1", "2", "3"]
    assert locks.try_acquire(["a", "b", "c"])


async def test_a_key_handed_to_a_cancelled_waiter_passes_on() -> None:
    locks = KeyLocks()
    assert locks.try_acquire(["a"])
    waiter = asyncio.ensure_future(locks.acquire(["a"]))
    await asyncio.sleep(0)
    locks.release(["a"])
    waiter.cancel()
    await asyncio.wait([waiter])
    assert locks.try_acquire(["a"])
