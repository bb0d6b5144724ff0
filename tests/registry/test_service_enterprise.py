"""Administration of many networks (registry.md section 7.1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.registry.world import World, error_of

ENTERPRISE = {"join_rule": "open", "enterprise": True}


async def network_of(world: World, owner: int, **fields: Any) -> int:
    reply = await world.admin(
        "create_network", node_id=owner, name="corp", **{**ENTERPRISE, **fields}
    )
    number: int = reply["network_id"]
    return number


async def role(world: World, network: int, node: int) -> str:
    asked = {"network_id": network, "target_node_id": node}
    reply = await world.ask("get_member_role", **asked)
    return str(reply.get("role", ""))


@pytest.mark.parametrize(
    "kind",
    [
        *("provision_network", "get_provision_status", "set_external_id"),
        *("get_identity", "get_audit_log", "directory_sync", "directory_status"),
        *("get_idp_config", "set_idp_config", "get_audit_export", "set_audit_export"),
        *("set_webhook", "get_webhook", "get_webhook_dlq", "validate_token"),
        *("set_network_enterprise", "set_identity_webhook"),
    ],
)
async def test_all_of_it_takes_the_admin_token(kind: str) -> None:
    world = World()
    assert error_of(await world.ask(kind)) == "invalid admin token"
    assert error_of(await world.ask(kind, admin_token="no")) == "invalid admin token"


async def test_blueprint_makes_a_network_and_then_changes_it() -> None:
    world = World()
    (first,) = await world.agents(1)
    blueprint: dict[str, Any] = {
        "name": "corp",
        "join_rule": "token",
        "join_token": "letmein",
        "enterprise": True,
        "policy": {"allowed_ports": [80, 443], "max_members": 5},
        "roles": [{"external_id": "Ann@corp", "role": "owner"}],
    }
    made = await world.admin("provision_network", blueprint=blueprint)
    assert (made["name"], made["created"], made["network_id"]) == ("corp", True, 1)
    assert made["actions"][0] == "created"
    again = await world.admin("provision_network", blueprint=blueprint)
    assert (again["created"], again["actions"]) == (False, [])

    blueprint["policy"] = {"allowed_ports": [7]}
    for field, value in (("join_rule", "odd"), ("join_token", "x" * 2000)):
        bad = blueprint | {field: value, "roles": 3}
        assert error_of(await world.admin("provision_network", blueprint=bad))
    changed = await world.admin("provision_network", blueprint=blueprint)
    assert changed["actions"] == ["set max_members", "set allowed_ports"]
    policy = await world.ask("get_network_policy", network_id=1)
    assert (policy["allowed_ports"], policy["max_members"]) == ([7], 0)

    # Nobody is in it; the first to come with the right name owns it.
    await world.admin("set_external_id", node_id=first.node, external_id="ann@CORP")
    assert "invalid token" in error_of(await first.ask("join_network", network_id=1))
    joined = await first.ask("join_network", network_id=1, token="letmein")
    assert joined["type"] == "join_network_ok"
    assert await role(world, 1, first.node) == "owner"

    status = await world.admin("get_provision_status")
    assert status["networks"] == [
        {
            "network_id": 1,
            "name": "corp",
            "enterprise": True,
            "members": 1,
            "join_rule": "token",
            "allowed_ports": [7],
            "rbac_pre_assignments": 1,
        }
    ]
    assert "letmein" not in str(status)


@pytest.mark.parametrize(
    ("blueprint", "text"),
    [
        ("text", "blueprint object is required"),
        ({}, "network name required"),
        ({"name": "Bad Name"}, "network name must be lowercase"),
        ({"name": "x", "join_rule": "maybe"}, 'invalid join rule "maybe"'),
        ({"name": "x", "policy": {"allowed_ports": [0]}}, "invalid allowed_ports"),
        ({"name": "x", "roles": [{"external_id": "a", "role": "king"}]}, 'role "king"'),
        ({"name": "x", "identity_provider": {"type": "oidc"}}, "not supported"),
        ({"name": "x", "audit_export": {"format": "json"}}, "not supported"),
        ({"name": "x", "expr_policy": {"version": 2}}, "expr_policy: "),
        ({"name": "x", "roles": [{"role": "owner"}]}, "external_id is required"),
    ],
)
async def test_bad_blueprint(blueprint: Any, text: str) -> None:
    world = World()
    reply = await world.admin("provision_network", blueprint=blueprint)
    assert text in error_of(reply)
    assert (await world.admin("get_provision_status"))["networks"] == []


async def test_external_identity_survives_a_restart_and_a_return() -> None:
    world = World()
    (agent,) = await world.agents(1)
    await world.admin("set_external_id", node_id=agent.node, external_id="u1")
    long = await world.admin(
        "set_external_id", node_id=agent.node, external_id="x" * 999
    )
    assert "too long" in error_of(long)
    await agent.ask("deregister")
    await agent.register()
    again = await world.reopened()
    identity = await again.admin("get_identity", node_id=agent.node)
    assert identity["external_id"] == "u1"
    gone = await world.admin("set_external_id", node_id=99, external_id="x")
    assert "node not found" in error_of(gone)


async def test_directory_is_followed() -> None:
    world = World()
    agents = await world.agents(5)
    number = await network_of(world, agents[0].node)
    for agent, name in zip(agents, ["own", "ann", "bob", "cid", ""], strict=True):
        if agent is not agents[0]:
            await agent.ask("join_network", network_id=number)
        await world.admin("set_external_id", node_id=agent.node, external_id=name)
    entries = [
        {"external_id": "own", "role": "member"},
        {"external_id": "ANN", "role": "admin", "display_name": "ann-1"},
        {"external_id": "bob", "disabled": True},
        {"external_id": "dan", "role": "admin"},
        {"external_id": "eve", "display_name": "not a hostname"},
    ]
    synced = await world.admin(
        "directory_sync", network_id=number, entries=entries, remove_unlisted=True
    )
    counts = {key: synced[key] for key in ("updated", "disabled", "mapped", "unmapped")}
    assert counts == {"updated": 1, "disabled": 1, "mapped": 3, "unmapped": 2}
    # Owners are not a directory's to depose; who has no external ID stays.
    nodes = [agent.node for agent in agents]
    roles = [await role(world, number, node) for node in nodes]
    assert roles == ["owner", "admin", "", "", "member"]
    named = await world.ask("lookup", node_id=nodes[1])
    assert named["hostname"] == "ann-1"

    status = await world.admin("directory_status", network_id=number)
    del status["type"]
    assert status == {
        "network_id": number,
        "total": 3,
        "mapped": 2,
        "unmapped": 1,
        "enterprise": True,
        "pre_assignments": 1,
    }
    dan = await world.agent(9)
    await world.admin("set_external_id", node_id=dan.node, external_id="dan")
    await dan.ask("join_network", network_id=number)
    assert await role(world, number, dan.node) == "admin"


async def test_bad_directory_changes_nothing() -> None:
    world = World()
    (agent,) = await world.agents(1)
    number = await network_of(world, agent.node)
    plain = await world.admin("create_network", node_id=agent.node, name="plain")
    sync = {"network_id": number}
    for fields, text in (
        ({}, "entries array is required"),
        ({"entries": "x"}, "entries array is required"),
        ({"entries": [{}]}, "external_id is required"),
        ({"entries": [3]}, "external_id is required"),
        ({"entries": [{"external_id": "a", "role": "king"}]}, 'invalid role "king"'),
        ({"entries": [{"external_id": "a"}] * 1001}, "too many entries"),
        (
            {"entries": [], "network_id": plain["network_id"]},
            "directory sync requires enterprise network",
        ),
        ({"entries": [], "network_id": 99}, "network 99: network not found"),
    ):
        reply = await world.admin("directory_sync", **{**sync, **fields})
        assert text in error_of(reply)


async def test_roles_are_turned_on_and_off() -> None:
    world = World()
    agents = await world.agents(2)
    number = await network_of(world, agents[0].node, enterprise=False)
    await agents[1].ask("join_network", network_id=number)
    on = {"network_id": number, "enterprise": True}
    assert (await world.admin("set_network_enterprise", **on))["enterprise"] is True
    assert await role(world, number, agents[0].node) == "owner"
    promote = {"network_id": number, "target_node_id": agents[1].node}
    await world.admin("promote_member", **promote)
    await world.admin("set_network_enterprise", network_id=number, enterprise=False)
    roles = [await role(world, number, agent.node) for agent in agents]
    assert roles == ["member", "member"]
    backbone = await world.admin("set_network_enterprise", network_id=0)
    assert "backbone" in error_of(backbone)


async def test_audit_log_tells_changes_newest_first() -> None:
    world = World()
    (agent,) = await world.agents(1)
    number = await network_of(world, agent.node)
    world.clock.time += 5
    await world.admin("rename_network", network_id=number, name="other")
    await world.ask("list_networks")
    await world.admin("rename_network", network_id=99, name="nothing-happened")
    entries = (await world.admin("get_audit_log"))["entries"]
    assert entries == [
        {
            "timestamp": "2026-11-22T13:51:32Z",
            "action": "network.renamed",
            "network_id": number,
            "details": {"name": "other"},
        },
        {
            "timestamp": "2026-11-22T13:51:27Z",
            "action": "network.created",
            "network_id": number,
            "node_id": agent.node,
            "details": {"name": "corp"},
        },
    ]
    newest = await world.admin("get_audit_log", limit=1, network_id=number)
    assert newest["entries"] == entries[:1]
    assert (await world.admin("get_audit_log", network_id=7))["entries"] == []


async def test_what_needs_other_services_is_refused_with_the_reason() -> None:
    world = World()
    for kind, text in (
        ("set_idp_config", "identity providers"),
        ("validate_token", "identity providers"),
        ("set_webhook", "registry webhooks"),
    ):
        reply = await world.admin(kind, url="http://127.0.0.1/")
        assert error_of(reply) == f"not supported: this registry has no {text}"
    export = await world.admin("set_audit_export", format="json", endpoint="http://x")
    assert "not supported" in error_of(export)
    assert (await world.admin("set_audit_export", format=""))["status"] == "disabled"
    for kind in ("get_idp_config", "get_audit_export"):
        assert (await world.admin(kind))["configured"] is False


async def test_policy_keeps_what_is_not_named() -> None:
    world = World()
    (agent,) = await world.agents(1)
    number = await network_of(world, agent.node)
    first = {"network_id": number, "allowed_ports": [80], "description": "web"}
    await world.admin("set_network_policy", **first)
    reply = await world.admin("set_network_policy", network_id=number, max_members=3)
    del reply["type"]
    assert reply == {**first, "max_members": 3}
    cleared = await world.admin(
        "set_network_policy", network_id=number, allowed_ports=[]
    )
    assert cleared["allowed_ports"] == []
