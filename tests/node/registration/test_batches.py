"""Many agents of a host at a registry that takes batches, and one that does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import Closed, RegistryError
from pilotfleet.node.config import NetworkToJoin
from pilotfleet.node.registration import registrar
from pilotfleet.services.handshake.service import HandshakeService
from tests.node.registration.proxy import RegistryProxy, without_batches
from tests.node.support import ADMIN_TOKEN, World, eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.host import Host

pytestmark = pytest.mark.timeout(60)

NAMES = [f"w{number}" for number in range(40)]
UNKNOWN = {"type": "error", "error": 'unknown message type: "batch"'}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


@pytest.fixture
async def proxy(world: World) -> AsyncIterator[RegistryProxy]:
    async with RegistryProxy(world.addresses.registry).running() as proxy:
        yield proxy


def host_at(world: World, proxy: RegistryProxy, *names: str, **changes: Any) -> Host:
    """Return a host whose registry is the proxy."""
    changes = {"registry": proxy.endpoint, **changes}
    return world.host("h", *(names or NAMES), **changes)


async def found(host: Host) -> set[str]:
    """Return the hostnames that the registry knows with the tag ``x``."""
    answer = await host.registry.search(tags=["x"], limit=1000)
    return {row["hostname"] for row in answer["agents"]}


def tagged(host: Host) -> None:
    for agent in host.agents.values():
        agent.tags = ("x",)


async def test_a_start_takes_few_messages(world: World, proxy: RegistryProxy) -> None:
    async with host_at(world, proxy) as host:
        assert proxy.seen["register"] == len(NAMES)
        assert proxy.seen["lookup"] == 0  # All are new.
        assert sum(proxy.batches) >= len(NAMES) - 1
        alone = sum(proxy.seen.values()) - sum(proxy.batches)
        assert alone < 20
        assert {agent.hostname for agent in host.agents.values()} == set(NAMES)


async def test_a_restart_asks_what_the_registry_knows(
    world: World, proxy: RegistryProxy
) -> None:
    async with host_at(world, proxy) as host:
        node = host.default_agent.node_id
        await host.default_agent.registry("set_visibility", node_id=node, public=False)
        before = proxy.seen["set_visibility"]
    async with host_at(world, proxy) as host:
        assert host.default_agent.node_id == node
        assert proxy.seen["lookup"] == len(NAMES)
        # One is known otherwise than it wants to be.
        assert proxy.seen["set_visibility"] == before + 1
        assert (await host.registry.lookup(node))["public"]
        assert {agent.hostname for agent in host.agents.values()} == set(NAMES)


async def test_a_registry_without_batches_gets_none(
    world: World, proxy: RegistryProxy
) -> None:
    proxy.change = without_batches
    async with host_at(world, proxy, keepalive_s=0.1) as host:
        await beats(host, 2)
        assert proxy.seen["batch"] == proxy.seen["heartbeats"] == 0
        assert proxy.seen["register"] == len(NAMES)
        assert proxy.seen["heartbeat"] >= 2 * len(NAMES)


async def test_heartbeats_of_all_agents_are_few_messages(
    world: World, proxy: RegistryProxy
) -> None:
    async with host_at(world, proxy, keepalive_s=1.0) as host:
        await beats(host, 2)
        # The first one of each agent was at a time of its own; from then on they are
        # due on a grid of a quarter of a second.
        messages, before = proxy.seen["heartbeats"], host.registrar.heartbeats
        await beats(host, 2)
        sent = host.registrar.heartbeats - before
        assert proxy.seen["heartbeats"] - messages < sent / 3
        assert proxy.seen["heartbeat"] == 0


async def test_mail_of_all_agents_is_fetched_in_batches(
    world: World, proxy: RegistryProxy
) -> None:
    host = host_at(world, proxy, keepalive_s=1.0)
    service = HandshakeService(host)
    service.attach()
    async with host:
        start = len(proxy.batches)
        await eventually(
            lambda: proxy.seen["poll_handshakes"] >= 2 * len(NAMES), what="polls"
        )
        assert len(proxy.batches) - start < len(NAMES)
    await service.aclose()


async def test_networks_are_joined_in_batches(
    world: World, proxy: RegistryProxy
) -> None:
    async with world.host("a", "boss") as boss:
        await boss.registry.create_network(
            boss.default_agent.node_id, "red", admin_token=ADMIN_TOKEN
        )
        networks = (NetworkToJoin("red"),)
        async with host_at(world, proxy, networks=networks) as host:
            assert {agent.networks for agent in host.agents.values()} == {(1,)}
        assert proxy.seen["list_networks"] == 1


async def test_one_refused_agent_does_not_touch_the_others(
    world: World, proxy: RegistryProxy, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(request: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        for index, each in enumerate(request.get("requests", ())):
            if each["type"] == "register" and each.get("hostname") == "w7":
                error = {"type": "error", "error": "registration refused: no w7"}
                reply["replies"][index] = error
        return reply

    proxy.change = refuse
    async with host_at(world, proxy) as host:
        registered = {name for name, a in host.agents.items() if a.registered_at}
        assert registered == set(NAMES) - {"w7"}
    assert "agent w7 is not registered: registration refused: no w7" in caplog.text


async def test_an_item_that_shall_wait_is_tried_again(
    world: World, proxy: RegistryProxy
) -> None:
    deferred: set[str] = set()

    def defer(request: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        for index, each in enumerate(request.get("requests", ())):
            name = each.get("hostname")
            if each["type"] == "register" and name not in deferred:
                deferred.add(name)
                error = "rate limited: too many registrations"
                reply["replies"][index] = {
                    "type": "error",
                    "error": error,
                    "retry_after": 0.05,
                }
        return reply

    proxy.change = defer
    async with host_at(world, proxy) as host:
        assert all(agent.registered_at for agent in host.agents.values())
        assert len(deferred) > len(NAMES) / 2
        # Only what was refused is repeated, and it travels in batches again.
        registers = proxy.seen["register"]
        assert registers == len(NAMES) + len(deferred)


async def test_agents_that_were_forgotten_register_again(
    world: World, proxy: RegistryProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar, "REGISTER_GUARD_S", 0.0)
    async with host_at(world, proxy, keepalive_s=1.0) as host:
        await beats(host, 1)
        tagged(host)
        before = host.registrar.registrations
        await world.stop_rendezvous(lose_everything=True)
        await world.start_rendezvous()
        await eventually(
            lambda: host.registrar.registrations >= before + len(NAMES),
            what="all are registered again",
        )
        assert await found(host) == set(NAMES)
        assert len({agent.node_id for agent in host.agents.values()}) == len(NAMES)


async def test_one_forgotten_agent_has_the_others_ask_before_their_time(
    world: World, proxy: RegistryProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar, "REGISTER_GUARD_S", 0.0)
    async with host_at(world, proxy) as host:
        members = host.registrar._members.values()
        await eventually(lambda: all(m.is_confirmed for m in members), what="confirmed")
        await world.stop_rendezvous(lose_everything=True)
        await world.start_rendezvous()
        # With a keepalive of a minute, that is long before the others are due.
        host.wheel.schedule(next(iter(members)), host.now())
        await eventually(
            lambda: host.registrar.registrations >= 2 * len(NAMES),
            what="all are registered again",
        )


async def test_an_older_registry_that_comes_back_gets_no_batches(
    world: World, proxy: RegistryProxy
) -> None:
    async with host_at(world, proxy, keepalive_s=0.2) as host:
        proxy.answer = lambda request: (
            UNKNOWN if request["type"] in ("batch", "heartbeats") else None
        )
        await beats(host, 2)
        assert not host.registry.offers("batch")
        batches = proxy.seen["batch"] + proxy.seen["heartbeats"]
        await beats(host, 2)
        assert proxy.seen["batch"] + proxy.seen["heartbeats"] == batches
        # With the next registration it is known again what the registry offers.
        proxy.answer = lambda request: None
        before = host.registrar.registrations
        host.registrar.register_again(host.default_agent)
        await eventually(
            lambda: host.registrar.registrations > before, what="a registration"
        )
        assert host.registry.offers("batch")


async def test_requests_in_flight_outlive_the_end_of_batches(
    world: World, proxy: RegistryProxy
) -> None:
    async with host_at(world, proxy, "a", "b", "c") as host:
        proxy.answer = lambda request: UNKNOWN if request["type"] == "batch" else None
        agents = list(host.agents.values())
        answers = await asyncio.gather(
            *(agent.gathered("lookup", node_id=agent.node_id) for agent in agents)
        )
        assert [each["node_id"] for each in answers] == [a.node_id for a in agents]


async def test_gathered_requests_fail_each_for_itself(
    world: World, proxy: RegistryProxy
) -> None:
    async with host_at(world, proxy, "a") as host:
        agent = host.default_agent
        results = await asyncio.gather(
            *(agent.gathered("lookup", node_id=n) for n in (agent.node_id, 999)),
            return_exceptions=True,
        )
        assert isinstance(results[0], dict)
        assert isinstance(results[1], RegistryError)
        assert proxy.batches == [2]


async def test_who_gives_up_does_not_keep_the_others_waiting(
    world: World, proxy: RegistryProxy
) -> None:
    async with host_at(world, proxy, "a") as host:
        agent = host.default_agent
        lookups = [
            asyncio.ensure_future(agent.gathered("lookup", node_id=agent.node_id))
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        lookups[1].cancel()
        results = await asyncio.gather(*lookups, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert results[0] == results[2]


async def test_requests_that_are_given_up_are_no_end_of_who_asked(
    world: World, proxy: RegistryProxy
) -> None:
    async with host_at(world, proxy, "a") as host:
        agent = host.default_agent
        lookups = [
            asyncio.ensure_future(agent.gathered("lookup", node_id=agent.node_id))
            for _ in range(2)
        ]

        def sending() -> list[asyncio.Task[Any]]:
            tasks = asyncio.all_tasks()
            return [task for task in tasks if task.get_name() == "gathered requests"]

        while not sending():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        sending()[0].cancel()
        results = await asyncio.gather(*lookups, return_exceptions=True)
        assert [type(each) for each in results] == [Closed, Closed]


@pytest.mark.parametrize("change", [None, without_batches])
async def test_a_refresh_that_has_to_wait_holds_up_no_heartbeat(
    world: World, proxy: RegistryProxy, change: Any
) -> None:
    proxy.change = change or proxy.change
    refused: Counter[str] = Counter()

    def come_back_later(request: dict[str, Any]) -> dict[str, Any] | None:
        if request["type"] not in ("batch", "lookup"):
            return None
        refused[request["type"]] += 1
        return {"type": "error", "error": "rate limited", "retry_after": 60.0}

    async with host_at(world, proxy, "a", "b", "c", keepalive_s=0.2) as host:
        await beats(host, 1)
        proxy.answer = come_back_later
        for member in host.registrar._members.values():
            member.sync_at = 0.0
        await eventually(refused.total, what="the networks are asked for")
        await beats(host, 3)


async def test_a_registry_that_is_down_is_asked_by_one(
    world: World, proxy: RegistryProxy, caplog: pytest.LogCaptureFixture
) -> None:
    async with host_at(world, proxy, keepalive_s=0.2) as host:
        await beats(host, 1)
        await world.stop_rendezvous()
        before = proxy.seen["heartbeats"]
        await eventually(lambda: "registry: " in caplog.text, what="it is noticed")
        assert proxy.seen["heartbeats"] - before < len(NAMES) / 2
        await world.start_rendezvous()
        await beats(host, 1)


async def beats(host: Host, rounds: int) -> None:
    """Wait until every agent has sent so many more heartbeats, about."""
    wanted = host.registrar.heartbeats + rounds * len(host.agents)
    await eventually(lambda: host.registrar.heartbeats >= wanted, what="heartbeats")
