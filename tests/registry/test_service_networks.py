"""Networks, their members and invitations (registry.md section 7)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pilotfleet.registry import turns
from pilotfleet.registry.context import PeerContext
from pilotfleet.registry.desk import LISTS_AT_ONCE
from pilotfleet.registry.directory.records import (
    MemberRecord,
    NodeRecord,
    encode_record,
    member_key,
    node_key,
)
from pilotfleet.registry.handlers import listing
from pilotfleet.registry.privacy import rfc3339
from pilotfleet.registry.store.base import Entry
from tests.registry.world import ADMIN_TOKEN, Agent, World, error_of

NAME_RULE = "lowercase alphanumeric with hyphens, start/end with alphanumeric"
INVITE_ONLY = {"enterprise": True, "join_rule": "invite"}


async def network(world: World, **fields: Any) -> int:
    """Create a network of node 1 and return its ID."""
    fields = {"node_id": 1, "name": "net", **fields}
    reply = await world.admin("create_network", **fields)
    assert reply["type"] == "create_network_ok", reply
    number: int = reply["network_id"]
    return number


async def invited_network(world: World) -> list[Agent]:
    """Make network 1 with owner 1 and member 2; 3 is outside."""
    agents = await world.agents(3)
    await network(world, **INVITE_ONLY)
    await invite(agents[0], 2)
    await agents[1].ask("respond_invite", network_id=1, accept=True)
    return agents


async def invite(agent: Agent, target: int) -> dict[str, Any]:
    fields = {"inviter_id": agent.node, "target_node_id": target}
    return await agent.ask("invite_to_network", network_id=1, **fields)


async def test_creating_makes_the_creator_owner() -> None:
    world = World()
    await world.agents(1)
    assert await world.admin("create_network", node_id=1, name="net") == {
        "type": "create_network_ok",
        "network_id": 1,
        "name": "net",
        "enterprise": False,
    }
    role = await world.ask("get_member_role", network_id=1, target_node_id=1)
    assert role["role"] == "owner"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"name": ""}, "network name required"),
        ({"name": "x" * 64}, "network name too long (max 63 chars)"),
        (
            {"name": "Bad"},
            f"network name must be {NAME_RULE}",
        ),
        ({"name": "backbone"}, 'network name "backbone" is reserved'),
        ({"name": "taken"}, 'network "taken" already exists'),
        ({"node_id": 9}, "node 9 not registered"),
        ({"node_id": 0}, "node 0 not registered"),
        ({"join_rule": "maybe"}, 'invalid join rule "maybe"'),
        (
            {"join_rule": "invite"},
            "enterprise feature: invite-only networks require the enterprise flag",
        ),
        ({"token": "x" * 2000}, "token too long (max 1024 chars)"),
        ({"rules": {"links": 1}}, "rules: "),
        ({"expr_policy": "{"}, "expr_policy: "),
        ({"expr_policy": {"version": 2, "rules": [1]}}, "expr_policy: "),
        ({"expr_policy": {"version": 1, "rules": []}}, "expr_policy: "),
        (
            {"expr_policy": {"version": 1, "rules": ["x" * 70_000]}},
            "expr_policy: too long",
        ),
        ({"admin_token": "guess"}, "invalid admin token"),
    ],
)
async def test_creation_problems_have_their_texts(
    fields: dict[str, Any], error: str
) -> None:
    world = World()
    await world.agents(1)
    await network(world, name="taken")
    request = {"node_id": 1, "name": "net", "admin_token": ADMIN_TOKEN, **fields}
    reply = await world.ask("create_network", **request)
    assert error_of(reply).startswith(error)


async def test_without_a_token_on_the_server_creation_is_disabled() -> None:
    reply = await World(admin_token="").ask("create_network", admin_token="")
    assert error_of(reply) == "network creation is disabled"


async def test_joining_needs_the_token_of_a_token_network() -> None:
    world = World()
    _, two = await world.agents(2)
    await network(world, join_rule="token", token="sesame")
    for token in ("", "guess"):
        reply = await two.ask("join_network", network_id=1, token=token)
        assert error_of(reply) == "invalid token for network 1"
    reply = await two.ask("join_network", network_id=1, token="sesame")
    assert reply == {
        "type": "join_network_ok",
        "network_id": 1,
        "address": "1:0001.0000.0002",
    }
    again = await two.ask("join_network", network_id=1, token="sesame")
    assert error_of(again) == "node 2 already in network 1"


async def test_a_token_network_without_a_token_admits_nobody() -> None:
    world = World()
    _, two = await world.agents(2)
    await network(world, join_rule="token")
    reply = await two.ask("join_network", network_id=1, token="")
    assert error_of(reply) == "invalid token for network 1"


async def test_joining_problems_have_their_texts() -> None:
    world = World()
    _, two = await world.agents(2)
    await network(world, **INVITE_ONLY)
    for number, error in (
        (0, "cannot join the backbone network"),
        (9, "network 9: network not found"),
        (1, "invite-only networks require invite_to_network + respond_invite flow"),
    ):
        reply = await two.ask("join_network", network_id=number)
        assert error_of(reply) == error
    unsigned = await world.ask("join_network", network_id=1, node_id=2)
    assert error_of(unsigned) == "signature required for authenticated node"


async def test_the_member_limit_is_kept() -> None:
    world = World()
    agents = await world.agents(3)
    await network(world, enterprise=True)
    await world.admin("set_network_policy", network_id=1, max_members=2)
    await agents[1].ask("join_network", network_id=1)
    reply = await agents[2].ask("join_network", network_id=1)
    assert error_of(reply) == "network membership limit reached"


async def test_leaving_ends_membership_and_invitations() -> None:
    world = World()
    one, two, _ = await invited_network(world)
    await world.ask("promote_member", network_id=1, node_id=1, target_node_id=2)
    await invite(two, 3)
    owner = await one.ask("leave_network", network_id=1)
    assert error_of(owner) == (
        "cannot leave network: owner must transfer ownership first"
    )
    reply = await two.ask("leave_network", network_id=1)
    assert reply == {"type": "leave_network_ok", "network_id": 1}
    assert world.directory.networks.invites == {}
    again = await two.ask("leave_network", network_id=1)
    assert error_of(again) == "node 2 is not a member of network 1"
    backbone = await two.ask("leave_network", network_id=0)
    assert error_of(backbone) == "cannot leave the backbone network"


async def test_deleting_ends_everything_and_frees_the_name_but_not_the_id() -> None:
    world = World()
    one, two = await world.agents(2)
    await network(world)
    await two.ask("join_network", network_id=1)
    reply = await world.ask("delete_network", network_id=1, node_id=1)
    assert reply == {"type": "delete_network_ok", "network_id": 1}
    assert (await world.ask("lookup", node_id=2))["networks"] == [0]
    assert error_of(await one.ask("resolve", requester_id=1, node_id=2))
    listed = await world.ask("list_nodes", network_id=1)
    assert error_of(listed) == "network 1: network not found"
    await world.service.maintain()
    keys = [entry.key for entry in await world.store.load()]
    assert not [key for key in keys if key.startswith(("member.", "netname."))]
    again = await world.reopened()
    assert await network(again) == 2
    assert error_of(await world.ask("delete_network", network_id=0))


async def test_renaming_frees_the_old_name() -> None:
    world = World()
    await world.agents(1)
    await network(world)
    fields = {"network_id": 1, "node_id": 1}
    reply = await world.ask("rename_network", **fields, name="other")
    assert reply == {"type": "rename_network_ok", "network_id": 1, "name": "other"}
    assert (await world.ask("rename_network", **fields, name="other"))["name"]
    assert await network(world) == 2
    taken = await world.ask("rename_network", **fields, name="net")
    assert error_of(taken) == 'network "net" already exists'
    backbone = await world.admin("rename_network", network_id=0, name="x")
    assert error_of(backbone) == "cannot rename the backbone network"


async def test_the_list_of_networks_counts_members_for_the_administrator() -> None:
    world = World()
    await world.agents(3)
    await network(world, enterprise=True, expr_policy={"version": 1, "rules": [1]})
    policy = {"max_members": 50, "description": "d", "allowed_ports": [80]}
    await world.admin("set_network_policy", network_id=1, **policy)
    rows = (await world.ask("list_networks"))["networks"]
    created = int(world.clock.wall())
    backbone = {"id": 0, "name": "backbone", "join_rule": "open"}
    fleet = {
        "id": 1,
        "name": "net",
        "join_rule": "open",
        "enterprise": True,
        "created": created,
        "max_members": 50,
        "description": "d",
        "has_expr_policy": True,
    }
    assert rows == [{**backbone, "enterprise": False, "created": 0}, fleet]
    counted = (await world.admin("list_networks"))["networks"]
    assert [row["members"] for row in counted] == [3, 1]


async def test_policies_are_kept_and_checked() -> None:
    world = World()
    await world.agents(1)
    await network(world)
    fields = {"network_id": 1}
    plain = await world.admin("set_network_policy", **fields)
    assert error_of(plain) == "enterprise feature: requires enterprise network"
    await network(world, name="two", enterprise=True)
    fields = {"network_id": 2}
    for bad, error in (
        ({"max_members": 10_001}, "invalid max_members"),
        ({"allowed_ports": [80] * 101}, "too many allowed_ports"),
        ({"allowed_ports": [0]}, "invalid allowed_ports"),
        ({"allowed_ports": ["80"]}, "invalid allowed_ports"),
        ({"allowed_ports": [65_536]}, "invalid allowed_ports"),
        ({"description": "x" * 257}, "description too long"),
    ):
        reply = await world.admin("set_network_policy", **fields, **bad)
        assert error_of(reply).startswith(error)
    good = {"max_members": 5, "allowed_ports": [80, 443], "description": "d"}
    reply = await world.admin("set_network_policy", **fields, **good)
    assert reply == {"type": "set_network_policy_ok", "network_id": 2, **good}
    assert (await world.ask("get_network_policy", **fields)) == {
        "type": "get_network_policy_ok",
        "network_id": 2,
        **good,
    }


async def test_expression_policies_are_stored_unread() -> None:
    world = World()
    await world.agents(1)
    await network(world)
    fields = {"network_id": 1, "node_id": 1}
    policy = '{"version": 1, "rules": [{"x": true}]}'
    reply = await world.ask("set_expr_policy", **fields, expr_policy=policy)
    assert reply == {"type": "set_expr_policy_ok", "network_id": 1}
    found = await world.ask("get_expr_policy", network_id=1)
    assert found["expr_policy"] == policy
    cleared = await world.ask("set_expr_policy", **fields, expr_policy="null")
    assert cleared["cleared"] is True
    assert "expr_policy" not in await world.ask("get_expr_policy", network_id=1)


async def test_roles_gate_administration() -> None:
    world = World()
    await invited_network(world)
    for fields, error in (
        ({}, "rbac: node_id required for role-based authorization"),
        ({"node_id": 3}, "rbac: node 3 has no role in network 1"),
        (
            {"node_id": 2},
            'rbac: node 2 has role "member", requires one of [owner admin]',
        ),
    ):
        reply = await world.ask("rename_network", network_id=1, name="x", **fields)
        assert error_of(reply) == error
    reply = await world.ask("delete_network", network_id=1, node_id=2)
    assert error_of(reply) == (
        'rbac: node 2 has role "member", requires one of [owner]'
    )


async def test_a_network_token_administers_its_network_only() -> None:
    world = World()
    await world.agents(1)
    await network(world, network_admin_token="own")
    await network(world, name="other")
    token = {"admin_token": "own"}
    reply = await world.ask("rename_network", network_id=1, name="x", **token)
    assert reply["name"] == "x"
    for kind in ("rename_network", "delete_network"):
        assert error_of(await world.ask(kind, network_id=2, name="y", **token))
    assert error_of(await world.ask("set_tags", node_id=1, **token))


async def test_an_invitation_is_polled_until_it_is_answered() -> None:
    world = World()
    one, two, _ = await world.agents(3)
    await network(world, **INVITE_ONLY)
    reply = await invite(one, 2)
    assert reply == {
        "type": "invite_to_network_ok",
        "network_id": 1,
        "target_node_id": 2,
    }
    assert (await invite(one, 2))["status"] == "already_invited"
    now = int(world.clock.wall())
    row = {"network_id": 1, "inviter_id": 1, "timestamp": now}
    for _ in range(2):
        assert (await two.ask("poll_invites"))["invites"] == [row]
    reply = await two.ask("respond_invite", network_id=1, accept=True)
    expected = {"type": "respond_invite_ok", "accepted": True, "network_id": 1}
    assert reply == expected
    assert (await two.ask("poll_invites"))["invites"] == []
    assert (await world.ask("lookup", node_id=2))["networks"] == [0, 1]
    again = await two.ask("respond_invite", network_id=1, accept=True)
    assert error_of(again) == "no pending invite for node 2 to network 1"


async def test_a_declined_invitation_is_gone() -> None:
    world = World()
    one, two, _ = await world.agents(3)
    await network(world, **INVITE_ONLY)
    await invite(one, 2)
    reply = await two.ask("respond_invite", network_id=1, accept=False)
    assert reply["accepted"] is False
    assert (await two.ask("poll_invites"))["invites"] == []
    assert (await world.ask("lookup", node_id=2))["networks"] == [0]


async def test_inviting_problems_have_their_texts() -> None:
    world = World()
    one, two, three = await invited_network(world)
    await network(world, name="open", enterprise=True)
    await network(world, name="plain")
    for agent, number, target, error in (
        (one, 1, 1, "cannot invite yourself"),
        (one, 3, 2, "enterprise feature: requires enterprise network"),
        (one, 2, 2, "network 2 is not invite-only (rule: open)"),
        (three, 1, 2, "inviter 3 is not a member of network 1"),
        (two, 1, 3, 'rbac: inviter 2 has role "member", requires owner or admin'),
        (one, 1, 9, "node 9: node not found"),
        (one, 1, 2, "node 2 is already a member of network 1"),
    ):
        fields = {"inviter_id": agent.node, "target_node_id": target}
        reply = await agent.ask("invite_to_network", network_id=number, **fields)
        assert error_of(reply) == error


async def test_invitations_expire_and_may_be_renewed() -> None:
    world = World()
    one, two, _ = await world.agents(3)
    await network(world, **INVITE_ONLY)
    await invite(one, 2)
    world.clock.time += 31 * 86_400
    assert (await two.ask("poll_invites"))["invites"] == []
    late = await two.ask("respond_invite", network_id=1, accept=True)
    assert error_of(late) == "invite for node 2 to network 1 has expired"
    assert "status" not in await invite(one, 2)
    assert (await two.ask("respond_invite", network_id=1, accept=True))["accepted"]


async def test_the_invitation_box_is_bounded_and_drops_what_expired() -> None:
    world = World()
    one, _ = await world.agents(2)
    for number in range(102):
        await network(world, name=f"n{number}", **INVITE_ONLY)
    fields = {"inviter_id": 1, "target_node_id": 2}
    for number in range(1, 101):
        await one.ask("invite_to_network", network_id=number, **fields)
    full = await one.ask("invite_to_network", network_id=101, **fields)
    assert error_of(full) == "invite inbox full for node 2"
    world.clock.time += 31 * 86_400
    reply = await one.ask("invite_to_network", network_id=101, **fields)
    assert reply["type"] == "invite_to_network_ok"
    assert list(world.directory.networks.invites[2]) == [101]


async def test_members_rise_and_fall() -> None:
    world = World()
    await invited_network(world)
    fields = {"network_id": 1, "node_id": 1, "target_node_id": 2}
    promoted = await world.ask("promote_member", **fields)
    assert (promoted["type"], promoted["role"]) == ("promote_member_ok", "admin")
    again = await world.ask("promote_member", **fields)
    assert error_of(again) == "node 2 is already an admin"
    demoted = await world.ask("demote_member", **fields)
    assert demoted["role"] == "member"
    again = await world.ask("demote_member", **fields)
    assert error_of(again) == "node 2 is already a member"
    for kind, target, error in (
        ("promote_member", 1, "cannot promote the owner"),
        ("demote_member", 1, "cannot demote the owner"),
        ("kick_member", 1, "cannot kick the network owner"),
        ("kick_member", 3, "node 3 is not a member of network 1"),
    ):
        reply = await world.ask(kind, **{**fields, "target_node_id": target})
        assert error_of(reply) == error
    kicked = await world.ask("kick_member", **fields)
    assert kicked["target_node_id"] == 2
    assert (await world.ask("lookup", node_id=2))["networks"] == [0]
    backbone = await world.ask("kick_member", **{**fields, "network_id": 0})
    assert error_of(backbone) == "cannot kick from the backbone network"


async def test_roles_change_in_enterprise_networks_only() -> None:
    world = World()
    _, two = await world.agents(2)
    await network(world)
    await two.ask("join_network", network_id=1)
    fields = {"network_id": 1, "node_id": 1, "target_node_id": 2, "new_owner_id": 2}
    for kind in (
        "kick_member",
        "promote_member",
        "demote_member",
        "transfer_ownership",
    ):
        reply = await world.ask(kind, **fields)
        assert error_of(reply) == "enterprise feature: requires enterprise network"


async def test_ownership_passes_on() -> None:
    world = World()
    await invited_network(world)
    fields = {"network_id": 1, "node_id": 1}
    missing = await world.ask("transfer_ownership", **fields)
    assert error_of(missing) == "new_owner_id is required"
    outside = await world.ask("transfer_ownership", **fields, new_owner_id=3)
    assert error_of(outside) == "node 3 is not a member of network 1"
    same = await world.ask("transfer_ownership", **fields, new_owner_id=1)
    assert error_of(same) == "node 1 is already the owner"
    reply = await world.admin("transfer_ownership", network_id=1, new_owner_id=2)
    assert reply == {
        "type": "transfer_ownership_ok",
        "network_id": 1,
        "old_owner": 1,
        "new_owner": 2,
    }
    roles = [
        (await world.ask("get_member_role", network_id=1, target_node_id=node))["role"]
        for node in (1, 2)
    ]
    assert roles == ["admin", "owner"]


async def test_member_tags_belong_to_the_network() -> None:
    world = World()
    await invited_network(world)
    fields = {"network_id": 1, "node_id": 1, "target_node_id": 2}
    reply = await world.ask("set_member_tags", **fields, tags=["#svc", "gpu"])
    assert reply["tags"] == ["svc", "gpu"]
    one = await world.ask("get_member_tags", network_id=1, target_node_id=2)
    assert one["tags"] == ["svc", "gpu"]
    everyone = await world.ask("get_member_tags", network_id=1, target_node_id=0)
    assert everyone["members"] == {"1": [], "2": ["svc", "gpu"]}
    rows = (await world.ask("list_nodes", network_id=1))["nodes"]
    assert rows[1]["member_tags"] == ["svc", "gpu"]
    assert "tags" not in rows[1]
    for kind in ("get_member_tags", "get_member_role"):
        reply = await world.ask(kind, network_id=1, target_node_id=3)
        assert error_of(reply) == "node 3 is not a member of network 1"


async def test_the_backbone_is_listed_for_the_administrator_only() -> None:
    world = World()
    one, _ = await world.agents(2)
    await one.ask("set_visibility", public=True)
    await one.ask("set_task_exec", enabled=True)
    reply = await world.ask("list_nodes", network_id=0)
    assert error_of(reply) == (
        "listing backbone nodes is not permitted (use lookup with a specific node_id)"
    )
    rows = (await world.admin("list_nodes", network_id=0))["nodes"]
    assert rows == [
        {
            "node_id": 1,
            "address": "0:0000.0000.0001",
            "public": True,
            "last_seen": "2026-11-22T13:51:27Z",
            "task_exec": True,
            "real_addr": "203.0.113.5:4000",
        },
        {
            "node_id": 2,
            "address": "0:0000.0000.0002",
            "public": False,
            "last_seen": "2026-11-22T13:51:27Z",
        },
    ]


async def large_network() -> World:
    """Return a registry with a network of 2500 members."""
    world = World()
    await world.agents(1)
    await network(world)
    for node in range(2, 2501):
        record = NodeRecord(node, node.to_bytes(32, "big"), 0)
        world.directory.apply(Entry(node_key(node), encode_record(record), node))
        member = encode_record(MemberRecord())
        world.directory.apply(Entry(member_key(1, node), member, 5000 + node))
    return world


async def test_a_long_list_leaves_others_their_turn() -> None:
    world = await large_network()
    task = asyncio.ensure_future(world.ask("list_nodes", network_id=1))
    everyone = asyncio.ensure_future(world.admin("list_nodes", network_id=0))
    await asyncio.sleep(0)
    assert not task.done()
    # One of the last leaves while the list is being made.
    world.directory.apply(Entry(member_key(1, 2400), None, 9999))
    rows = (await task)["nodes"]
    assert [row["node_id"] for row in rows] == [*range(1, 2400), *range(2401, 2501)]
    assert len((await everyone)["nodes"]) == 2500


async def test_many_long_lists_have_a_turn_together_and_few_are_made_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await large_network()
    made = 0

    def counted(seconds: float) -> str:
        nonlocal made
        made += 1
        return rfc3339(seconds)

    monkeypatch.setattr(listing, "rfc3339", counted)
    monkeypatch.setattr(turns, "SHARE_S", -1.0)
    asked = [world.ask("list_nodes", network_id=1) for _ in range(9)]
    asked.append(world.admin("list_nodes", network_id=0))
    lists = [asyncio.ensure_future(each) for each in asked]
    most = before = 0
    while not any(each.done() for each in lists):
        await asyncio.sleep(0)
        most, before = max(most, made - before), made
    assert most <= listing.ROWS_AT_ONCE
    assert made <= LISTS_AT_ONCE * 2500
    assert [len(reply["nodes"]) for reply in await asyncio.gather(*lists)] == [
        2500
    ] * 10


async def test_a_list_that_waited_is_not_made_for_nobody_nor_of_what_is_gone() -> None:
    world = await large_network()
    peer = PeerContext("203.0.113.5")
    request = {"type": "list_nodes", "network_id": 1}
    first = [
        asyncio.ensure_future(world.ask("list_nodes", network_id=1))
        for _ in range(LISTS_AT_ONCE)
    ]
    await asyncio.sleep(0)
    gone = asyncio.ensure_future(world.service.handle(request, peer))
    late = asyncio.ensure_future(world.ask("list_nodes", network_id=1))
    await asyncio.sleep(0)
    peer.is_gone = True
    await world.admin("delete_network", network_id=1)
    assert error_of(await gone) == "the connection is gone"
    assert error_of(await late) == "network 1: network not found"
    await asyncio.gather(*first)
