"""The ``trust-links`` extension: who is shown which links, in which pages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.registry.directory import trustlinks
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.directory.trust import Grant, TrustTable
from pilotfleet.registry.directory.trustlinks import LinkTable, list_links
from pilotfleet.registry.store.memory import MemoryStore
from tests.registry.test_service_replicas import replicas, settled
from tests.registry.world import World, error_of

if TYPE_CHECKING:
    from tests.registry.world import Agent


async def link(one: Agent, other: Agent) -> None:
    """Have two nodes consent to each other; the first to do so makes the link."""
    await one.ask("report_trust", peer_id=other.node)
    await other.ask("report_trust", peer_id=one.node)


async def shown(agent: Agent, **query: Any) -> list[tuple[int, int]]:
    """Return all links that an agent is shown."""
    links, cursor = [], ""
    while True:
        page = await agent.ask("list_trust", cursor=cursor, **query)
        links += [(row["a"], row["b"]) for row in page["links"]]
        cursor = page["next_cursor"]
        if not cursor:
            return links


async def generation(agent: Agent) -> int:
    """Return the generation of what an agent is shown."""
    reply = await agent.ask("list_trust")
    number = reply["generation"]
    assert isinstance(number, int)
    return number


async def fleets() -> tuple[World, list[Agent]]:
    """Return two networks, of nodes 1 to 3 and 3 to 5, and others."""
    world = World()
    agents = await world.agents(8)
    for name, owner, members in (("red", 1, (2, 3)), ("blue", 5, (3, 4))):
        reply = await world.admin("create_network", node_id=owner, name=name)
        for node in members:
            await agents[node - 1].ask("join_network", network_id=reply["network_id"])
    return world, agents


def test_a_link_is_a_pair() -> None:
    table = TrustTable()
    assert not table.set_grant(2, 1, Grant.LOCATION)
    assert not table.links.linked(1, 2)
    assert table.set_grant(1, 2, Grant.CONSENT)
    assert table.links.linked(1, 2)
    assert table.links.linked(2, 1)
    assert not table.set_grant(2, 1, Grant.CONSENT)
    assert not table.set_grant(1, 2, None)
    assert table.set_grant(2, 1, None)
    assert not table.links.linked(2, 1)
    assert len(table.links.nodes) == 0
    # As older releases stored it.
    assert table.set_old_pair(1, 2, exists=True)
    assert table.links.linked(1, 2)
    table.set_grant(5, 5, Grant.CONSENT)
    assert not table.links.linked(5, 5)


async def test_a_node_is_shown_links_within_its_networks_and_its_own() -> None:
    world, (one, two, three, four, five, six, seven, eight) = await fleets()
    for pair in ((one, two), (two, three), (two, four), (four, five), (three, eight)):
        await link(*pair)
    await link(six, seven)
    await link(six, one)
    await one.ask("report_trust", peer_id=three.node)
    await eight.ask("set_visibility", public=True)
    assert await shown(one) == [(1, 2), (1, 3), (1, 6), (2, 3)]
    assert await shown(two) == [(1, 2), (1, 3), (2, 3), (2, 4)]
    # Of both networks, and so of links across them.
    assert await shown(three) == [(1, 2), (1, 3), (2, 3), (2, 4), (3, 8), (4, 5)]
    assert await shown(four) == [(2, 4), (4, 5)]
    assert await shown(seven) == [(6, 7)]
    assert await shown(eight) == [(3, 8)]
    everything = await world.admin("list_trust")
    assert [(row["a"], row["b"]) for row in everything["links"]] == [
        *((1, 2), (1, 3), (1, 6), (2, 3), (2, 4), (3, 8), (4, 5), (6, 7))
    ]


async def test_trust_outlives_a_member_that_is_away() -> None:
    world, (one, two, three, *_) = await fleets()
    await link(two, three)
    before = await generation(one)
    world.clock.time += 3600
    await one.ask("heartbeat")
    await world.service.maintain()
    assert world.directory.nodes.get_live(two.node) is None
    assert await shown(one) == [(2, 3)]
    assert await generation(one) == before
    await two.register()
    await two.ask("deregister")
    assert await shown(one) == [], "it left its networks"


async def test_only_a_signature_or_the_administrator_is_answered() -> None:
    world, (one, two, *_) = await fleets()
    await link(one, two)
    missing = "signature required for authenticated node"
    assert error_of(await world.ask("list_trust", node_id=1)) == missing
    wrong = await world.ask("list_trust", node_id=1, admin_token="guess")
    assert error_of(wrong) == missing
    forged = await world.ask("list_trust", node_id=1, signature="AAAA")
    assert error_of(forged) == "signature verification failed"
    other = await two.ask("list_trust", node_id=1)
    assert error_of(other) == "signature verification failed"
    gone = await one.ask("list_trust", node_id=99)
    assert error_of(gone) == "node 99: node not found"


async def test_registration_tells_that_it_is_there() -> None:
    reply = await World().stranger(1).register()
    assert "trust-links" in reply["extensions"]


# Generations


async def test_nothing_is_listed_again_that_is_as_it_was() -> None:
    _, (one, two, three, *_) = await fleets()
    await link(one, two)
    known = await generation(one)
    reply = await one.ask("list_trust", generation=known)
    assert reply == {"type": "list_trust_ok", "generation": known, "unchanged": True}
    await link(two, three)
    reply = await one.ask("list_trust", generation=known)
    assert [row["b"] for row in reply["links"]] == [2, 3]
    assert reply["generation"] != known


async def test_generation_changes_with_all_that_is_shown_and_with_nothing_else() -> (
    None
):
    world, (one, two, three, four, five, six, seven, _) = await fleets()
    seen = [await generation(one)]

    async def changed() -> bool:
        seen.append(await generation(one))
        return seen[-1] not in seen[:-1]

    await link(one, two)
    assert await changed()
    await link(one, six)
    assert await changed()
    await two.ask("revoke_trust", peer_id=1)
    assert await changed()
    await six.ask("join_network", network_id=1)
    assert await changed()
    await three.ask("leave_network", network_id=1)
    assert await changed()
    await link(four, five)
    await link(four, seven)
    # Of its network, with one of none.
    await link(two, seven)
    await one.ask("set_tags", tags=["other"])
    assert not await changed()
    await one.ask("leave_network", network_id=1)
    assert await changed()
    await world.admin("delete_network", network_id=1)
    assert not await changed()


async def test_generations_of_two_askers_and_of_two_runs_differ() -> None:
    world, (one, two, *_) = await fleets()
    await link(one, two)
    again = await world.reopened()
    numbers = {await generation(one), await generation(two)}
    numbers.add((await world.admin("list_trust"))["generation"])
    one.world = again
    numbers.add(await generation(one))
    numbers.add((await again.admin("list_trust"))["generation"])
    assert len(numbers) == 5
    assert all(0 < number < 1 << 53 for number in numbers)
    assert await shown(one) == [(1, 2)]


async def test_replicas_list_the_same_and_a_client_that_moves_loads_again() -> None:
    async with replicas(MemoryStore(), 2) as worlds:
        first, second = worlds
        one, two = await first.agents(2)
        await link(one, two)
        await settled(worlds)
        known = await generation(one)
        one.world = second
        moved = await one.ask("list_trust", generation=known)
        assert moved["links"] == [{"a": 1, "b": 2}]
        assert moved["generation"] != known
        same = await one.ask("list_trust", generation=moved["generation"])
        assert same["unchanged"]
        await one.ask("revoke_trust", peer_id=2)
        await settled(worlds)
        one.world = first
        assert await shown(one) == []
        assert await generation(one) != known


# Pages


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
async def test_pages_hold_each_link_once_in_order(limit: int) -> None:
    _, agents = await fleets()
    members = agents[:3]
    for index, agent in enumerate(members):
        for other in [*members[index + 1 :], *agents[4:]]:
            await link(agent, other)
    every = await shown(agents[0])
    assert every == sorted(set(every))
    assert len(every) == 3 + 4
    assert await shown(agents[0], limit=limit) == every


async def test_links_that_stay_come_once_while_others_come_and_go() -> None:
    _, (one, two, three, four, five, *_) = await fleets()
    for other in (two, three, four, five):
        await link(one, other)
    first = await one.ask("list_trust", limit=2)
    assert [row["b"] for row in first["links"]] == [2, 3]
    await one.ask("revoke_trust", peer_id=3)
    await one.ask("revoke_trust", peer_id=4)
    await link(two, three)
    second = await one.ask("list_trust", limit=2, cursor=first["next_cursor"])
    assert [tuple(row.values()) for row in second["links"]] == [(1, 5), (2, 3)]
    # It tells that the list is not of one moment.
    assert second["generation"] != first["generation"]


@pytest.mark.parametrize(
    "cursor", ["!", "1", "1.", ".1", "1.-2", "9" * 40 + ".1", "\u0661.\u0661"]
)
async def test_cursors_of_others_are_refused(cursor: str) -> None:
    _, (one, *_) = await fleets()
    assert error_of(await one.ask("list_trust", cursor=cursor)) == "invalid cursor"


@pytest.mark.parametrize("value", [-1, 0, True, "x", 1 << 70, [1], {}, 0.5, None])
async def test_odd_fields_count_as_absent(value: object) -> None:
    _, (one, two, *_) = await fleets()
    await link(one, two)
    reply = await one.ask("list_trust", generation=value, limit=value, cursor=value)
    # A cursor is a text, so only "x" is one.
    assert reply.get("links", []) == ([] if value == "x" else [{"a": 1, "b": 2}])


async def test_work_for_one_request_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trustlinks, "MAX_LOOKS", 5)
    _, agents = await fleets()
    # A member with many links that nobody may see.
    for other in (*agents[3:], agents[0]):
        await link(agents[1], other)
    await link(agents[0], agents[2])
    page = await agents[0].ask("list_trust")
    assert len(page["links"]) == 2
    assert page["next_cursor"], "there may be more"
    assert await shown(agents[0]) == [(1, 2), (1, 3)]


def test_a_page_of_a_large_fleet_costs_milliseconds() -> None:
    directory = Directory()
    table = directory.trust.links
    for node in range(1, 20_001):
        table.set(node, node + 1, exists=True)
        table.set(1, node + 1, exists=True)
    started = time.process_time()
    page = list_links(directory, None, after=(1, 15_000))
    elapsed = time.process_time() - started
    assert page.links[0] == (1, 15_001)
    assert len(page.links) == 1000
    # About 3 ms; the bound is for slow machines.
    assert elapsed < 0.5


def test_an_empty_table_has_a_generation() -> None:
    assert LinkTable().generation(None) > 0
